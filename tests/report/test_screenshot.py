"""Pictures of the documentation: the parts that need no browser."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from scripts.screenshot import main, only_section, save

PAGE = (
    "<html><head></head><body><header>top</header>"
    '<section aria-labelledby="worst"><h2 id="worst">W</h2></section></body>'
)


def test_pictures_stay_below_the_limit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    large = save(image, tmp_path / "large.png", 100_000)
    assert np.array_equal(np.asarray(Image.open(large)), noise), "nothing is lost where there is room"
    small = save(image, tmp_path / "small.png", 5_000)
    assert small.stat().st_size <= 5_000
    assert Image.open(small).size == (60, 60)
    with pytest.raises(ValueError, match=r"none\.png takes .* bytes in 16 colours; the limit is 100"):
        save(image, tmp_path / "none.png", 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.png", "small.png"]


def test_one_section_of_a_copy(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(PAGE)
    with only_section(page, "") as address:
        assert address == page.as_uri()
    with only_section(page, "worst") as address:
        text = Path(urlparse(address).path).read_text()
    assert 'section:not([aria-labelledby="worst"])' in text.split("</head>")[0]
    assert page.read_text() == PAGE
    with pytest.raises(ValueError, match="has no section 'subgroups'"), only_section(page, "subgroups"):
        pass


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.screenshot._browser", lambda: "none")
    assert main([str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "report.html" in error
    assert "mlruns.db missing; give the output folder of a training" in error
    assert not (tmp_path / "out").exists()

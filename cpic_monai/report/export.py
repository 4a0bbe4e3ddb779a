"""One content as HTML, Markdown with figures beside it, and JSON."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from cpic_monai.atomic import replace_folder, write_text_atomically
from cpic_monai.report.style import Picture, standalone_svg
from cpic_monai.report.summary import plain

__all__ = ["figure_files", "in_markdown", "render", "write_all"]

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$])")
_PNG = re.compile(r'src="data:image/png;base64,([^"]+)"')


def in_markdown(value: object) -> str:
    """Text as it is in Markdown, also within a table: special characters escaped, line breaks as spaces."""
    text = " ".join(str(value).split("\n")).replace("&", "&amp;")
    return _SPECIAL.sub(r"\\\1", text)


def render(template: str, context: Mapping[str, Any]) -> str:
    """
    Fill a template of this folder; names that it needs and lacks are an error.

    Parameters
    ----------
    template : str
        ``*.html.j2`` has its values escaped for HTML, ``*.md.j2`` escapes with the filter ``md``.
    context : mapping
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cpic_monai.report", "."),
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = in_markdown
    return environment.get_template(template).render(**context)


def figure_files(pictures: Mapping[str, Sequence[Picture]]) -> tuple[dict[str, bytes], dict[int, str]]:
    """
    Figures as files: SVG in the page's light colours, slices as PNG.

    Parameters
    ----------
    pictures : mapping
        Section to its figures.

    Returns
    -------
    tuple
        File name (``calibration-2.svg``) to content, and the ``id`` of a picture to its file name.
    """
    files: dict[str, bytes] = {}
    names: dict[int, str] = {}
    for section, group in pictures.items():
        for k, picture in enumerate(group, 1):
            slices = _PNG.search(picture.markup)
            data = base64.b64decode(slices[1]) if slices else standalone_svg(str(picture.markup)).encode()
            names[id(picture)] = name = f"{section}-{k:02d}.{'png' if slices else 'svg'}"
            files[name] = data
    return files, names


def write_all(
    folder: str | os.PathLike[str],
    stem: str,
    html: str,
    markdown_template: str,
    context: Mapping[str, Any],
    pictures: Mapping[str, Sequence[Picture]],
    content: Mapping[str, Any],
) -> Path:
    """
    Write ``<stem>.html``, ``<stem>.md`` with ``<stem>_figures/``, and ``<stem>.json``.

    Parameters
    ----------
    folder : path
    stem : str
    html : str
    markdown_template : str
        Rendered with `context` and ``file``, a function that gives a picture's path relative to the Markdown.
    context : mapping
    pictures : mapping
        Section to its figures.
    content : mapping
        For the JSON, where NaN becomes null.

    Returns
    -------
    Path
        Of the HTML, which is written last: where it is new, all are.
    """
    folder = Path(folder)
    files, names = figure_files(pictures)
    replace_folder(folder / f"{stem}_figures", files)
    text = render(markdown_template, {**context, "file": lambda picture: f"{stem}_figures/{names[id(picture)]}"})
    write_text_atomically(folder / f"{stem}.md", re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    write_text_atomically(
        folder / f"{stem}.json", json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    return write_text_atomically(folder / f"{stem}.html", html)

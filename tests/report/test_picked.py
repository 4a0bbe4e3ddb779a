from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpic_monai.report import PickedScan
from cpic_monai.report.picked import picked_pictures

SHAPE = (24, 16, 10)
SPACING = (1.0, 1.5, 4.0)


def volume() -> np.ndarray:
    """RAS array, HU from -1000 to 400, brighter towards right, anterior and superior, each by another amount."""
    i, j, k = np.meshgrid(*(np.linspace(0, 1, n) for n in SHAPE), indexing="ij")
    return -1000 + 1400 * (0.5 * i + 0.3 * j + 0.2 * k)


def scan(array: np.ndarray, voxels: np.ndarray, **given: Any) -> PickedScan:
    boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = given.pop("boxes", [])

    def read_box(start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
        boxes.append((start, stop))
        return array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]

    arguments: dict[str, Any] = {"shape": array.shape, "spacing": SPACING, "window": (-1000.0, 400.0), **given}
    return PickedScan.from_reader("S1", read_box, voxels, **arguments)


def pixels(chosen: PickedScan) -> dict[str, np.ndarray]:
    _, pictures = picked_pictures(chosen)
    result = {}
    for picture in pictures:
        data = picture.markup.split("base64,", 1)[1].split('"', 1)[0]
        result[picture.title] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
    return result


VOXELS = np.array([[3, 4, 5], [3, 4, 6], [20, 12, 8], [12, 8, 5], [11, 7, 4]])


def test_only_three_slices_are_read() -> None:
    boxes: list = []
    chosen = scan(volume(), VOXELS, boxes=boxes)
    assert chosen.planes == {"sagittal": 11, "coronal": 7, "axial": 5}
    assert sorted(boxes) == [((0, 0, 5), (24, 16, 6)), ((0, 7, 0), (24, 8, 10)), ((11, 0, 0), (12, 16, 10))]
    np.testing.assert_allclose(chosen.slices["axial"], (volume()[:, :, 5] + 1000) / 1400, atol=1e-6)


def test_shown_as_radiologists_see_it_with_aspect_by_spacing() -> None:
    shown = pixels(scan(volume(), VOXELS))
    sizes = {"Axial": (24 * 1.0, 16 * 1.5), "Coronal": (24 * 1.0, 10 * 4.0), "Sagittal": (16 * 1.5, 10 * 4.0)}
    for plane, image in shown.items():
        height, width = image.shape[:2]
        assert width / height == pytest.approx(sizes[plane][0] / sizes[plane][1], rel=0.01)
        corner = {"left": image[5, 5], "right": image[5, -6], "bottom": image[-6, 5]}
        grey = {name: int(value[0]) for name, value in corner.items()}
        assert grey["left"] > grey["right"] + 20, plane  # right (axial, coronal) and anterior (sagittal) on the left
        assert grey["left"] > grey["bottom"] + 20, plane  # anterior (axial) and superior on top


@pytest.mark.parametrize(
    ("axcodes", "order", "flips"),
    [("LPS", (0, 1, 2), (0, 1)), ("ASR", (1, 2, 0), ()), ("LAI", (0, 1, 2), (0, 2)), ("PIR", (1, 2, 0), (0, 1))],
)
def test_the_arrays_orientation_does_not_show(axcodes: str, order: tuple[int, ...], flips: tuple[int, ...]) -> None:
    array, voxels = volume().transpose(order), VOXELS[:, order].copy()
    for axis in flips:
        array = np.flip(array, axis)
        voxels[:, axis] = array.shape[axis] - 1 - voxels[:, axis]
    spacing = tuple(SPACING[axis] for axis in order)
    turned = scan(array, voxels, axcodes=axcodes, spacing=spacing)
    plain = scan(volume(), VOXELS)
    assert {plane: turned.axis(plane) for plane in turned.planes} == {
        plane: order.index(plain.axis(plane)) for plane in plain.planes
    }
    one, other = pixels(plain), pixels(turned)
    assert one.keys() == other.keys()
    for plane in one:
        assert np.abs(one[plane] - other[plane]).mean() < 1.0, plane


def test_voxels_land_where_they_are() -> None:
    """A voxel's orange dot, in pixels, is at the voxel's centre in millimetres."""
    dark = np.full(SHAPE, -1000.0)
    chosen = scan(dark, np.array([[20, 3, 2], [12, 8, 5], [4, 12, 8]]))  # slices through (12, 8, 5)
    image = pixels(chosen)["Axial"]
    height, width = image.shape[:2]
    orange = (image[..., 0] > 100) & (image[..., 1] > 50) & (image[..., 2] < image[..., 1])
    rows, columns = np.nonzero(orange)
    near = columns < width / 3  # right of the patient, i = 20, is on the left
    assert columns[near].mean() == pytest.approx((1 - 20.5 / 24) * width, abs=2)
    assert rows[near].mean() == pytest.approx((1 - 3.5 / 16) * height, abs=2)


def test_counts_in_title_and_alt() -> None:
    title, pictures = picked_pictures(scan(volume(), np.concatenate([VOXELS, VOXELS[:2]])))
    assert title == "S1: 5 of 3\u202f840 voxels (0.13 %)"
    assert [picture.title for picture in pictures] == ["Axial", "Coronal", "Sagittal"]
    assert (
        pictures[0].alt == "Axial slice 6 of subject S1 with 7 picked voxels projected on it, 2 of them in the slice."
    )
    assert pictures[0].caption == "Slice 6 of 10"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"voxels": np.array([[0, 0, 10]])}, r"outside \(24, 16, 10\)"),
        ({"voxels": np.zeros((2, 2), int)}, r"shape \(N, 3\), found \(2, 2\)"),
        ({"slices": {"axial": np.zeros((16, 24))}}, r"axial slice has shape \(16, 24\), expected \(24, 16\)"),
        ({"slices": {"axial": np.full((24, 16), 40.0)}}, r"finite values in \[0, 1\]"),
        ({"slices": {"oblique": np.zeros((24, 16))}}, "slices must be some of"),
        ({"planes": {"axial": 10}}, r"planes\['axial'\] must be an index below 10, found 10"),
        ({"planes": {}}, r"planes\['axial'\]"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing must be three positive"),
        ({"axcodes": "RAL"}, "axcodes must name three directions"),
    ],
)
def test_faults_are_named(change: dict[str, Any], fault: str) -> None:
    fine: dict[str, Any] = {
        "slices": {"axial": np.zeros((24, 16))}, "planes": {"axial": 5}, "voxels": VOXELS, "shape": SHAPE,
        "spacing": SPACING,
    }  # fmt: skip
    PickedScan("S1", **fine)
    with pytest.raises(ValueError, match=f"subject 'S1': .*{fault}"):
        PickedScan("S1", **(fine | change))


def test_reader_faults_are_named() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(N, 3\), found \(0, 3\)"):
        scan(volume(), np.zeros((0, 3), int))
    with pytest.raises(ValueError, match="window must rise"):
        scan(volume(), VOXELS, window=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"the box .* came as \(0, 16, 10\)"):
        scan(volume(), VOXELS + np.array([30, 0, 0]), shape=(60, 16, 10))


def test_a_coarser_slice_and_no_voxels_in_it_are_fine() -> None:
    chosen = PickedScan("S1", {"axial": np.zeros((12, 8))}, {"axial": 0}, VOXELS, SHAPE, SPACING)
    assert "0 of them in the slice" in picked_pictures(chosen)[1][0].alt


def test_attributions_are_drawn_in_colour_beside_the_voxels() -> None:
    """Red where the prediction is raised, blue where it is lowered; sums in the unit for who sees none."""
    dark = np.full(SHAPE, -1000.0)
    places = np.array([[20, 3, 2], [4, 12, 8], [4, 12, 7]])
    chosen = scan(dark, places, attribution=np.array([-30.0, 20.0, 10.0]), unit="mL")
    _, pictures = picked_pictures(chosen)
    assert [p.title for p in pictures[3:]] == ["Axial, attribution", "Coronal, attribution", "Sagittal, attribution"]
    assert "raise the median by 30.0 mL and lower it by −30.0 mL" in pictures[3].alt
    assert pictures[3].caption == "Slice 8 of 10; red raises, blue lowers"
    image = pixels(chosen)["Axial, attribution"]
    height, width = image.shape[:2]
    above = image[: int(0.85 * height)]  # the colour bar is below
    blue, red = above[..., 2] - above[..., 0] > 50, above[..., 0] - above[..., 2] > 50
    rows, columns = np.nonzero(red)
    assert columns.mean() == pytest.approx((1 - 4.5 / 24) * width, abs=2)
    assert rows.mean() == pytest.approx((1 - 12.5 / 16) * height, abs=2)
    _, columns = np.nonzero(blue)
    assert columns.mean() == pytest.approx((1 - 20.5 / 24) * width, abs=2)


def test_without_attributions_nothing_is_drawn_of_them() -> None:
    assert len(picked_pictures(scan(volume(), VOXELS))[1]) == 3
    assert len(picked_pictures(scan(volume(), VOXELS, attribution=np.zeros(len(VOXELS))))[1]) == 3
    with pytest.raises(ValueError, match="attribution must be 5 finite values"):
        scan(volume(), VOXELS, attribution=np.array([1.0, 2.0]))

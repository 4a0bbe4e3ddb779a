"""Alignment to a template: blobs whose place in every scan is known."""

from __future__ import annotations

import pickle
import shutil
from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Orientationd, RandAffined

from cpic_monai.transforms import AlignToTemplated, LazyCompose, LoadVolumed, VirtualScand, fit_transforms
from cpic_monai.transforms.registration import CoarseImage, register
from cpic_monai.transforms.template import coarse_image, load_template, made_from, save_template
from cpic_monai.volumes import ArrayVolume, BlockCache, CachedVolume

#: Centres (mm from the body's middle), widths (mm) and heights of the blobs: no symmetry.
CENTRES = np.array([[0, 0, 0], [16, 6, -8], [-14, 10, 8], [4, -18, 12], [-6, -6, -18]], float)
WIDTHS, HEIGHTS = np.array([18, 7, 6, 8, 6.0]), np.array([1.0, 1.5, 2.0, 1.2, 1.8])
VIEW = (24, 24, 24)


def body(points):
    """Intensity at (..., 3) mm of the body's own space; 0 far away."""
    squared = ((points[..., None, :] - CENTRES) ** 2).sum(-1)
    return (HEIGHTS * np.exp(-squared / (2 * WIDTHS**2))).sum(-1).astype(np.float32)


def moved(turn=(0, 0, 0), scale=(1, 1, 1), shear=0.0, shift=(0, 0, 0)):
    """Body to world: degrees about R, A, S, then scales and a shear, then mm."""
    linear = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(turn)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        linear = step @ linear
    out = np.eye(4)
    out[:3, :3] = linear @ np.diag(scale) @ np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1]])
    out[:3, 3] = shift
    return out


def to(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def picture(shape, affine, place):
    """A scan on a grid (voxel to world) of a body that lies at ``place`` (body to world)."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return body(to(np.linalg.inv(place) @ affine, voxels.astype(float)))


def coarse(place, middle=(0, 0, 0)):
    """Voxels of 4 mm around a point of the world."""
    shape = (28, 30, 26)
    origin = np.array(middle, float) - 4 * (np.array(shape) - 1) / 2
    image = CoarseImage(np.empty(0), origin, 4.0)
    return CoarseImage(picture(shape, image.affine, place), origin, 4.0)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("translation", moved(shift=(7, -5, 3))),
        ("rigid", moved(turn=(6, -8, 10), shift=(5, 3, -6))),
        ("affine", moved(turn=(5, 4, -8), scale=(1.1, 0.92, 1.05), shear=0.06, shift=(-4, 6, 5))),
    ],
)
def test_registration_recovers_a_known_displacement(kind, place):
    """The moving image lies elsewhere in the world, too: its grid's middle is 100 mm away."""
    elsewhere = moved(shift=(100, -40, 60)) @ place
    found = register(coarse(np.eye(4)), coarse(elsewhere, (100, -40, 60)), kind)
    error = np.linalg.norm(to(found, CENTRES) - to(elsewhere, CENTRES), axis=1)
    assert error.max() < 0.3 * 4.0, error
    if kind == "rigid":
        np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-6)


def test_registration_is_the_same_every_time_and_obeys_its_region():
    """What lies outside the region may be anything."""
    place = moved(turn=(0, 0, 8), shift=(3, 2, 0))
    fixed, moving = coarse(np.eye(4)), coarse(place)
    spoilt = fixed.values.copy()
    spoilt[:, :, :6] += 3.0 * np.random.default_rng(0).random(spoilt[:, :, :6].shape).astype(np.float32)
    spoilt = CoarseImage(spoilt, fixed.origin, fixed.spacing)
    region = ((0, 1), (0, 1), (0.3, 1))
    found = register(spoilt, moving, "rigid", region)
    np.testing.assert_array_equal(found, register(spoilt, moving, "rigid", region))
    shown = CENTRES[CENTRES[:, 2] > -16]
    assert np.linalg.norm(to(found, shown) - to(place, shown), axis=1).max() < 0.3 * 4.0
    with pytest.raises(ValueError, match="leaves no voxel"):
        register(fixed, moving, "rigid", ((0, 1), (0, 1), (0, 0)))
    with pytest.raises(ValueError, match="'elastic' is none of"):
        register(fixed, moving, "elastic")


def test_a_coarse_image_shows_the_scan_where_it_lies():
    """Oblique, flipped and anisotropic: values at the world positions of its voxels are the body's."""
    affine = moved(turn=(0, 0, 20)) @ np.diag([-1.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = 20 - affine[:3, :3] @ np.array([24, 20, 14])
    place = moved(shift=(20, 20, 20))
    values = picture((49, 41, 29), affine, place)
    image = coarse_image(CachedVolume(ArrayVolume(values, affine), BlockCache()), 6.0)
    voxels = np.argwhere(image.values > 0.3).astype(float)
    expected = body(to(np.linalg.inv(place) @ image.affine, voxels))
    # Means over boxes smooth; a shift by half a box, or a mirrored axis, would show.
    assert np.corrcoef(image.values[image.values > 0.3], expected)[0, 1] > 0.98
    np.testing.assert_allclose(image.centre_of_mass, values_centre(values, affine), atol=1.0)


def values_centre(values, affine):
    voxels = np.argwhere(values >= 0).astype(float)
    return to(affine, voxels).T @ values.ravel() / values.sum()


PLACES = {
    "still": moved(),
    "turned": moved(turn=(4, -6, 8), shift=(60, -20, 33)),
    "larger": moved(scale=(1.12, 1.05, 1.1), shear=0.04, shift=(-45, 12, 8)),
    "flipped": moved(turn=(-5, 3, -6), scale=(0.93, 0.96, 0.92), shift=(8, 70, -50)),
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Items of NIfTI scans: their voxels' sizes, the world's origin and one orientation differ."""
    folder = tmp_path_factory.mktemp("scans")
    items = []
    for n, (name, place) in enumerate(PLACES.items()):
        size = np.array([2.0, 2.5, 3.0]) * (1 + 0.1 * n)
        shape = np.ceil(100 / size).astype(int)
        affine = np.diag([*size, 1.0])
        if name == "flipped":
            affine[:3, :3] = np.array([[0, -size[1], 0], [size[0], 0, 0], [0, 0, -size[2]]])
        affine[:3, 3] = place[:3, 3] - affine[:3, :3] @ ((shape - 1) / 2)
        nib.save(nib.Nifti1Image(picture(shape, affine, place), affine), folder / f"{name}.nii")
        items.append({"image": str(folder / f"{name}.nii"), "subject": name})
    return items


def aligner(template, **settings):
    given = {"axcodes": "SPL", "spacing": 6.0, **settings}
    return AlignToTemplated("image", str(template), VIEW, **given)


@pytest.fixture(scope="module")
def template(scans, tmp_path_factory):
    """Made of the scans, once for all tests here."""
    path = tmp_path_factory.mktemp("template") / "template.nii.gz"
    fit_transforms([LoadVolumed("image"), aligner(path)], scans)
    return path


def views(scans, template, *further, **settings):
    chain = [LoadVolumed("image"), Orientationd("image", "SPL", labels=None), aligner(template, **settings), *further]
    compose = LazyCompose([*chain, VirtualScand("image")]).set_random_state(3)
    return [compose(dict(item))["image"] for item in scans]


def test_aligned_views_show_the_same_place_at_the_same_voxel(scans, template):
    seen = views(scans, template)
    dense = [view.box((0, 0, 0), VIEW)[0].numpy() for view in seen]
    for one, other in combinations(dense, 2):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.97
    at = []
    for item, view in zip(scans, seen, strict=True):
        assert view.shape == VIEW
        assert "".join(nib.aff2axcodes(view.affine)) == "SPL"
        at.append(to(np.linalg.inv(view.affine) @ PLACES[item["subject"]], CENTRES))
    size = np.linalg.norm(seen[0].affine[:3, :3], axis=0).mean()
    apart = max(np.linalg.norm(one - other, axis=1).max() for one, other in combinations(at, 2))
    assert apart < 0.5 * 6.0 / size, f"{apart} voxels of {size} mm"


def test_without_alignment_the_views_differ(scans, template):
    """Otherwise the test above would show nothing: centres of mass alone leave turn and size."""
    seen = views(scans, template, kind="translation")
    at = [to(np.linalg.inv(v.affine) @ PLACES[i["subject"]], CENTRES) for i, v in zip(scans, seen, strict=True)]
    assert max(np.linalg.norm(a - b, axis=1).max() for a, b in combinations(at, 2)) > 1.0


def test_the_views_affine_is_where_its_values_come_from(scans, template):
    """Also with a random shift behind the alignment, which moves the view and nothing else."""
    plain = views(scans, template)
    shift = RandAffined("image", prob=1.0, translate_range=[2] * 3)
    shifted = views(scans, template, shift)
    inside = np.stack(np.meshgrid(*[np.arange(6, 18)] * 3, indexing="ij"), -1)
    for item, before, view in zip(scans, plain, shifted, strict=True):
        for scan in (before, view):
            values = scan.box((6, 6, 6), (18, 18, 18))[0].numpy()
            expected = body(to(np.linalg.inv(PLACES[item["subject"]]) @ scan.affine, inside.astype(float)))
            # Linear between voxels of 2 to 4 mm: h² f'' / 8 along three axes is 0.2 at the sharpest blob.
            np.testing.assert_allclose(values, expected, atol=0.25)
            assert np.abs(values - expected).mean() < 0.02
        np.testing.assert_allclose(before.affine[:3, :3], view.affine[:3, :3], atol=1e-6)
        moved_by = np.linalg.solve(before.affine[:3, :3], (view.affine - before.affine)[:3, 3])
        assert 0.05 < np.abs(moved_by).max() <= 2.0


def test_all_keys_go_with_the_first(scans, template):
    item = {"image": scans[1]["image"], "mask": scans[1]["image"], "subject": "x"}
    align = AlignToTemplated(["image", "mask"], str(template), VIEW)
    chain = LazyCompose([LoadVolumed(["image", "mask"]), align, VirtualScand(["image", "mask"])])
    out = chain(item)
    np.testing.assert_array_equal(out["image"].affine, out["mask"].affine)


def test_a_template_that_is_there_stays(scans, template):
    """Made of these scans in this way: none of them is opened."""
    before = template.read_bytes(), template.stat().st_mtime_ns
    fit_transforms([lambda data: pytest.fail("opened"), aligner(template)], scans)
    assert (template.read_bytes(), template.stat().st_mtime_ns) == before
    assert [p.name for p in template.parent.iterdir()] == [template.name], "no temporary file is left"


def test_a_template_of_other_scans_or_settings_is_made_anew(scans, template, tmp_path, caplog):
    """A second run in the same folder, of another fold: its template may show none of the scans held out now."""
    path, alone = tmp_path / "template.nii.gz", tmp_path / "alone.nii.gz"
    shutil.copy(template, path)
    fit_transforms([LoadVolumed("image"), aligner(path)], scans[:1])
    assert "made of other scans or with other settings" in caplog.text
    fit_transforms([LoadVolumed("image"), aligner(alone)], scans[:1])
    np.testing.assert_array_equal(load_template(path).values, load_template(alone).values)
    fit_transforms([LoadVolumed("image"), aligner(path, kind="translation")], scans[:1])
    assert made_from(path) != made_from(alone)


def test_another_runs_template_and_an_atlas_stay(scans, template, tmp_path):
    before = template.read_bytes()
    fit_transforms([LoadVolumed("image"), aligner(template, made_here=False)], scans[:1])
    assert template.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="no template there"):
        fit_transforms([LoadVolumed("image"), aligner(tmp_path / "none.nii.gz", made_here=False)], scans[:1])
    atlas = tmp_path / "atlas.nii.gz"
    save_template(load_template(template), atlas)  # which says nothing of how it was made
    plain = atlas.read_bytes()
    fit_transforms([LoadVolumed("image"), aligner(atlas)], scans[:1])
    assert atlas.read_bytes() == plain


def test_a_template_has_the_mean_size_of_its_scans(template):
    """Rounds of averaging neither shrink nor blow it up: spread of intensity along each axis."""
    image = load_template(template)
    spreads = []
    for place in PLACES.values():
        linear = place.copy()
        linear[:3, 3] = 0
        spreads.append(spread(coarse(linear)))
    np.testing.assert_allclose(spread(image), np.mean(spreads, axis=0), rtol=0.06)


def spread(image):
    """Standard deviation (3,) of position, weighted by squared intensity."""
    places = np.argwhere(image.values > -1) * image.spacing
    weights = image.values.astype(float).ravel() ** 2
    mean = weights @ places / weights.sum()
    return np.sqrt(weights @ (places - mean) ** 2 / weights.sum())


def test_a_scan_without_contrast_is_refused_by_its_name(template, tmp_path):
    path = tmp_path / "empty.nii"
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.float32), np.diag([4.0, 4, 4, 1])), path)
    with pytest.raises(ValueError, match=r"empty\.nii: cannot be aligned .*no contrast"):
        views([{"image": str(path), "subject": "empty"}], template)


def test_a_missing_template_says_where_it_comes_from(scans, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii\.gz: no template there.*configs/align\.json"):
        views(scans[:1], tmp_path / "nowhere.nii.gz")


def test_a_template_of_other_voxels_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.diag([2.0, 2, 3, 1])), tmp_path / "other.nii")
    with pytest.raises(ValueError, match=r"other\.nii: a template has cubic voxels"):
        load_template(tmp_path / "other.nii")
    image = coarse(np.eye(4), (5, 6, 7))
    again = load_template(save_template(image, tmp_path / "new" / "own.nii.gz"))
    np.testing.assert_allclose(again.affine, image.affine, atol=1e-4)
    np.testing.assert_array_equal(again.values, image.values)


def test_it_needs_a_scan_that_is_opened_by_header(template):
    with pytest.raises(KeyError, match="put LoadVolumed before AlignToTemplated"):
        aligner(template)({"image": torch.zeros(1, 4, 4, 4), "subject": "p1"})


def test_fitting_passes_over_transforms_without_fit(scans):
    """The one with a ``fit`` gets what comes out of those before it; items stay as they were."""

    class Fitted:
        def fit(self, items, before):
            self.items = [before(dict(item)) for item in items]

    class Named:
        def __call__(self, data):
            return {**data, "named": data["subject"].upper()}

    fitted, given = Fitted(), [dict(item) for item in scans[:2]]
    fit_transforms([LoadVolumed("image"), Named(), fitted, Named()], given)
    assert [item["named"] for item in fitted.items] == ["STILL", "TURNED"]
    assert all("volumes_of_image" in item for item in fitted.items)
    assert given == scans[:2]
    fit_transforms([LoadVolumed("image"), Named()], given)


def test_places_go_to_loader_workers(scans, template):
    """A copy by pickle knows the scans that were aligned already, and reads them no more."""
    align = aligner(template)
    volume = LoadVolumed("image").volumes(scans[2]["image"])[0]
    place = align.place(volume)
    assert volume.bytes_read + volume.volume.bytes_read > 0
    copy = pickle.loads(pickle.dumps(align))
    fresh = LoadVolumed("image").volumes(scans[2]["image"])[0]
    np.testing.assert_array_equal(copy.place(fresh), place)
    assert fresh.bytes_read + fresh.volume.bytes_read == 0

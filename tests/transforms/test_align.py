"""Alignment to a template: blobs whose place in every scan is known."""

from __future__ import annotations

import pickle
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bodies import CENTRES, PLACES, VIEW, aligner, body, coarse, moved, picture, to
from monai.transforms import Orientationd, RandAffined

from cpic_monai.transforms import AlignToTemplated, LazyCompose, LoadVolumed, VirtualScand, fit_transforms
from cpic_monai.transforms.registration import CoarseImage, register
from cpic_monai.transforms.template import coarse_image
from cpic_monai.volumes import ArrayVolume, BlockCache, CachedVolume


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


def test_a_scan_without_contrast_is_refused_by_its_name(template, tmp_path):
    path = tmp_path / "empty.nii"
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.float32), np.diag([4.0, 4, 4, 1])), path)
    with pytest.raises(ValueError, match=r"empty\.nii: cannot be aligned .*no contrast"):
        views([{"image": str(path), "subject": "empty"}], template)


def test_a_missing_template_says_where_it_comes_from(scans, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii\.gz: no template there.*configs/align\.json"):
        views(scans[:1], tmp_path / "nowhere.nii.gz")


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
    """A copy by pickle knows the scans that were aligned already, and reads them no more; it names none of them."""
    align, load = aligner(template), LoadVolumed("image")
    volume = load.volumes(scans[2]["image"])[0]
    place = align.place(volume)
    assert volume.bytes_read + volume.volume.bytes_read > 0
    pickled = pickle.dumps((load, align))  # as in the model that MLflow gets
    assert str(Path(scans[2]["image"]).parent).encode() not in pickled
    _, copy = pickle.loads(pickled)
    fresh = LoadVolumed("image").volumes(scans[2]["image"])[0]
    np.testing.assert_array_equal(copy.place(fresh), place)
    assert fresh.bytes_read + fresh.volume.bytes_read == 0

"""From a path to patches through MONAI's own transforms: composed affines, seeding, workers, memory, configs."""

import os
import resource

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    EnsureChannelFirst,
    Flipd,
    LoadImage,
    Orientation,
    Orientationd,
    RandAffined,
    RandFlipd,
    RandRotated,
    Resized,
    Rotate90d,
    Rotated,
    ScaleIntensityRange,
    Spacing,
    Spacingd,
    SpatialPadd,
    Zoomd,
)

from cpic_monai.transforms import (
    HUWindow,
    LazyCompose,
    LoadVolumed,
    SamplePatchesd,
    VirtualScan,
    VirtualScand,
    ZScoreSampled,
)

AFFINE = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -20], [0, 0, 2.5, -40], [0, 0, 0, 1]])


class FixedVoxels:
    """The same voxels for everyone."""

    def __init__(self, voxels):
        self._voxels = torch.as_tensor(voxels)

    def voxels(self, subject):
        return self._voxels


def smooth(shape=(40, 36, 32)):
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    return (1000 * np.sin(axes[0]) * np.cos(axes[1]) + 300 * axes[2]).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    nib.save(nib.Nifti1Image(smooth(), AFFINE), tmp_path / "scan.nii")
    return str(tmp_path / "scan.nii")


def virtual(path, *transforms, **options):
    chain = LazyCompose([LoadVolumed("image"), *transforms, VirtualScand("image", **options)])
    return chain({"image": path, "subject": "ID1"})["image"]


def eager(path, *transforms):
    image = LoadImage(image_only=True, ensure_channel_first=True)(path)
    return Compose(list(transforms))({"image": image})["image"]


def compare(scan, dense, margin, tolerance):
    assert scan.shape == tuple(dense.shape[1:])
    np.testing.assert_allclose(scan.affine, dense.affine.numpy(), atol=1e-3)
    voxels = np.random.default_rng(0).integers(margin, np.array(scan.shape) - margin, (50, 3))
    patches = scan.patches(voxels, 5)
    for voxel, patch in zip(voxels, patches, strict=True):
        part = dense[(slice(None), *(slice(v - 2, v + 3) for v in voxel))]
        np.testing.assert_allclose(patch, part.numpy(), atol=tolerance)


def test_header_only(path):
    item = LoadVolumed("image")({"image": path, "subject": "ID1"})
    tensor = item["image"]
    assert tensor.shape == (1, 40, 36, 32)
    assert tensor.untyped_storage().nbytes() == 4
    np.testing.assert_array_equal(tensor.affine, AFFINE)
    assert item["volumes_of_image"][0].bytes_read == 0


@pytest.mark.parametrize(
    "transforms",
    [
        [Orientationd("image", "RAS", labels=None)],
        [Flipd("image", (0, 2))],
        [Rotate90d("image", 1, (0, 2))],
        [CenterSpatialCropd("image", (20, 30, 16))],
        [SpatialPadd("image", (64, 36, 40))],
        [Orientationd("image", "LPI", labels=None), Flipd("image", 1), CenterSpatialCropd("image", (20, 18, 30))],
    ],
)
def test_moving_voxels_is_exact(path, transforms):
    scan, dense = virtual(path, *transforms), eager(path, *transforms)
    assert scan.grid_aligned
    compare(scan, dense, 2, 0)


@pytest.mark.parametrize(
    ("transforms", "tolerance"),
    [
        ([Spacingd("image", (1.0, 1.0, 1.0))], 0.5),
        ([Resized("image", (50, 50, 50), mode="trilinear")], 0.5),
        ([Zoomd("image", 1.3, mode="trilinear", keep_size=False)], 0.5),
        ([Rotated("image", (0.2, 0.1, -0.3))], 0.5),
        # MONAI resamples twice where this resamples once: equal but for the second one's smoothing.
        ([Orientationd("image", "RAS", labels=None), Spacingd("image", (1.0, 1.0, 1.0)), Rotated("image", 0.1)], 4.0),
        (
            [
                Spacingd("image", (1.2, 1.2, 1.2)),
                Resized("image", (60, 60, 60), mode="trilinear"),
                Flipd("image", 0),
            ],
            4.0,
        ),
    ],
)
def test_resampling_is_that_of_monai(path, transforms, tolerance):
    compare(virtual(path, *transforms), eager(path, *transforms), 12, tolerance)


def test_random_augmentation_is_that_of_monai(path):
    random = [
        RandFlipd("image", prob=0.5, spatial_axis=0),
        RandAffined("image", prob=1.0, rotate_range=0.2, scale_range=0.1, translate_range=3),
    ]
    lazy = LazyCompose([LoadVolumed("image"), *random, VirtualScand("image")])
    shapes = set()
    for seed in range(4):
        lazy.set_random_state(seed)
        scan = lazy({"image": path})["image"]
        # Compose seeds its children with numbers drawn in turn, for random ones only: the same two children here.
        dense = Compose(random)
        dense.set_random_state(seed)
        image = LoadImage(image_only=True, ensure_channel_first=True)(path)
        compare(scan, dense({"image": image})["image"], 12, 2.0)
        shapes.add(scan.to_source.tobytes())
    assert len(shapes) == 4


def test_seeds_repeat(path):
    chain = LazyCompose([LoadVolumed("image"), RandRotated("image", 0.3, 0.3, 0.3, prob=1), VirtualScand("image")])

    def draw(seed):
        chain.set_random_state(seed)
        return [chain({"image": path})["image"].to_source for _ in range(2)]

    first, second, other = draw(1), draw(1), draw(2)
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first[0], first[1])
    assert not np.allclose(first, other)


def test_real_ct_resampled_is_that_of_monai():
    folder = os.environ.get("CPIC_DATA")
    if not folder:
        pytest.skip("CPIC_DATA is not set: no real scans")
    path = f"{folder}/nrrd_mha/nnunet_example_ct_sm.nii.gz"
    scan = virtual(path, Orientationd("image", "LPS", labels=None), Spacingd("image", (2.5, 2.5, 3.0)))
    image = EnsureChannelFirst()(LoadImage(image_only=True)(path))
    compare(scan, Spacing((2.5, 2.5, 3.0))(Orientation("LPS", labels=None)(image)), 4, 0.05)


def test_a_view_of_8192_cubed_takes_no_memory(path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scan = virtual(path, Resized("image", (8192, 8192, 8192)), order=3)
    assert scan.shape == (8192, 8192, 8192)
    voxels = np.random.default_rng(0).integers(0, 8192, (500, 3))
    patches = scan.patches(voxels, 9)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 200 * 1024  # KiB
    # The view's voxel v is at source (v + 1/2) n / 8192 - 1/2; the scan there is a known smooth function.
    n = np.array([40, 36, 32])
    place = np.clip((voxels + 0.5) * n / 8192 - 0.5, 0, n - 1) / (n - 1) * 3
    expected = 1000 * np.sin(place[:, 0]) * np.cos(place[:, 1]) + 300 * place[:, 2]
    inner = ((voxels > 1500) & (voxels < 6700)).all(1)
    np.testing.assert_allclose(patches[inner, 0, 4, 4, 4], expected[inner], atol=0.5)


def test_channels(path, tmp_path):
    nib.save(nib.Nifti1Image(2 * smooth(), AFFINE), tmp_path / "second.nii")
    second = str(tmp_path / "second.nii")
    scan = virtual([path, second], Flipd("image", 0))
    assert scan.channels == 2
    patches = scan.patches(np.array([[9, 9, 9]]), 3)
    torch.testing.assert_close(patches[:, 1], 2 * patches[:, 0])
    array = torch.stack([torch.from_numpy(smooth()), 2 * torch.from_numpy(smooth())])
    held = virtual(MetaTensor(array, affine=AFFINE), Flipd("image", 0))
    assert torch.equal(held.patches(np.array([[9, 9, 9]]), 3), patches)
    np.testing.assert_allclose(held.affine, scan.affine)
    nib.save(nib.Nifti1Image(smooth(), np.eye(4)), tmp_path / "moved.nii")
    with pytest.raises(ValueError, match=r"subject ID1.*one grid.*moved\.nii"):
        virtual([path, str(tmp_path / "moved.nii")])


def test_intensity_of_monai_and_our_own(path):
    voxels = np.random.default_rng(0).integers(5, 25, (20, 3))
    raw = virtual(path).patches(voxels, 3)
    window = virtual(path, intensity=HUWindow(0, 500)).patches(voxels, 3)
    monai = virtual(path, intensity=ScaleIntensityRange(0, 500, 0, 1, clip=True)).patches(voxels, 3)
    torch.testing.assert_close(window, (raw / 500).clamp(0, 1))
    torch.testing.assert_close(monai, window)
    assert type(monai) is torch.Tensor


def chain_for(voxels, *transforms):
    return LazyCompose(
        [
            LoadVolumed("image", cache_bytes=1 << 20),
            Orientationd("image", "RAS", labels=None),
            *transforms,
            VirtualScand("image", intensity=ZScoreSampled(500)),
            SamplePatchesd("image", FixedVoxels(voxels), 5, scales=(1, 2), grid_key="grid"),
        ]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_what_the_main_process_gives(path, tmp_path, workers):
    nib.save(nib.Nifti1Image(smooth()[::-1], AFFINE), tmp_path / "other.nii.gz")
    items = [{"image": p, "subject": str(n)} for n, p in enumerate([path, str(tmp_path / "other.nii.gz")] * 2)]
    voxels = np.random.default_rng(0).integers(-3, 40, (30, 3))
    chain = chain_for(voxels)
    batches = list(DataLoader(Dataset(items, chain), batch_size=2, num_workers=workers))
    assert [tuple(b["image"].shape) for b in batches] == [(2, 30, 2, 5, 5, 5)] * 2
    assert batches[0]["grid"]["shape"].tolist() == [[36, 40, 32]] * 2
    assert "volumes_of_image" not in batches[0]
    for batch in batches:
        for n in range(2):
            assert torch.equal(batch["image"][n], chain(items[n])["image"])


def dict_of_one(items):
    return items[0]


def test_virtual_scans_cross_process_borders(path):
    items = [{"image": path, "subject": "ID1"}] * 2
    chain = LazyCompose([LoadVolumed("image"), VirtualScand("image")])
    scans = [item["image"] for item in DataLoader(Dataset(items, chain), num_workers=2, collate_fn=dict_of_one)]
    assert all(isinstance(s, VirtualScan) for s in scans)
    voxels = np.array([[5, 6, 7]])
    assert torch.equal(scans[0].patches(voxels, 3), virtual(path).patches(voxels, 3))


def test_cache_dataset_keeps_headers_and_random_transforms_stay_random(path):
    chain = chain_for([[9, 9, 9]], RandRotated("image", 0.5, 0.5, 0.5, prob=1))
    data = CacheDataset([{"image": path, "subject": "ID1"}], chain, progress=False, as_contiguous=False)
    assert data._cache[0]["image"].untyped_storage().nbytes() == 4
    assert not torch.equal(data[0]["image"], data[0]["image"])


def test_headers_are_read_once(path, monkeypatch):
    import cpic_monai.transforms.load as load

    opened = []
    original = load.open_volume
    monkeypatch.setattr(load, "open_volume", lambda *a, **k: opened.append(a) or original(*a, **k))
    chain = chain_for([[9, 9, 9]])
    for _ in range(3):
        chain({"image": path, "subject": "ID1"})
    assert len(opened) == 1


def test_nested_compose_and_lists(path):
    inner = Compose([Flipd("image", 0), LazyCompose([Spacingd("image", (1, 1, 1))])])
    chain = LazyCompose([LoadVolumed("image"), inner, VirtualScand("image")])
    scans = chain([{"image": path}, {"image": path}])
    assert [s["image"].shape for s in scans] == [(60, 71, 79)] * 2 or len({s["image"].shape for s in scans}) == 1
    assert not scans[0]["image"].grid_aligned


def test_from_a_config(path):
    parser = ConfigParser(
        {
            "chain": {
                "_target_": "cpic_monai.transforms.LazyCompose",
                "transforms": [
                    {"_target_": "cpic_monai.transforms.LoadVolumed", "keys": "image", "options": {"allow_tilt": True}},
                    {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 2.0]},
                    {
                        "_target_": "cpic_monai.transforms.VirtualScand",
                        "keys": "image",
                        "padding_value": -1024,
                        "intensity": {"_target_": "cpic_monai.transforms.HUWindow", "low": -1000, "high": 400},
                    },
                ],
            }
        }
    )
    scan = parser.get_parsed_content("chain")({"image": path})["image"]
    assert isinstance(scan, VirtualScan)
    assert (scan.patches(np.array([[-50, 0, 0]]), 3) == 0).all()

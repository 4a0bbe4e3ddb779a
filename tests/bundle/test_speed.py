"""What docs/speed.md says of MONAI's loaders, caches, AMP, TF32 and NVTX, as tried."""

from __future__ import annotations

import json
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset, ThreadDataLoader
from monai.engines import SupervisedTrainer
from monai.handlers import nvtx_handlers

from cpic_monai.cross.bank import CohortIndexSets
from cpic_monai.grid import IndexGrid
from cpic_monai.transforms import LazyCompose, LoadVolumed, PatchHash, SamplePatchesd, VirtualScand
from tests.bundle.conftest import SMALL, run_config

SHAPE = (8, 16, 8)


def merged(names: list[str], **settings: Any) -> ConfigParser:
    """Configs as MONAI's bundle command merges them."""
    parser = ConfigParser()
    for name in names:
        for key, value in ConfigParser.load_config_file(f"configs/{name}.json").items():
            merge_kv(parser, key, value)
    parser.update(settings)
    return parser


@pytest.fixture
def precision():
    """Switches of the process, put back afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture
def scans(tmp_path):
    """Index sets, a pipeline that samples at them, one that does not, and two items."""
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii")
    indices = CohortIndexSets(IndexGrid(SHAPE), rank=3, channels=2)
    view = [LoadVolumed("image"), VirtualScand("image")]
    items = [{"image": str(tmp_path / "scan.nii"), "subject": str(n)} for n in range(2)]
    return indices, LazyCompose([*view, SamplePatchesd("image", indices, 3)]), LazyCompose(view), items


def choose(indices: CohortIndexSets, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    indices.select(
        lambda codes: torch.randn((1, codes.shape[1], 2), generator=generator, dtype=torch.float64),
        [torch.randint(0, 1024, (3,), generator=generator)],
        generator,
    )


def test_training_with_the_gpu_overlay_runs_on_a_cpu(bundle_folder, phantom, tmp_path, precision):
    overrides = {**SMALL, "num_workers": 0, "dataset_dir": str(phantom), "output_dir": str(tmp_path)}
    run_config("training", ["train", "gpu"], **overrides)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert np.isfinite(metrics["test"]["mlll"])
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize(("workers", "loader"), [(0, ThreadDataLoader), (2, DataLoader)])
def test_the_overlay_chooses_the_loader_by_the_workers(bundle_folder, phantom, workers, loader):
    config = merged(["train", "gpu"], **{**SMALL, "num_workers": workers, "dataset_dir": str(phantom)})
    assert type(config.get_parsed_content("train#dataloader")) is loader
    assert type(config.get_parsed_content("validate#dataloader")) is DataLoader
    assert config.get_parsed_content("network_def").amp
    assert config.get_parsed_content("matmul_precision") == "high"


def test_tf32_is_not_used_for_float32_algebra(bundle_folder):
    assert merged(["train", "gpu"], algebra="float32").get_parsed_content("matmul_precision") == "highest"


def test_behind_several_processes_it_adds_and_replaces_nothing(bundle_folder):
    before, after = merged(["train", "multi_gpu_train"]), merged(["train", "multi_gpu_train", "gpu"])
    assert after["initialize"][:-2] == before["initialize"]
    assert after["train#handlers"][:-5] == before["train#handlers"]
    assert after["train#dataloader#sampler"] == "@train_sampler"


def test_nvtx_ranges_nest(bundle_folder, monkeypatch):
    """Ranges close in the order in which they were opened, for each step of a MONAI trainer."""
    log: list[str] = []

    class Recorder:
        @staticmethod
        def rangePushA(name: str) -> int:
            log.append(f"+{name}")
            return 0

        @staticmethod
        def rangePop() -> None:
            log.append("-")

    monkeypatch.setattr(nvtx_handlers, "_nvtx", Recorder)
    parser = merged(["train", "gpu"], nvtx=True)
    count = len(parser.get("train#handlers"))
    handlers = [parser.get_parsed_content(f"train#handlers#{n}") for n in range(count - 5, count)]
    network = torch.nn.Linear(2, 1)
    batch = {"image": torch.zeros(1, 2), "label": torch.zeros(1, 1)}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    trainer = SupervisedTrainer(
        "cpu", 1, [batch, batch], network, optimizer, torch.nn.MSELoss(), train_handlers=handlers, decollate=False
    )
    trainer.run()
    step = ["+BATCH", "-", "+ITERATION", "+FORWARD", "-", "+BACKWARD", "-", "-"]
    assert log == ["+EPOCH", *step, *step, "-"]


def test_without_cuda_there_are_no_ranges(bundle_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = merged(["train", "gpu"])
    last = len(parser.get("train#handlers")) - 1
    assert parser.get_parsed_content(f"train#handlers#{last}") is None


def test_a_thread_reads_at_the_index_sets_of_its_epoch(scans):
    indices, sampling, view, items = scans
    loader = ThreadDataLoader(Dataset(items * 2, sampling), batch_size=2, num_workers=0)
    seen = []

    def step(engine: Engine, batch: dict) -> None:
        seen.append(torch.equal(batch["image"][0], view(items[0])["image"].patches(indices.voxels(), 3)))

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda e: choose(indices, e.state.epoch))
    engine.run(loader, max_epochs=3)
    assert seen == [True] * 6


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_threads_swallow_the_error_of_a_scan():
    """Why evaluation has no ThreadDataLoader: scans after a broken one would be missing, and no error raised."""

    def read(item: int) -> torch.Tensor:
        if item == 2:
            raise ValueError("broken scan")
        return torch.tensor(item)

    broken = Dataset(list(range(5)), read)
    assert [b.item() for b in ThreadDataLoader(broken, batch_size=1)] == [0, 1]
    with pytest.raises(RuntimeError):
        list(DataLoader(broken, batch_size=1))


def test_cached_headers_hold_no_voxels_unless_made_contiguous(scans):
    _, _, view, items = scans
    opened = LazyCompose(view.transforms[:1])
    given = {"num_workers": 1, "progress": False}
    light = CacheDataset(items, opened, as_contiguous=False, **given)[0]["image"]
    heavy = CacheDataset(items, opened, **given)[0]["image"]
    assert light.untyped_storage().nbytes() == 4
    assert heavy.untyped_storage().nbytes() == 4 * np.prod(SHAPE)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_cached_patches_are_those_of_the_index_sets_they_were_sampled_at(scans, tmp_path, kind):
    indices, sampling, _, items = scans
    if kind == "memory":
        given = {"as_contiguous": False, "copy_cache": False, "num_workers": 1, "progress": False}
        cached: Dataset = CacheDataset(items, sampling, **given)
    else:
        cached = PersistentDataset(items, sampling, cache_dir=tmp_path / "cache")
    plain = Dataset(items, sampling)
    for _ in range(2):
        assert torch.equal(cached[0]["image"], plain[0]["image"])
    choose(indices, 7)
    now = plain[0]["image"]
    assert cached[0]["image"].shape != now.shape or not torch.equal(cached[0]["image"], now)


def test_patches_kept_under_their_voxels_are_never_those_of_others(scans, tmp_path):
    indices, sampling, _, items = scans
    cached = PersistentDataset(items, sampling, cache_dir=tmp_path / "cache", hash_func=PatchHash(indices))
    plain = Dataset(items, sampling)
    for seed, files in ((1, 2), (2, 4), (1, 4)):
        choose(indices, seed)
        for k in (0, 1, 0):
            assert torch.equal(cached[k]["image"], plain[k]["image"])
        assert len(list((tmp_path / "cache").iterdir())) == files


def test_names_of_patches_go_by_value():
    item = {"subject": "a", "tabular": torch.arange(3.0), "strata": {"sex": "F"}, "image": ["t1.nii", "t2.nii"]}
    name = PatchHash(None, {"order": 1})(item)
    # A constant: the same in every process, where pickles of tensors differ.
    assert name == b"c39c845bd2306be8dfe56ef93833e8516f09cf2403d8ab54dffda6d0162cd3da"
    same = {**dict(reversed(item.items())), "tabular": torch.arange(3.0)}
    assert PatchHash(None, {"order": 1})(same) == name
    others = [{"tabular": torch.arange(3)}, {"tabular": torch.ones(3)}, {"strata": {}}, {"image": ["t1.nii"]}]
    names = [PatchHash(None, {"order": 1})({**item, **other}) for other in others]
    assert len({name, PatchHash(None, {"order": 0})(item), *names}) == 6


@pytest.mark.parametrize(
    "other",
    [
        {"loading#1#axcodes": "RAS"},
        {"loading#2": {"_target_": "ResizeWithPadOrCropd", "keys": "image", "spatial_size": "@spatial_shape"}},
        {"loading#2#mode": "nearest"},
        {"loading#2#align_corners": True},
        {"intensity#0#low": -900.0},
        {"order": 0},
    ],
)
def test_patches_of_other_preprocessing_are_not_taken(bundle_folder, other):
    """At the same voxels of the same item; made again, and with a bound of memory alone, the name is the same."""

    def name(**given: Any) -> bytes:
        settings = merged(["train", "cache"], **given).get_parsed_content("patch_settings")
        return PatchHash(None, settings)({"image": "scan.nii"})

    assert name() == name(cache_bytes=1000) == name()
    assert name(**other) != name()


def test_a_cache_shared_by_training_and_evaluation_changes_no_prediction(
    bundle_folder, phantom, trained, tmp_path, monkeypatch
):
    common = {**SMALL, "dataset_dir": str(phantom), "output_dir": str(tmp_path)}
    run_config("training", ["train", "cache"], **common, log_model=False)
    kept = sorted((tmp_path / "patches").iterdir())
    assert len(kept) == 16, "a file a scan: one epoch, whose voxels are the checkpoint's"
    plain = (trained / "eval" / "predictions.csv").read_text()
    assert (tmp_path / "eval" / "predictions.csv").read_text() == plain

    def refuse(*_: Any) -> None:
        raise AssertionError("patches are read although they are kept")

    monkeypatch.setattr(SamplePatchesd, "__call__", refuse)
    keys = ("spatial_shape", "rank", "channels", "folds", "batch_size", "head", "tabular_columns")
    again = {key: common[key] for key in (*keys, "dataset_dir", "output_dir")}
    run_config("evaluating", ["evaluate", "cache"], **again, eval_dir=str(tmp_path / "again"))
    assert (tmp_path / "again" / "predictions.csv").read_text() == plain
    assert sorted((tmp_path / "patches").iterdir()) == kept


def test_other_settings_are_other_patches(bundle_folder, phantom):
    def name(**settings: Any) -> bytes:
        config = merged(["train", "cache"], **{**SMALL, "dataset_dir": str(phantom), **settings})
        return config.get_parsed_content("patch_hash")({"subject": "a"})

    window = [{"_target_": "cpic_monai.transforms.HUWindow", "low": -900.0, "high": 400.0}]
    assert name() == name(batch_size=3)
    others = [name(order=0), name(padding_value=0.0), name(intensity=window), name(seed=1), name(antialias=True)]
    assert len({name(), *others}) == 6


def test_index_sets_of_each_scan_are_refused(bundle_folder, phantom):
    config = merged(["train", "paper", "cache"], **{**SMALL, "dataset_dir": str(phantom), "index_sets": "scan"})
    with pytest.raises(RuntimeError) as raised:
        config.get_parsed_content("patch_hash")
    assert "leave configs/cache.json out" in str(raised.value.__cause__)

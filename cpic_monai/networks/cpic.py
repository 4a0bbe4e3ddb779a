"""C-PIC: encode a few thousand voxels, interpolate the whole encoding as a tensor train, project, predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cpic_monai.cross import Ridge
from cpic_monai.cross.bank import ScanIndexSets
from cpic_monai.cross.kinds import IndexSets, make_index_sets
from cpic_monai.grid import IndexGrid
from cpic_monai.networks.basis import CanonicalBasis
from cpic_monai.networks.encoder import PatchEncoder, VoxelValues
from cpic_monai.networks.heads import QuantileHead
from cpic_monai.networks.patch_source import DenseSource, LazyScan, LazySource, PatchSource
from cpic_monai.networks.scan_network import ScanNetwork
from cpic_monai.networks.settings_record import EncoderRecord, GridRecord
from cpic_monai.networks.tensor_train_regression import TensorTrainRegression
from cpic_monai.tensor_train import TensorTrain

CPU_PATCHES = 1024
PROJECTIONS = ("basis", "trl")
ALGEBRA = {"float64": torch.float64, "float32": torch.float32}


class CPICNet(ScanNetwork):
    """The network of the paper's Fig. 2.

    Parameters
    ----------
    spatial_shape
        Voxels of every scan after the (lazy) preprocessing.
    in_channels
        Image channels, e.g. four MR sequences, times the number of ``scales``.
    channels, features, pooling, channel_norm
        Of the encoder, see :class:`cpic_monai.networks.PatchEncoder`.
    rank
        TT rank, and number of features a scan.
    unfolding
        See :class:`cpic_monai.grid.IndexGrid`.
    index_sets
        ``cohort``: shared by all scans and part of the model. ``tangent``: the same, with an interpolation that
        all scans share (:mod:`cpic_monai.cross.tangent`). ``scan``: each scan its own. ``every_voxel``: no
        cross-approximation but TT-SVD of the dense encoding (small scans). ``picked_values``, ``random_voxels``: the
        controls of :mod:`cpic_monai.cross.random_voxels`.
    draws
        Draws of index sets averaged over (``cohort``).
    encoder
        False for the "TT + MLP" baseline.
    scales
        Context scales a patch is read at.
    projection
        From trains to features. ``basis``: the canonical basis (paper Sec. 3.3). ``trl``: learned weights in
        tensor-train form (:class:`cpic_monai.networks.TensorTrainRegression`), for the joint recipe.
    trl_rank, trl_dropout
        Bond rank of those weights (``rank`` by default), and probability of tensor dropout on their bonds.
    tabular_features, tabular_hidden, joint_hidden, quantiles, noise, batch_norm
        Of the head, see :class:`cpic_monai.networks.QuantileHead`.
    index_batch_bytes
        Bound on the activations that the backward pass of the encoder holds at a time (paper Sec. 3.4, "Index
        batching"); more evaluations are recomputed in the backward pass. ``None``: no bound.
    moving_basis
        True: in training the basis takes up every batch (the paper's joint training). False: it stays as fitted.
    ridge
        Keyword arguments of :class:`cpic_monai.cross.Ridge`.
    foreground
        Intensity, after preprocessing, that seed voxels of the index sets exceed: the noise of air is no place to look.
    seed
        Of the first index sets and of seeds for scans never seen.
    oversampling
        See :class:`cpic_monai.cross.bank.CohortIndexSets`.
    algebra
        ``float64`` or ``float32``: precision of the interpolation and the inner products. On a GPU without fast float64
        ``float32`` is quicker; the ridge is then widened to float32's rounding.
    amp
        True: the encoder runs under autocast (bfloat16 on a CPU, float16 on a GPU).
    grid_step
        Voxels from one cell of the index grid to the next, see :class:`cpic_monai.grid.IndexGrid`.
    """

    #: Of the head, for networks whose outputs are no quantiles.
    head_type = QuantileHead

    def __init__(
        self,
        spatial_shape: Sequence[int],
        in_channels: int = 1,
        channels: int = 16,
        features: Sequence[int] = (5, 15, 25),
        rank: int = 10,
        unfolding: str = "interleaved",
        index_sets: str = "cohort",
        draws: int = 1,
        encoder: bool = True,
        scales: Sequence[int] = (1,),
        projection: str = "basis",
        trl_rank: int | None = None,
        trl_dropout: float = 0.0,
        tabular_features: int = 1,
        tabular_hidden: Sequence[int] = (500, 100),
        joint_hidden: Sequence[int] = (100, 20),
        quantiles: int = 3,
        noise: float = 0.2,
        batch_norm: bool = False,
        index_batch_bytes: int | None = None,
        moving_basis: bool = False,
        ridge: dict[str, Any] | None = None,
        foreground: float = 0.0,
        seed: int = 0,
        oversampling: float = 1.0,
        algebra: str = "float64",
        amp: bool = False,
        grid_step: int = 1,
        pooling: int = 1,
        channel_norm: bool = False,
    ) -> None:
        super().__init__()
        self.grid = IndexGrid(tuple(spatial_shape), unfolding, grid_step)
        self.encoder: PatchEncoder | VoxelValues = VoxelValues(in_channels)
        if encoder:
            self.encoder = PatchEncoder(in_channels, channels, features, pooling=pooling, channel_norm=channel_norm)
        self.grid_record, self.encoder_record = GridRecord(self.grid), EncoderRecord(self.encoder.pooling, scales)
        self.rank, self.scales, self.moving_basis = rank, tuple(scales), moving_basis
        self.index_batch_bytes, self.foreground = index_batch_bytes, foreground
        if algebra not in ALGEBRA:
            raise ValueError(f"algebra {algebra!r} is none of {', '.join(ALGEBRA)}")
        self.algebra, self.amp = ALGEBRA[algebra], amp
        given = Ridge(**(ridge or ({} if algebra == "float64" else {"relative": 1e-5, "floor": 1e-7})))
        depth = self.encoder.channels
        self.indices: IndexSets = make_index_sets(index_sets, self.grid, rank, depth, draws, seed, given, oversampling)
        if projection not in PROJECTIONS:
            raise ValueError(f"projection {projection!r} is none of {', '.join(PROJECTIONS)}")
        self.basis = CanonicalBasis(rank)
        if projection == "trl":
            modes = getattr(self.indices, "mode_sizes", self.grid.mode_sizes)
            learned = TensorTrainRegression(modes, depth, trl_rank or rank, rank, trl_dropout)
            self.basis = learned  # it has the basis's methods
        self.head = self.head_type(rank, tabular_features, tabular_hidden, joint_hidden, quantiles, noise, batch_norm)

    @property
    def patch_size(self) -> int:
        """Edge of the cube that the encoder looks at, in voxels."""
        return self.encoder.patch_size

    @property
    def shared_voxels(self) -> bool:
        """Whether all scans are looked at in the same voxels, so that loader workers can fetch their patches."""
        return not isinstance(self.indices, ScanIndexSets)

    def forward(
        self,
        image: Tensor | Sequence[LazyScan],
        tabular: Tensor | None = None,
        scan_index: Tensor | None = None,
        subjects: Sequence[str] | None = None,
    ) -> Tensor:
        """Quantiles float32 ``(R, Q)``, one row a visit.

        Parameters
        ----------
        image
            A dense batch ``(S, C, D, H, W)``, sampled patches ``(S, N, C, p, p, p)`` at :meth:`voxels`, or a list
            of lazy scans.
        tabular
            ``(R, F)``; zeros (the mean) if not given.
        scan_index
            int64 ``(R,)``: each row's scan; one row a scan if not given.
        subjects
            Names of the scans; in ``scan`` mode their index sets are kept under these names in training.
        """
        return self.respond(self.decompose(image, subjects), tabular, scan_index)

    def decompose(self, image: Tensor | Sequence[LazyScan], subjects: Sequence[str] | None = None) -> list[TensorTrain]:
        """Tensor trains of the scans' encodings, one a draw of index sets; accepts what :meth:`forward` does."""
        if isinstance(self.indices, ScanIndexSets):
            return self._sweep(self.source(image), self.indices, subjects)
        return self.interpolate(self.values(image), subjects)

    def values(self, image: Tensor | Sequence[LazyScan]) -> Tensor:
        """Encodings ``(S, N, channels)`` at :meth:`voxels`, as the algebra wants them; accepts what forward does."""
        if isinstance(image, Tensor) and image.ndim == 6:
            return self.encode(image).to(self.algebra)
        return self.encode(self.source(image).patches(self.voxels())).to(self.algebra)

    def interpolate(self, values: Tensor, subjects: Sequence[str] | None = None) -> list[TensorTrain]:
        """Tensor trains, one a draw of index sets, of encodings ``(S, N, channels)`` at :meth:`voxels`."""
        assert not isinstance(self.indices, ScanIndexSets)
        if values.device.type == "cpu":
            _check_finite(values, subjects)
            return self.indices.decompose(values)
        trains = self.indices.decompose(values)
        _check_finite(values, subjects)  # makes the host wait, so only after everything is in the GPU's queue
        return trains

    def encode(self, patches: Tensor) -> Tensor:
        """Encodings ``(S, N, channels)`` of patches ``(S, N, C, p, p, p)``, minus that of empty background.

        Subtracting the background's feature makes air zero in every channel, so it costs no rank (paper Sec. 3.1 has
        no counterpart: there the rank also pays for the constant).
        """
        self._check_patches(patches)
        device = self.device
        flat = patches.to(device, torch.float32).flatten(0, 1)
        blank = flat.new_zeros((1, *flat.shape[1:]))
        with torch.autocast(device.type, enabled=self.amp):
            values = self._encode_batched(flat).float() - self.encoder(blank).float()
        return values.reshape(*patches.shape[:2], -1)

    def voxels(self, subject: str | None = None) -> Tensor:
        """Where this model looks: voxel indices int64 ``(N, 3)`` of the preprocessed scan.

        In ``scan`` mode only the seeds are known before a scan is read; see :meth:`looked_at`.
        """
        if isinstance(self.indices, ScanIndexSets):
            raise TypeError(
                "index sets are chosen scan by scan during the sweep (index_sets='scan'), so no patches can be sampled "
                "ahead: leave SamplePatchesd out and give the network lazy scans, or use index_sets='cohort'"
            )
        return self.indices.voxels(subject)

    def looked_at(self, image: Tensor | Sequence[LazyScan], subjects: Sequence[str] | None = None) -> list[Tensor]:
        """Voxels that predicting these scans looks at, one int64 ``(N, 3)`` a scan."""
        source = self.source(image)
        if not isinstance(self.indices, ScanIndexSets):
            return [self.indices.voxels()] * source.batch
        seen: list[Tensor] = []
        with torch.no_grad():
            self._sweep(source, self.indices, subjects, seen)
        return list(torch.cat(seen, dim=1))

    def source(self, image: Tensor | Sequence[LazyScan]) -> PatchSource:
        """The patches of a dense image or of lazy scans; a ValueError if one has another shape, or no scales."""
        if not isinstance(image, Tensor):
            for scan in image:
                self._check_shape(tuple(scan.shape)[-3:])
            return LazySource(image, self.patch_size, self.scales)
        source = DenseSource(image, self.patch_size, self.scales)
        self._check_shape(tuple(image.shape[2:]))
        return source

    def seeds(self, source: PatchSource, generator: torch.Generator, count: int | None = None) -> Tensor:
        """Codes int64 ``(S, count)`` of random foreground voxels of each scan, ``rank`` of them by default."""
        limit = torch.tensor(self.grid.shape) - 1
        voxels = source.foreground(count or self.rank, generator, self.foreground).cpu()
        return self.grid.encode(voxels.clamp(min=torch.zeros_like(limit), max=limit))

    def _sweep(
        self,
        source: PatchSource,
        sets: ScanIndexSets,
        subjects: Sequence[str] | None,
        seen: list[Tensor] | None = None,
    ) -> list[TensorTrain]:
        def evaluate(codes: Tensor) -> Tensor:
            voxels = self.grid.decode(codes)
            if seen is not None:
                seen.append(voxels)
            return self.encode(source.patches(voxels))

        return sets.sweep(evaluate, self.scan_seeds(source, sets, subjects), dtype=self.algebra)[0]

    def scan_seeds(self, source: PatchSource, sets: ScanIndexSets, subjects: Sequence[str] | None) -> Tensor:
        """Seed codes ``(S, rank)`` of the scans, in training kept under their names from the first visit on.

        In evaluation they follow from the scan alone: another clinic's scan may have the name of one that was seen.
        """
        names = list(subjects or ()) if self.training else []
        if (kept := sets.kept(names)) is not None:
            return kept
        # Scan by scan from one seed: what a scan gets does not depend on which others are in its batch.
        start = sets.seed + sets.draw
        drawn = torch.cat([self.seeds(source[i], torch.Generator().manual_seed(start)) for i in range(source.batch)])
        return torch.stack([sets.keep(n, s) for n, s in zip(names, drawn, strict=True)]) if names else drawn

    def _encode_batched(self, flat: Tensor) -> Tensor:
        """The encoder over many patches; in pieces, recomputed in the backward pass, where a bound is set."""
        size = len(flat)
        if self.index_batch_bytes is not None and torch.is_grad_enabled():
            size = max(1, self.index_batch_bytes // self.encoder.bytes_per_patch())
        if size < len(flat):
            return torch.cat([checkpoint(self.encoder, part, use_reentrant=False) for part in flat.split(size)])
        if flat.device.type != "cpu":
            return self.encoder(flat)
        # On a CPU the activations of this many cubes stay in its cache: twice as fast as all at once.
        return torch.cat([self.encoder(part) for part in flat.split(CPU_PATCHES)])

    def _check_patches(self, patches: Tensor) -> None:
        wanted = (self.encoder.in_channels, *(self.patch_size,) * 3)
        if tuple(patches.shape[2:]) != wanted:
            raise ValueError(
                f"patches have shape {tuple(patches.shape)}; this encoder wants (S, N, {', '.join(map(str, wanted))}): "
                "check `in_channels`, `scales` and the sampler's `patch_size`"
            )

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if shape != self.grid.shape:
            raise ValueError(
                f"a scan has {shape} voxels after preprocessing, the model's grid {self.grid.shape}: "
                "make `Resized` (or crop and pad) and the network agree on `spatial_shape`"
            )


def _check_finite(values: Tensor, subjects: Sequence[str] | None) -> None:
    """Refuse encodings ``(S, N, C)`` that hold NaN or infinity, naming the scans."""
    wrong = (~torch.isfinite(values.detach())).flatten(1).any(1)
    if bool(wrong.any()):
        scans = [subjects[i] if subjects else f"number {i} of the batch" for i in wrong.nonzero()[:, 0].tolist()]
        raise ValueError(
            f"the encoding of scan {', '.join(scans[:5])} holds NaN or infinite values: the file holds such voxels, or "
            "the encoder diverged (then lower `learning_rate`)"
        )

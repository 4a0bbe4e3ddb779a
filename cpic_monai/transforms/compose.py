"""A Compose that keeps lazy transforms pending to the end."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from monai.transforms import Compose
from monai.transforms.traits import LazyTrait, RandomizableTrait

from cpic_monai.transforms.load import is_placeholder


class LazyCompose(Compose):
    """Call transforms one after the other, lazily where they can be, and never apply what is pending.

    MONAI's ``Compose(lazy=True)`` applies pending operations before any transform that is not lazy, and at its end;
    on a scan of which only the header is there, both would make the whole volume. Here VirtualScand reads what is
    pending instead. Seeding (``set_random_state``) is Compose's own.

    Parameters
    ----------
    transforms
        As for Compose; nested Compose and LazyCompose objects are run the same way.
    map_items, unpack_items, log_stats
        As for Compose.

    Raises
    ------
    TypeError
        On calling, where a transform would need the voxels of a scan of which only the header is there, or where a
        choosing composition (OneOf, SomeOf, RandomOrder) is nested: those apply what is pending.
    """

    def __init__(
        self,
        transforms: Any = None,
        map_items: bool | int = True,
        unpack_items: bool = False,
        log_stats: bool | str = False,
    ) -> None:
        super().__init__(transforms, map_items, unpack_items, log_stats, lazy=True)

    def __call__(
        self, input_: Any, start: int = 0, end: int | None = None, threading: bool = False, lazy: bool | None = None
    ) -> Any:
        """Run transforms ``start`` to ``end``; ``lazy`` is ignored, transforms are lazy where they can be."""
        if isinstance(input_, list | tuple) and int(self.map_items) > 0:
            return [self(item, start, end, threading) for item in input_]
        return self._run(self.transforms[start:end], input_, threading)

    def _run(self, transforms: tuple[Any, ...], data: Any, threading: bool) -> Any:
        transform: Any
        for transform in transforms:
            if isinstance(transform, LazyCompose) or type(transform) is Compose:
                data = self._run(transform.transforms, data, threading)
                continue
            _refuse_voxel_readers(transform, data)
            if threading and isinstance(transform, RandomizableTrait):
                transform = deepcopy(transform)
            lazy = {"lazy": True} if isinstance(transform, LazyTrait) else {}
            data = transform(data, **lazy)
        return data


def _refuse_voxel_readers(transform: Any, data: Any) -> None:
    """Raise TypeError where a transform would read voxels of a header-only scan."""
    name = type(transform).__name__
    if isinstance(transform, Compose):
        raise TypeError(
            f"{name} inside LazyCompose applies pending operations and so needs the whole scan; list its transforms "
            "directly, each with its own probability."
        )
    if not isinstance(data, Mapping):
        return
    held = [key for key in getattr(transform, "keys", ()) if is_placeholder(data.get(key))]
    if not held:
        return
    if isinstance(transform, LazyTrait):
        needs = transform.requires_current_data
    else:
        needs = type(transform).__module__.startswith("monai.transforms.intensity")
    if needs:
        raise TypeError(
            f"{name} reads the voxels of {held}, of which only the header is loaded; give pointwise intensity "
            "transforms to VirtualScand(intensity=...), and crop by a fixed size or not at all."
        )

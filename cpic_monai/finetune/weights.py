"""What of a checkpoint fits a network made for another cohort, part by part, and why the rest does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monai.networks.utils import copy_model_state
from torch import Tensor

from cpic_monai.networks import CPICNet

__all__ = ["MismatchError", "Part", "differences", "take_encoder", "take_voxels_and_basis"]


class MismatchError(ValueError):
    """The checkpoint does not fit the network in a part that was asked to be kept."""


@dataclass(frozen=True)
class Part:
    """What became of one part of the checkpoint.

    Attributes
    ----------
    name
        A layer (``encoder.layers.0``) or ``index sets``, ``basis``, ``head``.
    action
        ``taken``, ``re-initialised``, ``left out``, ``re-selected``, ``re-fitted`` or ``set anew``.
    why
        For all but ``taken``: what differs, in the config's words.
    """

    name: str
    action: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.why}: {self.action}" if self.why else f"{self.name}: {self.action}"


def take_encoder(network: CPICNet, state: Mapping[str, Tensor], source: str = "checkpoint") -> list[Part]:
    """Copy those layers of the encoder that fit, weight and bias together; returns what became of each.

    Parameters
    ----------
    network
        Changed in place.
    state
        Of a trained network.
    source
        Named in errors.

    Raises
    ------
    MismatchError
        If no layer fits: there is nothing to start from.
    """
    own = {key: value for key, value in network.state_dict().items() if key.startswith("encoder.")}
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in own))
    parts = []
    for layer in layers:
        place = "first" if layer == layers[0] else "last" if layer == layers[-1] else "between"
        why = _layer_difference(layer, own, state, place)
        parts.append(Part(layer, "re-initialised" if why else "taken", why))
    taken = {part.name for part in parts if part.action == "taken"}
    if not taken:
        found = "; ".join(f"{part.name}: {part.why}" for part in parts) or "this network has none (`encoder: false`)"
        raise MismatchError(f"{source}: nothing of its encoder fits ({found}); train from scratch instead")
    more = dict.fromkeys(key.rpartition(".")[0] for key in state if key.startswith("encoder."))
    for layer in more:
        if layer not in layers:
            parts.append(Part(layer, "left out", "not in this network (`features`, `channel_norm`)"))
    copy_model_state(network, {key: state[key] for key in own if key.rpartition(".")[0] in taken})
    for name, (there, here) in network.encoder_record.differences(state.get("encoder_record.facts")).items():
        parts.append(Part(name, "set anew", f"checkpoint {there}, network {here} (`{name}`)"))
    return parts


def take_voxels_and_basis(network: CPICNet, state: Mapping[str, Any], source: str = "checkpoint") -> list[Part]:
    """Copy index sets and basis, for a new head on the features of the checkpoint.

    Checkpoints of before :class:`cpic_monai.networks.settings_record.GridRecord` know only the number of bonds and the
    sizes of the modes; grids that agree in them (60 x 64 x 64 and 64 x 64 x 64, interleaved) cannot be told apart.

    Raises
    ------
    MismatchError
        Naming what differs.
    """
    kept = {key: value for key, value in state.items() if key.startswith(("indices.", "basis."))}
    own = network.state_dict()
    records = {"grid_record.facts": network.grid_record, "encoder_record.facts": network.encoder_record}
    wrong = differences(network, state)
    there, here = ["basis" if "basis.vectors" in weights else "trl" for weights in (state, own)]
    if there != here:
        wrong["projection"] = (there, here)
    for key, record in records.items():
        wrong |= record.differences(state.get(key))
    unlike = {key for key in kept if key.startswith("indices.") and "_extra_state" not in key} - own.keys()
    if unlike:
        kind = type(network.indices).__name__
        wrong["index_sets"] = (f"has {', '.join(sorted(unlike))}", f"{kind} has none")
    sets = {key: value for key, value in own.items() if key.startswith("indices.") and isinstance(value, Tensor)}
    for key, value in sets.items():  # the first axis is the draws
        shape = kept[key].shape[1:] if key in kept else ()
        if shape != value.shape[1:]:
            wrong.setdefault("spatial_shape, unfolding or index_sets", (f"{key} {[*shape]}", f"{[*value.shape[1:]]}"))
    modes = [*getattr(network.indices, "mode_sizes", network.grid.mode_sizes)]
    trains = [key for key in kept if key.startswith("basis.core_0_")]  # of the first draw, (scans, rank, mode, rank)
    cores = [kept[f"basis.core_0_{k}"].shape[2] for k in range(len(trains))]
    if cores and cores != modes:
        wrong.setdefault("spatial_shape or unfolding", (f"modes {cores}", f"modes {modes}"))
    if wrong:
        named = "; ".join(f"{name}: {source} {a}, network {b}" for name, (a, b) in wrong.items())
        raise MismatchError(
            "`refit: head` keeps the voxels and the basis of the checkpoint, which do not fit. "
            f"{named}. Set these keys to the checkpoint's, or use `refit: basis`"
        )
    network.load_state_dict({**{key: value for key, value in own.items() if not key.startswith("basis.")}, **kept})
    return [Part("index sets", "taken"), Part("basis", "taken")]


def differences(network: CPICNet, state: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Config key to (checkpoint's, network's) value, where rank or channels differ, as far as the checkpoint tells."""
    layers = [key for key in state if key.startswith("encoder.") and key.endswith(".weight")]
    found = {
        "rank": (state["basis.vectors"].shape[1] if "basis.vectors" in state else None, network.rank),
        "channels": (state[layers[-1]].shape[0] if layers else None, network.encoder.channels),
    }
    return {key: pair for key, pair in found.items() if pair[0] is not None and pair[0] != pair[1]}


def _layer_difference(layer: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor], place: str) -> str:
    """Empty where weight and bias of a layer fit; else what differs, by the config's key where it has one."""
    keys = [key for key in own if key.rpartition(".")[0] == layer]
    missing = [key for key in keys if key not in state]
    if missing:
        return f"not in the checkpoint ({', '.join(missing)})"
    wrong = [key for key in keys if state[key].shape != own[key].shape]
    if not wrong:
        return ""
    there, here = state[wrong[0]].shape, own[wrong[0]].shape
    if place == "first" and there[0] == here[0]:
        return f"checkpoint {_channels(there[1])}, network {here[1]} (`image_channels` times the number of `scales`)"
    if place == "last" and there[1:] == here[1:]:
        return f"checkpoint {_channels(there[0])} of the encoding, network {here[0]} (`channels`)"
    return f"checkpoint {[*there]}, network {[*here]}"


def _channels(count: int) -> str:
    return f"{count} channel" if count == 1 else f"{count} channels"

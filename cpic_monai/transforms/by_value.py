"""Digests of settings by value: the same in every process, where pickles and addresses of objects differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def feed(digest: Any, value: Any) -> None:
    """Add a value, with its kind and length, so that no two values are one text.

    Parameters
    ----------
    digest
        Of hashlib.
    value
        Numbers, text, arrays, transforms, and lists and dictionaries of such. A transform counts by its type and its
        public attributes. What only says its address, as a function does, is another value in every process.
    """
    if isinstance(value, Tensor | np.ndarray):
        array = torch.as_tensor(value).detach().cpu().contiguous().numpy()
        digest.update(f"array {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}\n".encode())
        for key in sorted(value, key=str):
            feed(digest, str(key))
            feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}\n".encode())
        for part in value:
            feed(digest, part)
    elif type(value).__repr__ is object.__repr__:
        kind = type(value)
        digest.update(f"object {kind.__module__}.{kind.__qualname__}\n".encode())
        feed(digest, {name: part for name, part in vars(value).items() if not name.startswith("_")})
    else:
        text = repr(value)
        digest.update(f"{type(value).__name__} {len(text)} {text}\n".encode())

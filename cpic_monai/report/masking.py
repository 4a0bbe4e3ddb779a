"""Settings of a store's access, which may be credentials, are recorded nowhere: their values are masked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["MASK", "command_without_secrets", "without_secrets"]

MASK = "***"
#: Of `volume_options`: tensorstore's key-value store; its headers and the like may hold a token.
KEY = "storage"
# Also in an id of MONAI's, such as volume_options#storage#headers.
_ID = re.compile(rf"(^|#|::){KEY}($|#|::)")
# In a dictionary as text, or in an expression; where such a value ends only its own syntax knows.
_TEXT = re.compile(rf"(\b{KEY}\b['\"]?\s*[:=]\s*).*", re.DOTALL)


def without_secrets(value: Any) -> Any:
    """
    A copy of settings in which every value under ``storage`` is ``***``.

    Keys, lengths of lists, and what is None stay, so that a reader sees what was set. Text that holds such a setting
    (an expression, a command's argument) is masked from there to its end.
    """
    if isinstance(value, Mapping):
        return {k: _masked(v) if _ID.search(str(k)) else without_secrets(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(without_secrets, value))
    return _TEXT.sub(rf"\g<1>{MASK}", value) if isinstance(value, str) else value


def command_without_secrets(arguments: Sequence[str]) -> list[str]:
    """The same for the words of a command line: ``--volume_options "{'storage': ...}"``, or ``--a#storage VALUE``."""
    words = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        option = before.startswith("-") and "=" not in before and _ID.search(before.lstrip("-"))
        words.append(MASK if option else without_secrets(word))
    return words


def _masked(value: Any) -> Any:
    """The same nesting with every value masked but None."""
    if isinstance(value, Mapping):
        return {key: _masked(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(part) for part in value]
    return None if value is None else MASK

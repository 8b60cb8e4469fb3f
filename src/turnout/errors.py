"""Every error a user can cause, in one hierarchy.

A message says what is wrong, what was given, what was expected and what to do. The command line prints it without a
traceback and exits with 2 for `ConfigError` (usage) and 1 for the rest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TurnoutError(Exception):
    """Base of all errors that this library raises on purpose."""


class ShapeError(TurnoutError, ValueError):
    """A tensor has the wrong shape, dtype or device."""


class ConfigError(TurnoutError, ValueError):
    """A setting is unknown, of the wrong type or impossible."""


class UnsupportedError(TurnoutError, NotImplementedError):
    """A combination of arguments that is valid in principle and not implemented here."""


class DataError(TurnoutError):
    """A file or folder is missing, empty, damaged or not what it claims to be."""


class CheckpointError(DataError):
    """A checkpoint is incomplete, damaged or belongs to another model."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Finish an "unknown name" message: the closest option, or all of them when none is close.

    A dotted option whose last part equals `name` counts as close (`layers` finds `model.layers`).

    Args:
        name: what the user wrote.
        options: the names that would have been accepted.
    Returns:
        `"; did you mean 'x'?"`, `"; choose one of: a, b"` or `"; there are none"`.
    """
    known = sorted(set(options))
    if not known:
        return "; there are none"
    tail = [option for option in known if option.rpartition(".")[2] == name]
    close = tail or difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose one of: {', '.join(known)}"

"""System calls that fail on demand: a kill or a full disk at every point of a write, one after the other."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

WRITING_CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "truncate", "ftruncate")


class Killed(BaseException):
    """Stands for SIGKILL: from this call on the process does nothing more, clean-up included."""


class Fault:
    """Whether the fault was reached, and in which call."""

    call: str | None = None


@contextlib.contextmanager
def failing(at: int, make_error: Callable[[], BaseException]) -> Iterator[Fault]:
    """Let the `at`-th writing system call fail (1-based); a `write` first writes half of its bytes.

    After `Killed` every later call fails too; after another error the calls work again.
    """
    fault = Fault()
    count = 0

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count < at:
                return real(*args, **options)
            error = make_error()
            if count > at and not isinstance(error, Killed):
                return real(*args, **options)
            if count == at:
                fault.call = name
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
            raise error

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITING_CALLS:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        yield fault


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_permission() -> OSError:
    return OSError(errno.EACCES, os.strerror(errno.EACCES))

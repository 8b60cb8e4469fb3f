"""Whole-file writes that a kill, a crash or a full disk cannot leave half done.

    write(tmp) → fsync(tmp) → rename(tmp, path) → fsync(folder)

`tmp` is `.<name>.tmp` in the same folder. At every moment `path` holds either all of its old content or all of the new.
Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from turnout.errors import DataError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def write_file(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`, all or nothing.

    Args:
        path: file to create or replace; its folder must exist.
        data: the whole new content.
    Raises:
        DataError: disk full, no permission or another system error; the temporary file is removed and the old content
            of `path` is untouched.
    Cost: one write of `len(data)` bytes and two fsyncs.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            _write_new(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            # The first error is the one to report; a temporary file that cannot be removed is overwritten next time.
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(error, path, len(data)) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte of `data` to an open file; one `os.write` may take only a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(error: OSError, path: Path, size: int | None = None) -> DataError:
    """Say in words why `path` could not be written and what to do about it."""
    if error.errno in _FULL:
        reason, remedy = "the disk is full or the quota is used up", "free space, or use a run root on another disk"
    elif error.errno in _DENIED:
        reason, remedy = "no permission to write there", "fix the permissions, or use a run root that you may write to"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR):
        reason, remedy = "its folder does not exist", "restore the folder, or start the run again under another name"
    else:
        reason, remedy = error.strerror or str(error), "check the disk, or use a run root on another one"
    what = path if size is None else f"{path} ({size:,} bytes)"
    return DataError(f"cannot write {what}: {reason}; what was there before is kept; {remedy}")


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

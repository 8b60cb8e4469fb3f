from __future__ import annotations

import errno
import itertools
from pathlib import Path

import pytest

from faults import Killed, disk_full, failing, no_permission
from turnout.errors import DataError
from turnout.train.atomic import write_error, write_file

OLD, NEW = b"old content", b"new and longer content"


def test_a_kill_at_any_point_leaves_all_of_the_old_or_all_of_the_new_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen = set()
    for at in itertools.count(1):
        path.write_bytes(OLD)
        try:
            with failing(at, Killed) as fault:
                write_file(path, NEW)
        except Killed:
            pass
        assert path.read_bytes() in (OLD, NEW)
        seen.add(path.read_bytes())
        if fault.call is None:
            break
    assert at > 5 and seen == {OLD, NEW}


@pytest.mark.parametrize("make_error", [disk_full, no_permission])
def test_a_system_error_at_any_point_is_a_data_error_and_leaves_no_temporary_file(tmp_path: Path, make_error) -> None:
    path = tmp_path / "file"
    for at in itertools.count(1):
        path.write_bytes(OLD)
        with failing(at, make_error) as fault:
            try:
                write_file(path, NEW)
            except DataError as error:
                assert str(path) in str(error)
        assert path.read_bytes() in (OLD, NEW)
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
        if fault.call is None:
            break


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "no permission"),
        (errno.ENOENT, "does not exist"),
        (errno.EIO, "check the disk"),
    ],
)
def test_the_message_says_what_where_and_what_to_do(number: int, words: str) -> None:
    message = str(write_error(OSError(number, "Input/output error"), Path("runs/a/summary.json"), 1234))
    assert words in message and "runs/a/summary.json (1,234 bytes)" in message and "kept; " in message


def test_writing_into_a_missing_folder_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder does not exist"):
        write_file(tmp_path / "gone" / "file", NEW)

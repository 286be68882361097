"""Files that are whole or not there."""

import errno
import os
from pathlib import Path

import pytest

from lmbench.files import flush_to_disk, replace_text


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "results.json"
    replace_text(path, "before")
    seen: list[tuple[str, str]] = []

    def flushed(other: Path) -> None:
        seen.append((other.read_text(), path.read_text()))

    monkeypatch.setattr("lmbench.files.flush_to_disk", flushed)
    replace_text(path, "after")
    assert seen == [("after", "before")]
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EIO])
def test_a_file_system_that_flushes_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(number)):
        flush_to_disk(file)
    if number == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(number)):
            flush_to_disk(tmp_path)
    else:
        flush_to_disk(tmp_path)

"""Files that are either whole or absent, and files that cannot be read."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmbench.errors import UserError
from lmbench.files import (
    flush_to_disk,
    read_json,
    read_text,
    read_yaml,
    replace_text,
    replacing,
    replacing_folder,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


def test_a_full_disk_is_told_with_the_file(tmp_path: Path):
    with pytest.raises(OSError, match="No space left") as raised, replacing(tmp_path / "table"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.filename == str(tmp_path / "table")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EIO])
def test_a_file_system_that_flushes_only_files(
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


@pytest.mark.parametrize(("age", "stays"), [(60, True), (7200, False)])
def test_what_killed_writers_left_is_removed_after_an_hour(tmp_path: Path, age: int, stays: bool):
    """Until then, another process might still be writing it."""
    for name in ("a.1.tmp", ".b.1.new", ".b.1.old", "other.1.tmp"):
        (tmp_path / name).mkdir() if name.startswith(".") else (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    replace_text(tmp_path / "a", "text")
    (tmp_path / "b").mkdir()
    with replacing_folder(tmp_path / "b") as folder:
        (folder / "file").touch()
    left = {".b.1.new", ".b.1.old", "a.1.tmp"} if stays else set()
    assert names(tmp_path) == sorted({"a", "b", "other.1.tmp"} | left)


def test_leftovers_of_a_killed_writer_with_the_same_process_id_do_no_harm(tmp_path: Path):
    """A container gives its processes the same ids after each start."""
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / f"a.{os.getpid()}.tmp")
    replace_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
    (tmp_path / "b").mkdir()
    for end in ("new", "old"):
        (tmp_path / f".b.{os.getpid()}.{end}").mkdir()
        (tmp_path / f".b.{os.getpid()}.{end}/half").touch()
    with replacing_folder(tmp_path / "b") as folder:
        (folder / "file").touch()
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / "b") == ["file"]


def test_a_folder_whose_writer_was_killed_between_two_renames_is_restored(tmp_path: Path):
    (tmp_path / ".b.1.old").mkdir()
    (tmp_path / ".b.1.old/whole").touch()
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "b"):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["b"]
    assert names(tmp_path / "b") == ["whole"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_leaves_no_half_folder(tmp_path: Path, error: BaseException):
    def fail() -> None:
        with replacing_folder(tmp_path / "deep/b") as folder:
            (folder / "half").touch()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert not names(tmp_path / "deep")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("suffix", [".new", ".old"])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_failure_between_two_renames_leaves_one_whole_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    suffix: str,
    is_before: bool,
):
    """Before or after the old one is moved away (.old) or the new one takes its place (.new)."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b/before").touch()
    rename, failures = Path.rename, [error]

    def fail_once(self: Path, target: Path) -> None:
        matters = suffix in (self.suffix, target.suffix) and bool(failures)
        if matters and is_before:
            raise failures.pop()
        rename(self, target)
        if matters:
            raise failures.pop()

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(type(error)), replacing_folder(tmp_path / "b") as folder:
        (folder / "after").touch()
    assert not failures
    assert names(tmp_path) == ["b"]
    is_new = (suffix, is_before) == (".new", False)
    assert names(tmp_path / "b") == ["after" if is_new else "before"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[1, 2]", "not a mapping"),
        ("a: [1", "flow sequence"),
        ("a: !!python/object/apply:os.getcwd []", "constructor"),
        ("a: &a {b: *a}", "aliases"),
        ("[" * 100_000, "exceeded"),
    ],
    ids=lambda text: text[:30],
)
def test_yaml_that_cannot_be_a_config(tmp_path: Path, text: str, part: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"config\.yaml is damaged: .*{part}"):
        read_yaml(path)


def test_numbers_are_read_as_omegaconf_writes_them(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1e-05\nb: -3\nc: 1.2e-06\nd: '1:30:00'\ne: 1E3\nf: null\n")
    assert read_yaml(path) == {"a": 1e-5, "b": -3, "c": 1.2e-6, "d": "1:30:00", "e": 1e3, "f": None}
    path.write_text("")
    assert read_yaml(path) == {}


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b"1" * 5000])
def test_json_that_cannot_be_an_object(tmp_path: Path, data: bytes):
    (tmp_path / "results.json").write_bytes(data)
    with pytest.raises(UserError, match=r"results\.json"):
        read_json(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "not a file"),
        (lambda path: path.write_bytes(b"\xff"), "utf-8"),
        (os.mkfifo, "not a file"),
        (lambda path: (path.touch(), os.truncate(path, 2**28 + 1)), "more than 268,435,456 bytes"),
    ],
    ids=["missing", "folder", "latin-1", "pipe", "huge"],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, make: Callable[[Path], Any], part: str):
    make(tmp_path / "file")
    with pytest.raises(UserError, match=rf"{tmp_path}/file .*{part}"):
        read_text(tmp_path / "file")

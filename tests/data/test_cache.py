import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest

from lmbench.data.cache import default_cache_dir, load_or_build
from lmbench.errors import UserError


def load(folder):
    path = folder / "content"
    return path.read_text() if path.exists() else None


def build(folder):
    (folder / "content").write_text("built")


def forbidden(folder):
    raise AssertionError("built again")


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_built_once(tmp_path):
    assert load_or_build("key", load=load, build=build, cache_dir=tmp_path / "new") == "built"
    assert load_or_build("key", load=load, build=forbidden, cache_dir=tmp_path / "new") == "built"
    assert visible(tmp_path / "new") == ["key"]


def test_what_is_there_needs_no_lock(tmp_path):
    load_or_build("key", load=load, build=build, cache_dir=tmp_path)
    lock = tmp_path / "key.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # so that it cannot be taken
    assert load_or_build("key", load=load, build=forbidden, cache_dir=tmp_path) == "built"


def test_damaged_entry_is_replaced(tmp_path):
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "rest").write_text("of something")
    assert load_or_build("key", load=load, build=build, cache_dir=tmp_path) == "built"
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["content"]
    assert visible(tmp_path) == ["key"]


def test_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        build(folder)
        raise UserError("bad text")

    with pytest.raises(UserError, match="bad text"):
        load_or_build("key", load=load, build=fail, cache_dir=tmp_path)
    assert visible(tmp_path) == []


def test_leftovers_of_a_killed_build_are_removed(tmp_path):
    for name in ("key.abcd1234", "key.x/new", "other.abcd1234", "key2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "content").write_text("half")
    assert load_or_build("key", load=load, build=build, cache_dir=tmp_path) == "built"
    assert visible(tmp_path) == ["key", "key2", "other.abcd1234"]


def test_what_cannot_be_removed_does_not_matter(tmp_path, monkeypatch):
    """On NFS a folder of which someone reads a file cannot be removed."""
    (tmp_path / "key").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", Mock(side_effect=OSError(errno.ENOTEMPTY, "not empty")))
        assert load_or_build("key", load=load, build=build, cache_dir=tmp_path) == "built"
    assert len(visible(tmp_path)) == 2
    shutil.rmtree(tmp_path / "key")
    assert load_or_build("key", load=load, build=build, cache_dir=tmp_path) == "built"
    assert visible(tmp_path) == ["key"]


def test_full_disk(tmp_path):
    def build_much(folder):
        (folder / "content").write_bytes(bytes(100_000))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError) as caught:
            load_or_build("key", load=load, build=build_much, cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(caught.value)
    assert "data.cache_dir=" in str(caught.value)
    assert visible(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/cache cannot be written: .*data\.cache_dir="):
        load_or_build("key", load=load, build=build, cache_dir=tmp_path / "file" / "cache")


def test_entry_that_cannot_be_read_back(tmp_path):
    with pytest.raises(UserError, match="read back"):
        load_or_build("key", load=lambda folder: None, build=build, cache_dir=tmp_path)


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "lmbench"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home/.cache/lmbench"


KILLED = """
import os, pathlib, signal, sys
from lmbench.data.cache import load_or_build

def build(folder):
    (folder / "content").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

load_or_build("key", load=lambda folder: None, build=build, cache_dir=pathlib.Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_build_neither_blocks_the_next_one_nor_leaves_anything(tmp_path):
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False, timeout=60)
        assert killed.returncode == -signal.SIGKILL
        (leftover,) = visible(tmp_path)  # of the last one alone
        assert leftover.startswith("key.")
        assert (tmp_path / leftover / "new/content").read_text() == "half"
    assert load_or_build("key", load=load, build=build, cache_dir=tmp_path) == "built"
    assert visible(tmp_path) == ["key"]


BUILDER = """
import pathlib, sys, time
from lmbench.data.cache import load_or_build

root = pathlib.Path(sys.argv[1])

def load(folder):
    path = folder / "content"
    return path.read_text() if path.exists() else None

def build(folder):
    with (root / "log").open("a") as log:
        log.write("built\\n")
    (folder / "content").write_text("half")
    time.sleep(0.7)
    (folder / "content").write_text("whole")

(root / f"ready{sys.argv[2]}").touch()
while len(list(root.glob("ready*"))) < 2:
    time.sleep(0.01)
print(load_or_build("key", load=load, build=build, cache_dir=root / "cache"))
"""


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    command = [sys.executable, "-c", BUILDER, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["whole\n"] * 2
    assert (tmp_path / "log").read_text() == "built\n"
    assert visible(tmp_path / "cache") == ["key"]


def test_mapped_entry_survives_its_replacement(tmp_path):
    load_or_build("key", load=load, build=build, cache_dir=tmp_path)
    with (tmp_path / "key" / "content").open() as held:
        again = load_or_build(
            "key",
            load=lambda folder: load(folder) if (folder / "new").exists() else None,
            build=lambda folder: (build(folder), (folder / "new").touch())[0],
            cache_dir=tmp_path,
        )
        assert again == held.read() == "built"
    shutil.rmtree(tmp_path / "key")
    assert visible(tmp_path) == []

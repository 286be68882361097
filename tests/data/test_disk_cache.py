import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from lmbench.data._disk_cache import load_or_build
from lmbench.errors import UserError


def load(folder):
    path = folder / "content"
    return path.read_text() if path.exists() else None


def build(folder):
    (folder / "content").write_text("built")


ask = partial(load_or_build, "key", load=load, build=build)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_an_existing_entry_needs_no_lock(tmp_path):
    ask(cache_dir=tmp_path)
    lock = tmp_path / "key.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # so that it cannot be taken
    assert ask(build=pytest.fail, cache_dir=tmp_path) == "built"


def test_two_that_ask_at_once_build_once(tmp_path):
    built = []

    def slowly(folder):
        built.append(folder)
        time.sleep(0.2)
        build(folder)

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ask, build=slowly, cache_dir=tmp_path) for _ in range(2)]
        assert [one.result() for one in both] == ["built"] * 2
    assert len(built) == 1


def test_damaged_entry_is_replaced(tmp_path):
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "rest").write_text("of something")
    assert ask(cache_dir=tmp_path) == "built"
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["content"]
    assert visible(tmp_path) == ["key"]


def test_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        build(folder)
        raise UserError("bad text")

    with pytest.raises(UserError, match="bad text"):
        ask(build=fail, cache_dir=tmp_path)
    assert visible(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/cache cannot be written: .*data\.cache_dir="):
        ask(cache_dir=tmp_path / "file" / "cache")


def test_entry_that_cannot_be_read_back(tmp_path):
    with pytest.raises(UserError, match="read back"):
        ask(load=lambda folder: None, cache_dir=tmp_path)


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, folder in (("", ".cache/lmbench"), (str(tmp_path / "xdg"), "xdg/lmbench")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        ask()
        assert visible(tmp_path / folder) == ["key"]


def test_mapped_entry_survives_its_replacement(tmp_path):
    ask(cache_dir=tmp_path)
    entries = iter([None, None, "rebuilt"])  # damaged, before the lock and under it
    with (tmp_path / "key" / "content").open() as held:
        again = ask(load=lambda _: next(entries), cache_dir=tmp_path)
        assert (again, held.read()) == ("rebuilt", "built")
    assert visible(tmp_path) == ["key"]

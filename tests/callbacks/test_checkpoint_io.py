"""Files that are whole or not there."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmbench.callbacks.checkpoint_io import AtomicCheckpointIO
from lmbench.errors import UserError
from lmbench.saved.checkpoint import read_checkpoint


def content(seed: int = 0, size: int = 50) -> dict[str, Any]:
    weights = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    counts = torch.arange(3)
    return {
        "state_dict": {"weight": weights, "tied": weights, "counts": counts},
        "random": torch.get_rng_state(),
        "words": ["naïve", "猫", "<eos>"],
        "loops": {"step": 7, "best": None, "scores": [1.5, math.inf], "done": False},
    }


def save(path: Path, checkpoint: dict[str, Any]) -> bytes:
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    return path.read_bytes()


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "last.ckpt"


def test_what_was_written_is_read_and_nothing_else_is_left(path: Path):
    for seed in (0, 1):
        save(path, content(seed))
        assert same(read_checkpoint(path), content(seed))
        assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    state = read_checkpoint(path)["state_dict"]
    assert state["weight"].data_ptr() == state["tied"].data_ptr()
    assert same(AtomicCheckpointIO().load_checkpoint(path), content(1))


def test_the_file_is_on_the_disk_before_it_has_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And the name is, before the method returns."""
    before = save(path, content())
    happened: list[str] = []
    replace = Path.replace

    def note_flush(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}")
        happened.append(f"flush {file.readlink().name if sys.platform == 'linux' else '?'}")

    def note_replace(self: Path, target: Path) -> Path:
        assert path.read_bytes() == before
        happened.append(f"{self.name} -> {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "replace", note_replace)
    save(path, content(1))
    if sys.platform == "linux":
        name = "last.ckpt.tmp"
        assert happened == [f"flush {name}", f"{name} -> last.ckpt", "flush checkpoints"]


@pytest.mark.parametrize("fails", ["pickling", "writing", "flushing", "renaming"])
def test_a_failure_leaves_what_was_there(path: Path, fails: str, monkeypatch: pytest.MonkeyPatch):
    before = save(path, content())
    checkpoint, kind = content(1), UserError

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    if fails == "pickling":
        checkpoint, kind = checkpoint | {"function": lambda: None}, Exception
    elif fails == "writing":

        def torchs_writer(checkpoint: Any, file: Any) -> None:
            file.write(b"PK")
            try:
                full()
            finally:
                raise RuntimeError("[enforce fail] unexpected pos 64\nfrom its C++\n")

        monkeypatch.setattr(torch, "save", torchs_writer)
    elif fails == "flushing":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(kind) as error:
        save(path, checkpoint)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    if kind is UserError:
        message = str(error.value)
        assert message.startswith(f"The checkpoint {path} cannot be written: ")
        assert "\n" not in message
        assert "No space left on device" in message


def test_a_place_that_is_no_folder(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("a file of the user's")
    with pytest.raises(UserError, match=r"checkpoints/last\.ckpt cannot be written: "):
        save(tmp_path / "checkpoints" / "last.ckpt", content())
    assert (tmp_path / "checkpoints").read_text() == "a file of the user's"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(path: Path):
    before = save(path, content())
    path.parent.chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot be written: Permission denied"):
            save(path, content(1))
        assert path.read_bytes() == before
    finally:
        path.parent.chmod(0o700)


@pytest.mark.slow
def test_a_full_disk(path: Path):
    """As a limit on the size of files, which the system enforces in the midst of writing."""
    before = save(path, content())
    script = f"""
import resource, torch
from lmbench.callbacks.checkpoint_io import AtomicCheckpointIO
from lmbench.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint = {{"state_dict": {{"w": torch.zeros(10**6)}}}}
    AtomicCheckpointIO().save_checkpoint(checkpoint, {str(path)!r})
except UserError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"The checkpoint {path} cannot be written: File too large. ")
    assert len(result.stdout.splitlines()) == 1
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]

"""Checkpoints run no code when they are read, and damage to them is found."""

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError
from lmbench.saved.checkpoint import (
    DATA,
    FORMAT,
    FORMAT_KEY,
    load_weights,
    read_checkpoint,
    read_run_model,
)

OURS = {FORMAT_KEY: FORMAT, DATA: {"sha256": "", "words": [], "tokenizer": "none"}}


def content(seed: int = 0, size: int = 50) -> dict[str, Any]:
    weights = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    counts = torch.arange(3)
    return {
        **OURS,
        "state_dict": {"weight": weights, "tied": weights, "counts": counts},
        "random": torch.get_rng_state(),
        "words": ["naïve", "猫", "<eos>"],
        "tokenizer": "none",
        "loops": {"step": 7, "best": None, "scores": [1.5, math.inf], "done": False},
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save(content(), folder / "last.ckpt")
    return folder / "last.ckpt"


def test_a_file_that_was_cut_off_or_is_something_else_is_refused(path: Path):
    whole = path.read_bytes()
    cut = [whole[:length] for length in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for data in (*cut, b"not a checkpoint", bytes(5000), b"PK\x03\x04" + bytes(5000)):
        path.write_bytes(data)
        assert "damaged" in refusal(path)


def test_a_flipped_bit_in_a_tensor_is_found_by_its_checksum(path: Path):
    whole = path.read_bytes()
    values = content()["state_dict"]["weight"].numpy().tobytes()
    assert whole.count(values) == 1
    flipped = bytearray(whole)
    flipped[whole.index(values) + 41] ^= 1
    path.write_bytes(flipped)
    # torch itself reads it, and gets another number
    assert not same(torch.load(path, weights_only=True), content())
    assert "checksum" in refusal(path)


def test_a_flipped_byte_anywhere_is_found_or_changes_nothing(path: Path):
    """In file names, lengths, offsets, compression methods and attributes as well."""
    torch.save(content(size=2), path)
    whole, expected, found = path.read_bytes(), read_checkpoint(path), 0
    # In steps of a prime, which is smaller in the directory at the end.
    for place in (*range(0, len(whole) - 1000, 31), *range(len(whole) - 1000, len(whole), 3)):
        for bits in (0x08, 0xFF):
            flipped = bytearray(whole)
            flipped[place] ^= bits
            path.write_bytes(flipped)
            try:
                checkpoint = read_checkpoint(path)
            except UserError:
                found += 1
            else:
                assert same(checkpoint, expected), place
    assert found > 300


class Bomb:
    """When it is unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self._folder,)


def test_code_in_a_file_is_refused_and_not_run(path: Path, tmp_path: Path):
    marker = tmp_path / "was here"
    torch.save(content() | {"callbacks": {"a": [Bomb(marker)]}}, path)
    assert "could run code" in refusal(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # it does make the folder if it is trusted
    assert marker.exists()
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "another")))
    refusal(path)
    torch.save(Bomb(tmp_path / "another"), path, _use_new_zipfile_serialization=False)
    refusal(path)
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(
    ("checkpoint", "part"),
    [
        ([1, 2], "format None"),
        ({"state_dict": {}}, "format None"),
        ({"state_dict": {}, FORMAT_KEY: FORMAT + 1}, f"format {FORMAT + 1}"),
    ],
)
def test_what_is_not_a_checkpoint_of_this_format_is_refused(path: Path, checkpoint: Any, part: str):
    torch.save(checkpoint, path)
    assert part in refusal(path)


def test_the_previous_checkpoint_is_offered_if_there_is_one(path: Path):
    whole, previous = path.read_bytes(), path.with_name("previous.ckpt")
    path.write_bytes(whole[:-100])
    assert "rename" not in refusal(path)
    previous.write_bytes(whole)
    assert f"{previous}: rename that to last.ckpt" in refusal(path)
    previous.replace(path)
    assert same(read_checkpoint(path), content())
    # It is not offered in place of itself or of the best one, which may be far from it.
    for other in (previous, path.with_name("best.ckpt")):
        previous.write_bytes(whole)
        other.write_bytes(whole[:-100])
        assert "rename" not in refusal(other)


def test_weights_are_loaded_only_into_a_module_of_their_shapes(path: Path):
    module = nn.Linear(2, 2, bias=False)
    for dtype in (torch.float64, torch.bfloat16):
        weight = torch.full((2, 2), 1.5, dtype=dtype)
        load_weights(module, {"weight": weight}, path)
        assert module.weight.tolist() == [[1.5] * 2] * 2
    with pytest.raises(UserError, match=rf"{path} do not fit the model: .*weight"):
        load_weights(module, {"weight": torch.zeros(2, 3)}, path)


def test_weights_that_differ_are_not_tied(path: Path):
    """Otherwise the last of the two would silently win."""
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    same, other = torch.ones(2, 2), torch.zeros(2, 2)
    load_weights(tied, {"0.weight": same, "1.weight": same}, path)
    load_weights(tied, {"1.weight": same}, path)
    with pytest.raises(UserError, match=r"0\.weight and 1\.weight differ, and model\.tied=true"):
        load_weights(tied, {"0.weight": same, "1.weight": other}, path)


def test_the_data_is_found_under_its_name_in_checkpoints():
    assert LanguageModelDataModule.__qualname__ == DATA


@pytest.mark.parametrize("content", [{}, {"state_dict": {}, DATA: {"words": 1}}])
def test_a_checkpoint_without_what_a_run_needs_is_called_damaged(
    make_run: Callable[..., Path], content: dict[str, Any]
):
    run_dir = make_run()
    path = run_dir / "checkpoints/best.ckpt"
    torch.save({FORMAT_KEY: FORMAT, **content}, path)
    with pytest.raises(UserError, match=rf"{path} is damaged: "):
        read_run_model(run_dir)
    path.unlink()
    with pytest.raises(UserError, match=r"has no best\.ckpt yet: .* first validation"):
        read_run_model(run_dir)

"""Files that run nothing when they are read, and whose damage is found."""

import math
import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmbench.errors import UserError
from lmbench.saved.checkpoint import DATA, load_weights, read_checkpoint, step_to_go_on_from


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
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        torch.save(checkpoint, file)
    return path.read_bytes()


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
    return tmp_path / "checkpoints" / "last.ckpt"


def test_a_file_that_was_cut_off(path: Path):
    whole = save(path, content())
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 22, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(path).startswith(f"{path} is damaged: ")


@pytest.mark.parametrize(
    "data", [b"no checkpoint at all", bytes(5000), b"PK\x03\x04" + bytes(5000)]
)
def test_a_file_of_something_else(path: Path, data: bytes):
    path.parent.mkdir()
    path.write_bytes(data)
    assert refusal(path).startswith(f"{path} is damaged: ")


def test_a_flipped_bit_in_a_tensor_is_found_by_its_check_sum(path: Path):
    whole = save(path, content())
    values = content()["state_dict"]["weight"].numpy().tobytes()
    assert whole.count(values) == 1
    flipped = bytearray(whole)
    flipped[whole.index(values) + 41] ^= 1
    path.write_bytes(flipped)
    # torch itself reads it, and has another number then
    assert not same(torch.load(path, weights_only=True), content())
    assert "check sum" in refusal(path)


def test_a_tensor_that_says_it_is_a_folder(path: Path):
    """One bit outside of all check sums, for which torch would give what lay in the memory."""
    whole = save(path, content())
    entry = whole.rindex(b"archive/data/0") - 46  # of the directory at the end
    assert whole[entry : entry + 4] == b"PK\x01\x02"
    flipped = bytearray(whole)
    flipped[entry + 38] ^= 0x10
    path.write_bytes(flipped)
    assert torch.load(path, weights_only=True).keys() == content().keys()
    assert "archive/data/0 says it is a folder" in refusal(path)


def test_a_flipped_byte_anywhere_is_found_or_changes_nothing(path: Path):
    """In file names, lengths, offsets and methods of compression as well."""
    whole = save(path, content(size=2))
    expected, found = read_checkpoint(path), 0
    # In steps of a prime, and all of the directory at the end.
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
    """Pickled, it tells the reader to make a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self._folder,)


@pytest.mark.parametrize("place", ["beside the weights", "among the weights", "the whole"])
def test_a_file_that_would_run_code_is_refused_and_does_not(path: Path, tmp_path: Path, place: str):
    marker = tmp_path / "was here"
    bomb = Bomb(marker)
    checkpoint = {
        "beside the weights": content() | {"callbacks": {"a": [bomb]}},
        "among the weights": {"state_dict": {"weight": bomb}},
        "the whole": bomb,
    }[place]
    path.parent.mkdir()
    torch.save(checkpoint, path)
    assert "could run code" in refusal(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # it is no dud
    assert marker.exists()


def test_a_bomb_of_plain_pickle_is_refused_too(path: Path, tmp_path: Path):
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "was here")))
    assert refusal(path).startswith(f"{path} is damaged: ")
    torch.save(Bomb(tmp_path / "was here"), path, _use_new_zipfile_serialization=False)
    assert refusal(path).startswith(f"{path} is damaged: ")
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("pickled", [b"e.", b"h\x05.", b"}}}s.", b"))R.", b"X\1\0\0\0a)b."])
def test_a_pickle_that_cannot_be_put_together(path: Path, pickled: bytes):
    """With check sums that fit."""
    save(path, content())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, b"\x80\x02" + pickled if name.endswith("/data.pkl") else data)
    assert str(path) in refusal(path)


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")
def test_a_script_of_torch_is_refused(path: Path):
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", pickle.dumps(()))
        archive.writestr("model/data.pkl", pickle.dumps({}))
        archive.writestr("model/version", "3")
    refusal(path)


# torch 2.15 says of a sparse tensor that it looks at it, before lmbench refuses it.
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize(
    ("checkpoint", "part"),
    [
        ({"weights": {}}, "has no state_dict"),
        ({"state_dict": [1, 2]}, "has no state_dict"),
        ([1, 2], "has no state_dict"),
        ({"state_dict": {"a": torch.ones(2), "b.weight": torch.tensor([1, math.nan])}}, "b.weight"),
        ({"state_dict": {"a": torch.ones(2), "b.weight": torch.tensor([1, math.inf])}}, "b.weight"),
        ({"state_dict": {"b.weight": "no tensor"}}, "the weight b.weight is no tensor"),
        ({"state_dict": {3: torch.ones(2)}}, "the weight 3 has no text for a name"),
        *(
            ({"state_dict": {"b": torch.ones(2).to(dtype)}}, f"b is of {dtype}, which lmbench does")
            for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16)
        ),
        ({"state_dict": {"b": torch.ones(2, device="meta")}}, "the weight b is no plain tensor"),
        ({"state_dict": {"b": torch.eye(2).to_sparse()}}, "the weight b is no plain tensor"),
        (
            {"state_dict": {"b": torch.ones(1).expand(10**15)}},
            "b says it has the shape (1000000000000000,), and has fewer numbers",
        ),
    ],
)
def test_what_is_no_model_or_a_broken_one(path: Path, checkpoint: Any, part: str):
    path.parent.mkdir()
    torch.save(checkpoint, path)
    message = refusal(path)
    assert part in message
    assert "previous.ckpt" not in message


def test_a_file_that_is_not_there(path: Path):
    assert "cannot be read: No such file" in refusal(path)
    path.mkdir(parents=True)
    assert "cannot be read: Is a directory" in refusal(path)


def test_the_checkpoint_before_is_offered_where_there_is_one(path: Path):
    previous = path.with_name("previous.ckpt")
    whole = save(previous, content())
    path.write_bytes(whole[:-100])
    assert refusal(path).endswith(
        f"The checkpoint before it is {previous}: rename that to last.ckpt to go on from it."
    )
    torch.save({"state_dict": {"w": torch.tensor(math.nan)}}, path)
    assert refusal(path).endswith("rename that to last.ckpt to go on from it.")
    previous.replace(path)
    assert same(read_checkpoint(path), content())
    # It is not offered in its own place, nor in that of the best one, which need not be near it.
    for other in (previous, path.with_name("best.ckpt")):
        save(previous, content())
        other.write_bytes(whole[:-100])
        assert "rename" not in refusal(other)
        other.unlink()
        assert "rename" not in refusal(other)


def test_a_checkpoint_that_only_holds_a_model_is_none_to_go_on_from(path: Path):
    whole = {"global_step": 7, "loops": {}, "callbacks": {}, "optimizer_states": []}
    whole |= {"lr_schedulers": [], "processes": [], "csv": []}
    assert step_to_go_on_from(path, whole) == 7
    for key in whole:
        with pytest.raises(UserError, match=rf"last\.ckpt cannot be gone on from: .* no {key}"):
            step_to_go_on_from(path, {name: whole[name] for name in whole if name != key})


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_weights_are_not_converted_but_between_floats(path: Path, dtype: torch.dtype):
    module, corpus = nn.Linear(2, 2, bias=False), SimpleNamespace(require_sha256=lambda sha: None)
    checkpoint = {DATA: {"sha256": "", "words": []}}
    for found in (torch.float64, torch.bfloat16):
        save(path, checkpoint | {"state_dict": {"weight": torch.full((2, 2), 1.5, dtype=found)}})
        load_weights(path, module, corpus)
        assert module.weight.tolist() == [[1.5] * 2] * 2
    save(path, checkpoint | {"state_dict": {"weight": torch.zeros(2, 2, dtype=dtype)}})
    with pytest.raises(
        UserError, match=rf"{path} .*: weight is of {dtype} instead of torch.float32"
    ):
        load_weights(path, module, corpus)

"""Exports: the same numbers without pickle, written whole or not at all, refused if damaged."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

import lmbench
from lmbench.data.tokenizer.choice import plain_tokenizer
from lmbench.data.tokenizer.moses import Moses
from lmbench.errors import UserError
from lmbench.instantiate.model import build_saved
from lmbench.saved.checkpoint import DATA, FORMAT, FORMAT_KEY, read_run_model
from lmbench.saved.export import read_export, require_free, write_export

MODELS = (
    "model=lstm",
    "model=lstm model.tied=false",
    "model=lstm trainer.precision=64-true",
    "model=lstm trainer.precision=bf16-true",
    "model=awd_lstm model/head=adaptive_softmax",
    "model=lstm model/head=adaptive_softmax model.tied=false",
    "model=lstm model/head=mixture_of_softmaxes",
)


NAMES = ["README.md", "config.json", "model.safetensors", "vocabulary.json"]


def write(run_dir: Path, output: Path, *, overwrite: bool = False) -> Path:
    saved = read_run_model(run_dir)
    options = {"corpus_name": "synthetic", "card": "# A model \udcff", "overwrite": overwrite}
    write_export(output, saved, build_saved(saved), **options)
    return output


@pytest.fixture
def folder(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    return write(make_run(), tmp_path / "export")


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        lmbench.load(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize("overrides", MODELS)
def test_an_export_gives_the_numbers_of_its_run(
    make_run: Callable[..., Path], tmp_path: Path, overrides: str
):
    """In the precision of its weights."""
    run_dir = make_run(*overrides.split())
    models = [lmbench.load(path) for path in (run_dir, write(run_dir, tmp_path / "export"))]
    assert models[0].vocabulary == models[1].vocabulary
    tokens = torch.arange(36).reshape(9, 4)
    of_run, of_export = (model.head.log_probs(model(tokens).output) for model, _ in models)
    dtypes = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
    dtype = dtypes.get(overrides.rpartition("=")[2], torch.float32)
    assert {model.embedding.weight.dtype for model, _ in models} == {dtype}
    assert torch.equal(of_run, of_export)
    assert not models[1].model.training
    tied = [model.head.weight is model.embedding.weight for model, _ in models]
    assert tied[0] == tied[1] == ("model.tied=false" not in overrides)


def test_what_is_in_the_folder(folder: Path):
    """Read by other means; a tied weight is there only once."""
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    assert (folder / "README.md").read_text("utf-8") == "# A model \\udcff"
    weights = load_file(folder / "model.safetensors")
    layers = sum(4 * h * (i + h) + 2 * 4 * h for i, h in ((8, 12), (12, 8)))
    assert sum(weight.size for weight in weights.values()) == 41 * 8 + layers + 41
    words = json.loads((folder / "vocabulary.json").read_text("utf-8"))
    assert len(words) == 41
    assert "<eos>" in words
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["format_version"] == 2
    assert config["model"]["core"]["_target_"] == "lmbench.model.core.LSTM"
    assert config["corpus"]["name"] == "synthetic"
    assert len(config["corpus"]["sha256"]) == 64


def test_the_tokenizer_is_exported_with_the_words(make_run: Callable[..., Path], tmp_path: Path):
    run_dir = make_run()
    path = run_dir / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for number, choice in ((FORMAT, plain_tokenizer(Moses("de"))), (1, "moses-de")):
        checkpoint[FORMAT_KEY], checkpoint[DATA]["tokenizer"] = number, choice
        torch.save(checkpoint, path)
        output = write(run_dir, tmp_path / f"export {number}")
        config = json.loads((output / "config.json").read_text("utf-8"))
        config["format_version"], config["corpus"]["tokenizer"] = number, choice
        (output / "config.json").write_text(json.dumps(config))
        for folder in (run_dir, output):
            assert lmbench.load(folder).vocabulary.tokenizer == Moses("de")


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.json", "config.json"])
def test_a_file_that_is_cut_off_changed_or_missing(folder: Path, name: str):
    whole = (folder / name).read_bytes()
    for length in (0, 1, 7, len(whole) // 2, len(whole) - 2):
        (folder / name).write_bytes(whole[:length])
        assert name in refusal(folder)
    for place in range(0, len(whole), 1 + len(whole) // 50):
        changed = bytearray(whole)
        changed[place] ^= 4
        (folder / name).write_bytes(changed)
        if name == "config.json":  # it may say another version or name, and be valid
            with suppress(UserError):
                lmbench.load(folder)
        else:
            assert f"{folder / name} is damaged" in refusal(folder)
    (folder / name).unlink()
    assert name in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("format_version", 3, "format 3"),
        ("corpus", {}, "config.json is damaged"),
        ("sha256", {}, "config.json is damaged"),
    ],
)
def test_a_config_of_another_format_is_refused(folder: Path, key: str, value: Any, part: str):
    """Its model is tested together with those of runs."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: value}), "utf-8")
    assert part in refusal(folder)


def test_files_that_fit_together_may_still_be_damaged(folder: Path):
    """Whoever makes an export also writes its hashes."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for name, content in (
        ("vocabulary.json", b"[" * 100_000),
        ("vocabulary.json", b"5"),
        ("vocabulary.json", b"[[]]"),
        ("model.safetensors", b"\xff" * 100),
    ):
        (folder / name).write_bytes(content)
        config["sha256"][name] = hashlib.sha256(content).hexdigest()
        path.write_text(json.dumps(config), "utf-8")
        assert "config.json is damaged" in refusal(folder)


def test_an_export_is_replaced_only_with_overwrite(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And not if writing fails."""
    run_dir, output = make_run(), tmp_path / "deep" / "export"
    output.mkdir(parents=True)  # an empty folder may be filled
    write(run_dir, output)
    before = sorted(tmp_path.rglob("*"))

    def fail(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left")

    with pytest.raises(UserError, match="--overwrite"):
        write(run_dir, output)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match=f"No space left: '{output}'"):
            write(run_dir, output, overwrite=True)
    with pytest.raises(NotADirectoryError):
        write(run_dir, run_dir / "config.yaml/export")
    assert sorted(tmp_path.rglob("*")) == before
    write(run_dir, output, overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == NAMES
    lmbench.load(output)


def test_what_is_not_an_export_is_never_replaced(folder: Path, tmp_path: Path):
    of_others, file, link = (tmp_path / name for name in ("others", "file", "link"))
    of_others.mkdir()
    (of_others / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="of format None"):
        read_export(of_others)
    file.touch()
    link.symlink_to(folder)
    (folder / "notes.txt").touch()
    for path in (of_others, file, link, folder):
        with pytest.raises(UserError, match=f"{path} .*would be lost"):
            require_free(path, overwrite=True)

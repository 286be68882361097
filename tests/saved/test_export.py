"""Exports: the same numbers without pickle, there whole or not at all, and refused if damaged."""

import hashlib
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import lmbench
from lmbench.errors import UserError
from lmbench.run.targets import ALLOWED_TARGETS_VARIABLE
from lmbench.saved.export import read_export, require_free, writing_export
from lmbench.saved.loading import read_run
from lmbench.saved.model import build

MODELS = {
    "lstm": ("model=lstm",),
    "lstm, untied": ("model=lstm", "model.tied=false"),
    "lstm, float64": ("model=lstm", "trainer.precision=64-true"),
    "lstm, bfloat16": ("model=lstm", "trainer.precision=bf16-true"),
    "awd_lstm": ("model=awd_lstm", "model.core.num_layers=2"),
    "awd_lstm, adaptive": ("model=awd_lstm", "model/head=adaptive_softmax"),
    "lstm, adaptive, untied": ("model=lstm", "model/head=adaptive_softmax", "model.tied=false"),
}


def write(
    run_dir: Path,
    output: Path,
    *,
    complete: Callable[[Path], object] = lambda folder: None,
    overwrite: bool = False,
) -> Path:
    saved = read_run(run_dir)
    options = {"corpus_name": "synthetic", "overwrite": overwrite}
    with writing_export(output, saved, build(saved), **options) as folder:
        complete(folder)
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


def change(folder: Path, name: str, data: bytes) -> None:
    """With a hash that fits, as someone would who wants it to be believed."""
    (folder / name).write_bytes(data)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["sha256"][name] = hashlib.sha256(data).hexdigest()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def change_weights(folder: Path, change_them: Callable[[dict[str, Any]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change_them(weights)
    save_file(weights, folder / "changed")
    change(folder, "model.safetensors", (folder / "changed").read_bytes())


@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
def test_an_export_gives_the_numbers_of_its_run(
    make_run: Callable[..., Path], tmp_path: Path, overrides: tuple[str, ...]
):
    run_dir = make_run(*overrides)
    models = [lmbench.load(path) for path in (run_dir, write(run_dir, tmp_path / "export"))]
    assert models[0].vocabulary == models[1].vocabulary
    tokens = torch.arange(36).reshape(9, 4)
    of_run, of_export = (model.head.log_probs(model(tokens).output) for model, _ in models)
    assert of_run.dtype == of_export.dtype
    assert torch.equal(of_run, of_export)
    assert not models[1].model.training
    tied = [model.head.weight is model.embedding.weight for model, _ in models]
    assert tied[0] == tied[1] == ("model.tied=false" not in overrides)


def test_what_lies_in_the_folder(folder: Path):
    """Read with other means; a tied weight is there once."""
    names = ["config.json", "model.safetensors", "vocabulary.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    weights = load_file(folder / "model.safetensors")
    layers = sum(4 * h * (i + h) + 2 * 4 * h for i, h in ((8, 12), (12, 8)))
    assert sum(weight.size for weight in weights.values()) == 41 * 8 + layers + 41
    words = json.loads((folder / "vocabulary.json").read_text("utf-8"))
    assert len(words) == 41
    assert "<eos>" in words
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["format_version"] == 1
    assert config["model"]["core"]["_target_"] == "lmbench.model.core.LSTM"
    assert "kernel" not in config["model"]["head"]
    assert config["corpus"]["name"] == "synthetic"
    assert len(config["corpus"]["sha256"]) == 64


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
        if name == "config.json":  # it may say another version, or name, and be whole
            with suppress(UserError):
                lmbench.load(folder)
        else:
            assert f"{folder / name} is damaged" in refusal(folder)
    (folder / name).unlink()
    message = refusal(folder)
    if name == "config.json":
        assert "neither the directory of a run" in message
    else:
        assert f"{name} cannot be read: No such file" in message
        (folder / name).mkdir()
        assert f"{name} cannot be read: Is a directory" in refusal(folder)


@pytest.mark.parametrize(
    ("change_them", "message"),
    [
        (lambda w: w.pop("head.bias"), "head.bias is missing"),
        (lambda w: w.pop("embedding.weight"), "embedding.weight is missing"),
        (lambda w: w.update(extra=np.ones(3, "f4")), "extra is none of the model's"),
        (
            lambda w: w.update({"head.bias": np.ones(40, "f4")}),
            "head.bias has the shape (40,) instead of (41,)",
        ),
        (lambda w: w.update({"head.bias": np.ones(41, "f8")}), "head.bias is of torch.float64"),
        (lambda w: w.update({"head.bias": np.ones(41, "i4")}), "head.bias is of torch.int32"),
        (lambda w: w.update({"head.bias": np.full(41, np.inf, "f4")}), "head.bias is not finite"),
        (lambda w: w.clear(), "model.core.num_layers asks for more layers than"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change_them: Any, message: str):
    change_weights(folder, change_them)
    found = refusal(folder)
    assert message in found
    assert str(folder / "model.safetensors") in found


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no safetensors",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}" + bytes(9),
        b"\x80\x04K\x01.",
    ],
)
def test_weights_of_another_format_with_a_hash_that_fits(folder: Path, data: bytes):
    change(folder, "model.safetensors", data)
    message = refusal(folder)
    assert "model.safetensors" in message


@pytest.mark.parametrize(
    ("dtype", "width", "message"),
    [
        ("F8_E4M3", 32, "embedding.weight is of torch.float8_e4m3fn, which lmbench does not read"),
        ("F8_E5M2", 32, "embedding.weight is of torch.float8_e5m2, which lmbench does not read"),
        ("F8_E8M0", 32, "embedding.weight is of F8_E8M0, which lmbench does not read"),
        ("F4", 64, "embedding.weight is of F4, which lmbench does not read"),
        ("U32", 8, "embedding.weight is of torch.uint32, which lmbench does not read"),
        ("C64", 4, "embedding.weight is of torch.complex64"),
        ("I32", 8, "embedding.weight is of torch.int32"),
        ("BOOL", 32, "embedding.weight is of torch.bool"),
    ],
)
def test_weights_of_other_types(folder: Path, dtype: str, width: int, message: str):
    """The bytes of 41 · 8 float32, under another name; all are zero, and finite in each."""
    length = 41 * 8 * 4
    header = {"dtype": dtype, "shape": [41, width], "data_offsets": [0, length]}
    names = load_file(folder / "model.safetensors").keys() - {"embedding.weight"}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [length, length]}
    text = json.dumps({"embedding.weight": header} | dict.fromkeys(names, empty)).encode()
    change(folder, "model.safetensors", struct.pack("<Q", len(text)) + text + bytes(length))
    found = refusal(folder)
    assert message in found
    assert str(folder / "model.safetensors") in found


@pytest.mark.parametrize("shape", [[0, 2**63], [1] * 65 + [0], [0, 2**62]])
def test_shapes_that_take_no_memory_and_cannot_be(folder: Path, shape: list[int]):
    def exchange(dtype: str) -> None:
        text = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}}).encode()
        change(folder, "model.safetensors", struct.pack("<Q", len(text)) + text)

    for dtype in ("F32", "C64"):
        exchange(dtype)
        assert str(folder / "model.safetensors") in refusal(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (lambda words: words[:-1], "embedding.weight has the shape (41, 8) instead of (40, 8)"),
        (
            lambda words: [*words, "new"],
            "embedding.weight has the shape (41, 8) instead of (42, 8)",
        ),
        (lambda words: [*words[:-1], words[0]], "1 words are there more than once"),
        (lambda words: [*words[:-1], 7], "no list of words"),
        (lambda words: {"words": words}, "no list of words"),
        (lambda words: [*words[:-1], "\ud800"], "surrogates not allowed"),
    ],
)
def test_a_vocabulary_that_does_not_fit(folder: Path, words: Any, message: str):
    path = folder / "vocabulary.json"
    change(folder, path.name, json.dumps(words(json.loads(path.read_text("utf-8")))).encode())
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 2, "is of format 2, but this version of lmbench reads 1"),
        ("format_version", "1", "it has no format_version"),
        ("format_version", None, "it has no format_version"),
        ("model", None, "it has no model"),
        ("corpus", [], "it has no corpus"),
        ("sha256", {}, "model.safetensors is damaged"),
        ("model.core._target_", "os.mkdir", "model.core._target_ names os.mkdir"),
        ("model.core._target_", ["os.mkdir"], "model.core._target_ names"),
        ("model.head._target_", "lmbench.optim.ASGD", "does not belong there"),
        ("model.core._target_", "torch.optim.SGD", "does not belong there"),
        ("model.core._target_", "lmbench.data.corpus.load_text", "belongs at data alone"),
        ("model.x.y", {"_target_": "os.mkdir"}, "model.x.y._target_ names os.mkdir"),
        ("model.core.hidden_size", 10**7, "has the shape"),
        ("model.core.hidden_size", 2**70, "describes no model"),
        ("model.core.hidden_size", "${oc.env:HOME}", "is an interpolation"),
        ("model.core.num_layers", 10**6, "config.json: model.core.num_layers asks for more"),
        ("model.core.num_layers", 10**30, "asks for more layers than"),
        ("model.core.dropout", 1.5, "model.core.dropout must be"),
        ("model.core.dropout", float("nan"), "model.core.dropout must be"),
        ("model.tied", "no", "model.tied='no' has the wrong type"),
        ("model.tied", False, "head.weight is missing"),
        ("model.head", None, "model.head=None names no class"),
    ],
)
def test_a_config_of_strangers(folder: Path, tmp_path: Path, key: str, value: Any, message: str):
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = value
    if value == "os.mkdir":
        node["path"] = str(tmp_path / "was here")
    path.write_text(json.dumps(config), "utf-8")
    assert message in refusal(folder)
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'"x"', b"[" * 100_000, b"\xff", b"1" * 5000])
def test_a_config_that_is_none(folder: Path, data: bytes):
    (folder / "config.json").write_bytes(data)
    assert "config.json" in refusal(folder)


def test_a_core_of_others_must_be_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    target = "lmbench.model.core.lstm.LSTM"  # another name than the one on the list
    config["model"]["core"]["_target_"] = target
    path.write_text(json.dumps(config), "utf-8")
    assert f"{ALLOWED_TARGETS_VARIABLE}={target}" in refusal(folder)
    monkeypatch.setenv(ALLOWED_TARGETS_VARIABLE, target)
    assert len(lmbench.load(folder).vocabulary) == 41


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


FAILURES = [
    pytest.param(UserError("no program"), UserError, "no program", id="program"),
    pytest.param(OSError(28, "No space left"), UserError, "written: No space left", id="disk"),
    pytest.param(KeyboardInterrupt(), KeyboardInterrupt, None, id="Ctrl-C"),
]


@pytest.mark.parametrize(("error", "expected", "message"), FAILURES)
def test_a_failure_leaves_what_was_there(
    make_run: Callable[..., Path],
    tmp_path: Path,
    error: BaseException,
    expected: type[BaseException],
    message: str | None,
):
    run_dir = make_run()
    before = names_below(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise error

    for output in (tmp_path / "export", tmp_path / "new" / "deep" / "export"):
        with pytest.raises(expected, match=message):
            write(run_dir, output, complete=fail)
        assert names_below(tmp_path) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(expected):
        write(run_dir, tmp_path / "empty", complete=fail)
    write(run_dir, tmp_path / "export")
    whole = names_below(tmp_path)
    assert "empty" in whole
    with pytest.raises(expected):
        write(run_dir, tmp_path / "export", complete=fail, overwrite=True)
    assert names_below(tmp_path) == whole
    lmbench.load(tmp_path / "export")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("suffix", [".a", ".b"])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_failure_between_the_names_leaves_one_whole_export(
    make_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    suffix: str,
    is_before: bool,
):
    """Before or after the old one goes (.b), and before or after the new one comes (.a)."""
    run_dir, output = make_run(), tmp_path / "export"
    write(run_dir, output)
    (output / "step.pt2").touch()  # of the old one alone
    rename, failures = Path.rename, [error]

    def fail_once(self: Path, target: Path) -> None:
        matters = suffix in (self.suffix, target.suffix) and bool(failures)
        if matters and is_before:
            raise failures.pop()
        rename(self, target)
        if matters:
            raise failures.pop()

    monkeypatch.setattr(Path, "rename", fail_once)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write(run_dir, output, overwrite=True)
    assert not failures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "run"]
    is_new = (suffix, is_before) == (".a", False)
    assert (output / "step.pt2").exists() == (not is_new)
    lmbench.load(output)


def test_an_export_is_replaced_only_if_told_so(make_run: Callable[..., Path], tmp_path: Path):
    run_dir, output = make_run(), tmp_path / "deep" / "export"
    write(run_dir, output)
    (output / "step.pt2").touch()
    with pytest.raises(UserError, match=r"holds an export already\. Replace it with --overwrite"):
        write(run_dir, output)
    assert (output / "step.pt2").exists()
    write(run_dir, output, overwrite=True)
    assert not (output / "step.pt2").exists()
    assert [path.name for path in output.parent.iterdir()] == ["export"]


def test_an_empty_folder_is_filled(make_run: Callable[..., Path], tmp_path: Path):
    output = tmp_path / "empty"
    output.mkdir()
    assert len(lmbench.load(write(make_run(), output)).vocabulary) == 41


@pytest.mark.parametrize("name", [".", "", "../folder", "../folder/."])
def test_the_folder_one_is_in_stays(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    run_dir, here = make_run(), tmp_path / "folder"
    here.mkdir()
    monkeypatch.chdir(here)
    before = names_below(tmp_path)
    with pytest.raises(UserError, match="is the folder that you are in"):
        write(run_dir, Path(name))
    assert names_below(tmp_path) == before
    (here / "notes.txt").touch()
    with pytest.raises(UserError, match=r"would be lost: it holds notes\.txt\."):
        write(run_dir, Path(name))
    write(run_dir, Path("../folder/export"))
    lmbench.load("export")


def test_places_where_nothing_can_be(make_run: Callable[..., Path], tmp_path: Path):
    run_dir, file = make_run(), tmp_path / "file"
    file.touch()
    before = names_below(tmp_path)
    for output in (file / "export", file / "deep" / "export", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=f"^{output} cannot be written: "):
            write(run_dir, output)
        assert names_below(tmp_path) == before


def test_what_is_no_export_is_never_replaced(folder: Path, tmp_path: Path):
    of_others = tmp_path / "model of others"
    of_others.mkdir()
    (of_others / "config.json").write_text('{"model_type": "gpt2"}')
    (of_others / "model.safetensors").touch()
    file = tmp_path / "file"
    file.touch()
    link = tmp_path / "link"
    link.symlink_to(folder)
    for path, problem in (
        (of_others, "it holds no export"),
        (file, "it is no folder"),
        (link, "it is no folder"),
        (tmp_path, "it holds export, file, link"),
    ):
        with pytest.raises(UserError, match=f"{path} is there already and .*: {problem}"):
            require_free(path, overwrite=True)
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match=r"it holds notes\.txt\."):
        require_free(folder, overwrite=True)


def test_a_model_of_others_is_no_export(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="not the config of an export: it has no format_version"):
        read_export(tmp_path)

"""A run's model as plain PyTorch: the same numbers, and nothing runs of a stranger's folder."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import Tensor, nn

import lmbench
from lmbench import build
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError
from lmbench.machine import device_of
from lmbench.model import LanguageModel
from lmbench.model.core import CoreOutput
from lmbench.run.config import read_run_config
from lmbench.run.targets import ALLOWED_TARGETS_VARIABLE
from lmbench.saved.checkpoint import DATA

MODELS = {
    "lstm": ("model=lstm",),
    "lstm, untied": ("model=lstm", "model.tied=false", "model.head.bias=false"),
    "awd_lstm": ("model=awd_lstm", "model.core.num_layers=2"),
    "lstm, adaptive": ("model=lstm", "model/head=adaptive_softmax"),
    "awd_lstm, adaptive, untied": (
        "model=awd_lstm",
        "model/head=adaptive_softmax",
        "model.tied=false",
        "model.core.output_size=6",
    ),
    "lstm, adaptive, with all options": (
        "model=lstm",
        "model/head=adaptive_softmax",
        "model.head.unigram_bias=true",
        "model.head.autocast=true",
    ),
}


def change_config(run_dir: Path, key: str, value: object) -> None:
    path = run_dir / "config.yaml"
    config = OmegaConf.load(path)
    OmegaConf.update(config, key, value, force_add=True, merge=False)
    OmegaConf.save(config, path)


def change_checkpoint(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run_dir / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    with path.open("wb") as file:
        torch.save(checkpoint, file)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        lmbench.load(path, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
def test_a_run_gives_its_model(make_run: Callable[..., Path], overrides: tuple[str, ...]):
    """As the LightningModule of the run's own config gives it, to the last bit."""
    run_dir = make_run(*overrides)
    config = read_run_config(run_dir)
    corpus = build.corpus(config)
    module = build.module(config, build.model(config, len(corpus.vocabulary)))
    checkpoint = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()

    model, vocabulary = lmbench.load(run_dir)
    assert vocabulary == corpus.vocabulary
    assert not any(part.training for part in model.modules())
    tokens = torch.arange(30).reshape(10, 3)
    output, expected = model(tokens), module.model(tokens)
    assert torch.equal(
        model.head.log_probs(output.output), module.model.head.log_probs(expected.output)
    )
    tied = config.model.tied
    assert (model.head.weight is model.embedding.weight) == tied
    assert model.num_parameters == module.model.num_parameters


@pytest.mark.parametrize(
    ("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)]
)
def test_the_weights_keep_their_precision(
    make_run: Callable[..., Path], precision: str, dtype: torch.dtype
):
    model, _ = lmbench.load(make_run("model=lstm", f"trainer.precision={precision}"))
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    log_probs = model.head.log_probs(model(torch.arange(6).reshape(3, 2)).output)
    assert log_probs.exp().sum(-1).sub(1).abs().max() < 0.02


def test_neither_lightning_nor_hydra_is_needed(make_run: Callable[..., Path]):
    script = f"""
import sys
import lmbench
assert "torch" not in sys.modules
model, vocabulary = lmbench.load({str(make_run())!r})
print(len(vocabulary), model.num_parameters)
for name in ("lightning", "pytorch_lightning", "hydra"):
    assert name not in sys.modules, name
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    layers = sum(4 * h * (i + h) + 2 * 4 * h for i, h in ((8, 12), (12, 8)))
    assert result.stdout.split() == ["41", str(41 * 8 + layers + 41)]


def test_a_model_that_was_trained_with_a_fused_kernel_needs_it_no_more(make_run):
    run_dir = make_run()
    change_config(run_dir, "model.head.kernel", "liger")
    assert lmbench.load(run_dir).model.head.kernel == "chunked"


class Recurrence(nn.Module):
    """A core of the user's own, which looks at numbers when it is made."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, output_size
        self.rnn = nn.RNN(input_size, output_size)
        self.first = self.rnn.weight_ih_l0.flatten()[0].item()

    def forward(self, input: Tensor, state: Any = None) -> CoreOutput:
        output, hidden = self.rnn(input, state[0][0] if state else None)
        return CoreOutput(output, output, ((hidden,),))


def test_a_core_of_ones_own(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    module = type(sys)("my_cores")
    module.Recurrence = Recurrence
    monkeypatch.setitem(sys.modules, "my_cores", module)
    run_dir = make_run()
    core = {"_target_": "my_cores.Recurrence", "output_size": 8}
    change_config(run_dir, "model.core", core)
    assert f"{ALLOWED_TARGETS_VARIABLE}=my_cores.Recurrence" in refusal(run_dir)
    monkeypatch.setenv(ALLOWED_TARGETS_VARIABLE, "my_cores.Recurrence")
    assert "core.rnn.weight_ih_l0 is missing" in refusal(run_dir)
    weights = {f"model.core.rnn.{name}": x for name, x in nn.RNN(8, 8).state_dict().items()}

    def exchange(checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        for name in [name for name in state if ".core." in name]:
            del state[name]
        state.update(weights)

    change_checkpoint(run_dir, exchange)
    model, _ = lmbench.load(run_dir)
    assert torch.equal(model.core.rnn.weight_hh_l0, weights["model.core.rnn.weight_hh_l0"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.core._target_", "os.mkdir", r"model\.core\._target_ names os\.mkdir"),
        ("model.core._target_", "lmbench.model.head.Softmax", "does not belong there"),
        ("model.head._target_", "lmbench.model.core.LSTM", "does not belong there"),
        ("model.core._target_", "lmbench.optim.ASGD", "does not belong there"),
        ("model.core._target_", "lmbench.data.corpus.load_text", "belongs at data alone"),
        ("model.core", None, r"model\.core=None names no class"),
        ("model.head", ["x"], r"names no class"),
        ("model.core.hidden_size", "???", r"model\.core\.hidden_size has no default"),
        (
            "model.core.hidden_size",
            13,
            r"core\.layers\.0\.weight_ih_l0 has the shape \(48, 8\) .*\(52, 8\)",
        ),
        ("model.core.hidden_size", "many", r"model\.core\.hidden_size='many' has the wrong type"),
        ("model.core.num_layers", 3, r"core\.layers\.2\.weight_ih_l0 is missing"),
        ("model.core.num_layers", 1, r"core\.layers\.1\.weight_ih_l0 is none of"),
        (
            "model.core.num_layers",
            10**6,
            r"num_layers asks for more layers than .*best\.ckpt, 11\.",
        ),
        ("model.core.surprise", 1, r"model\.core\.surprise: .* has no such argument"),
        ("model.core.hidden_size", 10**7, "has the shape"),
        ("model.core.hidden_size", 2**61, "describes no model"),
        ("model.core.hidden_size", -3, "describes no model"),
        ("model.embedding_size", -8, "describes no model"),
        ("model.embedding_size", 10**40, "describes no model"),
        ("model.core.dropout", float("nan"), r"model\.core\.dropout must be"),
        ("model", {"name": "lstm"}, r"model\.embedding_size is missing"),
        ("model", 3, "has no model"),
        ("model.core.dropout", "${oc.env:HOME}", "is an interpolation"),
    ],
)
def test_a_config_that_cannot_be(make_run: Callable[..., Path], key: str, value: Any, message: str):
    """Sizes that no memory could hold among them."""
    run_dir = make_run()
    if key == "model.core.dropout" and isinstance(value, str):
        path = run_dir / "config.yaml"
        config = yaml.safe_load(path.read_text("utf-8"))
        config["model"]["core"]["dropout"] = value
        path.write_text(json.dumps(config), "utf-8")
    else:
        change_config(run_dir, key, value)
    found = refusal(run_dir)
    assert str(run_dir / "config.yaml") in found
    with pytest.raises(UserError, match=message):
        lmbench.load(run_dir)


def state_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["state_dict"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: state_of(c).pop("model.head.bias"), "head.bias is missing"),
        (lambda c: state_of(c).clear(), "model.core.num_layers asks for more layers than"),
        (
            lambda c: state_of(c).update({"model.head.bias": torch.zeros(41, dtype=torch.cfloat)}),
            "head.bias is of torch.complex64",
        ),
        (lambda c: state_of(c).update(extra=torch.ones(1)), "extra is none of the model's"),
        (
            lambda c: state_of(c).update({"model.head.bias": torch.zeros(42)}),
            "head.bias has the shape (42,) instead of (41,)",
        ),
        (
            lambda c: state_of(c).update({"model.head.bias": torch.zeros(41, dtype=torch.int64)}),
            "head.bias is of torch.int64",
        ),
        (
            lambda c: state_of(c).update({"model.head.bias": torch.zeros(41).double()}),
            "head.bias is of torch.float64",
        ),
        (
            lambda c: state_of(c).update({"model.head.bias": torch.full((41,), torch.nan)}),
            "head.bias is not finite",
        ),
        (lambda c: c.pop(DATA), "does not name its corpus"),
        (lambda c: c[DATA].pop("words"), "does not name its corpus"),
        (lambda c: c[DATA].update(words="abc"), "vocabulary is no list of words"),
        (lambda c: c[DATA].update(words=[1, 2]), "vocabulary is no list of words"),
        (lambda c: c[DATA]["words"].append("<eos>"), "1 words are there more than once"),
        (lambda c: c[DATA]["words"].append("new"), "embedding.weight has the shape (41, 8)"),
        (lambda c: c[DATA]["words"].clear(), "embedding.weight has the shape (41, 8)"),
    ],
)
def test_a_checkpoint_that_cannot_be(make_run: Callable[..., Path], change: Any, message: str):
    run_dir = make_run()
    change_checkpoint(run_dir, change)
    found = refusal(run_dir)
    assert message in found
    assert str(run_dir / "checkpoints/best.ckpt") in found


@pytest.mark.parametrize("rank", [-1, 41, 5])
def test_an_order_of_words_that_is_none(make_run: Callable[..., Path], rank: int):
    run_dir = make_run("model=lstm", "model/head=adaptive_softmax")

    def change(checkpoint: dict[str, Any]) -> None:
        ranks = state_of(checkpoint)["model.head.word_ranks"]
        ranks[ranks == 7] = rank

    change_checkpoint(run_dir, change)
    assert "head.word_ranks is no order of the words" in refusal(run_dir)


def test_what_is_no_run(tmp_path: Path, make_run: Callable[..., Path]):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("nowhere", "empty", "file"):
        assert refusal(tmp_path / name).startswith(
            f"{tmp_path / name} is neither the directory of a "
        )
    assert refusal(tmp_path / ("x" * 300)).endswith("x cannot be read: File name too long.")
    run_dir = make_run()
    (run_dir / "checkpoints/best.ckpt").unlink()
    assert "best.ckpt cannot be read: No such file" in refusal(run_dir)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "cpu:x", torch.device("meta")])
def test_a_device_that_is_not_there(make_run: Callable[..., Path], device: Any):
    assert refusal(make_run(), device=device).startswith(f"device={device} cannot be used: ")


def test_auto_is_the_device_that_evaluate_takes(make_run: Callable[..., Path]):
    run_dir = make_run()
    for name in ("auto", "cpu", torch.device("cpu")):
        model, _ = lmbench.load(run_dir, device=name)
        assert model.embedding.weight.device.type == device_of(name).type


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room\nat 0x1"), TypeError("no room")])
def test_a_device_without_room(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception
):
    to = LanguageModel.to

    def full(model: LanguageModel, where: object) -> LanguageModel:
        if isinstance(where, torch.device):
            raise error
        return to(model, where)

    monkeypatch.setattr(LanguageModel, "to", full)
    assert refusal(make_run()) == "device=cpu cannot hold the model: no room"


def test_the_data_is_found_under_its_name_in_checkpoints():
    assert LanguageModelDataModule.__qualname__ == DATA

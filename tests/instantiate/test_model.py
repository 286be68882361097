"""Models from configs, runs and exports: the same numbers, and no stranger's code runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small import set_value
from torch import Tensor, nn

import lmbench
from lmbench.errors import UserError
from lmbench.files import read_json, read_yaml
from lmbench.instantiate import training as build
from lmbench.instantiate.arguments import factory
from lmbench.instantiate.model import build_model, build_saved
from lmbench.machine import device_of
from lmbench.model import LSTM, AdaptiveSoftmax, LanguageModel
from lmbench.model.contracts import CoreOutput
from lmbench.run.changes import resumed_config
from lmbench.run.config import read_run_config
from lmbench.run.targets import ALLOWED_TARGETS_VARIABLE
from lmbench.saved.checkpoint import DATA, read_run_model
from lmbench.saved.export import write_export

NODE = {
    "embedding_size": 6,
    "embedding_dropout": 0.25,
    "tied": False,
    "core": {"_target_": "lmbench.model.core.LSTM", "hidden_size": 5, "num_layers": 2},
    "head": {"_target_": "lmbench.model.head.AdaptiveSoftmax", "cutoffs": [3, 7]},
}


def test_a_plain_config_gives_a_model():
    counts = [5, 0, 3, 9, 1, 1, 2, 7, 7, 4, 6]
    train_ids = torch.repeat_interleave(torch.arange(11), torch.tensor(counts)).int().numpy()
    model = build_model(NODE, 11, train_ids)
    assert isinstance(model.core, LSTM)
    assert isinstance(model.head, AdaptiveSoftmax)
    assert model.embedding.dropout.p == 0.25
    assert [layer.hidden_size for layer in model.core.layers] == [5, 5]
    words = sorted(range(11), key=lambda word: (-counts[word], word))
    assert [words[rank] for rank in model.head.word_ranks] == list(range(11))
    assert model(torch.zeros(4, 2, dtype=torch.int64)).output.shape == (4, 2, 5)


@pytest.mark.parametrize("missing", NODE)
def test_a_missing_value_is_named(missing: str):
    node = {name: value for name, value in NODE.items() if name != missing}
    with pytest.raises(UserError, match=rf"^model: .*missing.*'{missing}'"):
        build_model(node, 11)


def test_what_a_core_or_head_lacks_is_named():
    node = {"_target_": "torch.nn.RNN", "hidden_size": 5}
    with pytest.raises(UserError, match=r"^model\.core: RNN lacks dropouts, output_size\. .*Core"):
        build_model({**NODE, "core": node}, 11)
    node = {"_target_": "torch.nn.Linear", "out_features": 11}
    with pytest.raises(UserError, match=r"^model\.head: missing .* 'in_features'"):
        build_model({**NODE, "head": node}, 11)


def test_an_item_of_the_wrong_type_is_refused_with_its_list():
    node = NODE | {"head": NODE["head"] | {"cutoffs": [3, "7"]}}
    with pytest.raises(UserError, match=r"^model\.head\.cutoffs=\[3, \"7\"\] has the wrong type"):
        build_model(node, 11)


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"embedding_size \(6\) .*output_size \(5\)"):
        build_model(NODE | {"tied": True}, 11)


MODELS = (
    "model=lstm",
    "model=lstm model.tied=false model.head.bias=false",
    "model=awd_lstm model.core.num_layers=2",
    "model=awd_lstm model/head=adaptive_softmax model.tied=false model.core.output_size=6",
    "model=lstm model/head=adaptive_softmax model.head.unigram_bias=true model.head.autocast=false",
)


def change_config(folder: Path, key: str, value: object) -> None:
    """Changes the config of a run or of an export."""
    path, read, write = folder / "config.yaml", read_yaml, yaml.safe_dump
    if not path.exists():
        path, read, write = folder / "config.json", read_json, json.dumps
    config = read(path)
    set_value(config, key, value)
    path.write_text(write(config), "utf-8")


def change_checkpoint(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run_dir / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


def exported(run_dir: Path, output: Path) -> Path:
    saved = read_run_model(run_dir)
    write_export(output, saved, build_saved(saved), corpus_name="synthetic", card="")
    return output


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        lmbench.load(path, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("overrides", MODELS)
def test_a_run_gives_its_model(make_run: Callable[..., Path], overrides: str):
    """The same, to the last bit, as the LightningModule built from the run's own config."""
    run_dir = make_run(*overrides.split())
    config = read_run_config(run_dir)
    corpus = factory(config["data"], "data")()
    module = build.module(config, build_model(config["model"], len(corpus.vocabulary)))
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
    assert (model.head.weight is model.embedding.weight) == config["model"]["tied"]
    assert model.num_parameters == module.model.num_parameters


def test_lightning_hydra_and_torchmetrics_are_not_needed(make_run: Callable[..., Path]):
    script = f"""
import sys
import lmbench
assert "torch" not in sys.modules
model, vocabulary = lmbench.load({str(make_run())!r})
print(len(vocabulary), model.num_parameters)
for name in ("lightning", "pytorch_lightning", "hydra", "torchmetrics"):
    assert name not in sys.modules, name
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    layers = sum(4 * h * (i + h) + 2 * 4 * h for i, h in ((8, 12), (12, 8)))
    assert result.stdout.split() == ["41", str(41 * 8 + layers + 41)]


def test_a_model_that_was_trained_with_a_fused_kernel_loads_without_its_library(make_run):
    run_dir = make_run()
    change_config(run_dir, "model.head.kernel", "liger")
    assert lmbench.load(run_dir).model.head.kernel == "liger"


class Recurrence(nn.Module):
    """A custom core, which reads a number from its weights when it is made."""

    dropouts = ()

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, output_size
        self.rnn = nn.RNN(input_size, output_size)
        self.first = self.rnn.weight_ih_l0.flatten()[0].item()

    def forward(self, input: Tensor, state: Any = None) -> CoreOutput:
        output, hidden = self.rnn(input, state[0][0] if state else None)
        return CoreOutput(output, output, ((hidden,),))


def test_a_custom_core_must_be_allowed(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = type(sys)("my_cores")
    module.Recurrence = Recurrence
    monkeypatch.setitem(sys.modules, "my_cores", module)
    run_dir = make_run()
    change_config(run_dir, "model.core", {"_target_": "my_cores.Recurrence", "output_size": 8})
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
    output = exported(run_dir, tmp_path / "export")
    for folder in (run_dir, output):
        model, _ = lmbench.load(folder)
        assert torch.equal(model.core.rnn.weight_hh_l0, weights["model.core.rnn.weight_hh_l0"])
    monkeypatch.delenv(ALLOWED_TARGETS_VARIABLE)
    assert f"{ALLOWED_TARGETS_VARIABLE}=my_cores.Recurrence" in refusal(output)


TARGETS = ("os.mkdir", "lmbench.model.head.Softmax", "lmbench.data.corpus.load_text", ["os.mkdir"])


@pytest.mark.parametrize("kind", ["run", "export"])
@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        *(("model.core._target_", target, "model.core names ") for target in TARGETS),
        ("model.head._target_", "lmbench.model.core.LSTM", "model.head names "),
        ("model.core._target_", None, "model.core names None"),
        ("model.core", None, "model.core=None"),
        ("model.core", {}, "model.core={}"),
        ("model.head", ["x"], "model.head=['x']"),
        ("model", {"name": "lstm"}, "model: missing a required argument: 'embedding_size'"),
        ("model", 3, ""),
        ("model.core.surprise", 1, "model.core.surprise"),
        ("model.surprise", {"_target_": "os.mkdir", "path": "here"}, "model.surprise"),
        ("model.core.hidden_size", 13, "size mismatch for core.layers.0.weight_ih_l0"),
        ("model.core.hidden_size", "many", 'model.core.hidden_size="many" has the wrong type'),
        ("model.core.hidden_size", "${oc.env:HOME}", "model.core.hidden_size"),
        ("model.core.num_layers", True, "model.core.num_layers=true has the wrong type"),
        ("model.core.num_layers", 3, "size mismatch for core.layers.1.weight_ih_l0"),
        ("model.core.num_layers", 1, "size mismatch for core.layers.0.weight_ih_l0"),
        ("model.core.dropout", 1.5, "model.core: dropout must be"),
        ("model.core.dropout", float("nan"), "model.core: dropout must be"),
        ("model.tied", "no", 'model.tied="no" has the wrong type'),
        ("model.tied", False, "head.weight"),
    ],
)
def test_a_strangers_config(
    make_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    key: str,
    value: Any,
    part: str,
):
    monkeypatch.chdir(tmp_path)
    folder = make_run()
    name = "config.yaml"
    if kind == "export":
        folder, name = exported(folder, tmp_path / "export"), "config.json"
    change_config(folder, key, value)
    if (kind, key, value) == ("run", "model.tied", False):  # all weights are there, under two names
        model = lmbench.load(folder).model
        assert model.head.weight is not model.embedding.weight
        return
    found = refusal(folder)
    assert str(folder / name) in found
    assert part in found
    assert not (tmp_path / "here").exists()


def state_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["state_dict"]


def with_bias(bias: Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda checkpoint: state_of(checkpoint).update({"model.head.bias": bias})


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda c: state_of(c).pop("model.head.bias"), "head.bias is missing"),
        (lambda c: state_of(c).update(extra=torch.ones(1)), "the model has no extra"),
        (with_bias(torch.zeros(42)), "size mismatch for head.bias"),
        (lambda c: c[DATA]["words"].append("new"), "size mismatch for embedding.weight"),
        (
            lambda c: state_of(c).update({"model.head.weight": torch.zeros(41, 8)}),
            "embedding.weight and head.weight differ",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit(make_run: Callable[..., Path], change: Any, part: str):
    run_dir = make_run()
    change_checkpoint(run_dir, change)
    found = refusal(run_dir)
    assert part in found
    assert str(run_dir / "checkpoints/best.ckpt") in found


def test_what_is_not_a_model(tmp_path: Path, make_run: Callable[..., Path]):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("nowhere", "empty", "file", "x" * 300):
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name} is neither")
    run_dir = make_run()
    (run_dir / "checkpoints/best.ckpt").unlink()
    assert "has no best.ckpt yet" in refusal(run_dir)
    (run_dir / "config.yaml").write_text("a: &a [x]\nb: *a\n")
    for read in (lmbench.load, read_run_config, lambda path: resumed_config(path, [])):
        with pytest.raises(UserError, match=r"config\.yaml is damaged: .*aliases"):
            read(run_dir)


def test_devices_are_named_as_in_the_commands(make_run: Callable[..., Path]):
    run_dir = make_run()
    for name in ("auto", "cpu", torch.device("cpu")):
        model, _ = lmbench.load(run_dir, device=name)
        assert model.embedding.weight.device.type == device_of(name).type
    assert refusal(run_dir, device="cuda:99").startswith("device=cuda:99 cannot be used: ")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room\nat 0x1"), TypeError("no room")])
def test_a_device_without_enough_memory(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception
):
    to = LanguageModel.to

    def full(model: LanguageModel, where: object) -> LanguageModel:
        if isinstance(where, torch.device):
            raise error
        return to(model, where)

    monkeypatch.setattr(LanguageModel, "to", full)
    assert refusal(make_run()) == "device=cpu cannot hold the model: no room"

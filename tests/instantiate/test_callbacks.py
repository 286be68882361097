"""Lightning's own callbacks in a run: which are allowed, and that such a run can be resumed."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.plugins import DoublePrecision
from small import composed, small_config

from lmbench.callbacks.checkpoints import Checkpoints
from lmbench.callbacks.weight_average import WeightAverage
from lmbench.cli.evaluate import evaluate
from lmbench.cli.train import train
from lmbench.errors import UserError
from lmbench.files import read_json
from lmbench.instantiate import training as build
from lmbench.instantiate._callbacks import build_callbacks
from lmbench.run.changes import resumed_config
from lmbench.run.choice import ChosenRun
from lmbench.run.targets import ALSO_KNOWN, INSTEAD, PLACES, import_target, require_known_targets

pytestmark = pytest.mark.usefixtures("matmul_precision")


def of(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"lightning.pytorch.callbacks.{name}", **options}


def config_with(*nodes: dict[str, Any], model: str = "lstm", **options: Any) -> dict[str, Any]:
    config = small_config("logger=csv", model=model, **options)
    config["callbacks"] |= {f"mine_{number}": node for number, node in enumerate(nodes)}
    return config


def test_the_classes_that_are_listed_exist():
    for target in (*ALSO_KNOWN["callbacks"], *ALSO_KNOWN["logger"]):
        assert isinstance(import_target(target), type)
    assert INSTEAD.keys() <= set(of_lightning.__all__)


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("lightning.pytorch.callbacks.EarlyStoping", "EarlyStopping"),
        ("pytorch_lightning.callbacks.EarlyStopping", "mean lightning.pytorch.callbacks.Early"),
        ("EarlyStopping", "mean lightning.pytorch.callbacks.EarlyStopping"),
        ("lightning.pytorch.callbacks.Timer", "max_time"),
        ("lightning.pytorch.callbacks.LearningRateMonitor", "has the learning rate already"),
        ("lightning.pytorch.callbacks.callback.Any", "callback.Any"),
        ("lightning.pytorch.callbacks.timer.os.system", "os.system"),
        ("os.system", "os.system"),
    ],
)
def test_other_classes_are_refused(target: str, part: str):
    with pytest.raises(UserError, match=rf"callbacks\.mine_0.*{part}"):
        require_known_targets(config_with({"_target_": target}), PLACES, "here")


@pytest.mark.parametrize(
    ("nodes", "part"),
    [
        ([of("EarlyStopping", monitor="valid/ppl")], r"monitor=valid/ppl.*val/ppl"),
        ([of("EarlyStopping", monitor="train/ppl")], r"monitor=train/ppl.*val/ppl"),
        ([of("EarlyStopping")], r"monitor"),
        ([of("EarlyStopping", monitor="val/ppl", pateince=2)], r"pateince"),
        ([of("ModelCheckpoint", dirpath="mine")], r"dirpath is set by lmbench itself"),
        ([of("ModelCheckpoint", filename="../{epoch}")], r"filename=\.\./"),
    ],
)
def test_what_does_not_work_is_refused(tmp_path: Path, nodes: list[dict[str, Any]], part: str):
    with pytest.raises(UserError, match=part):
        build_callbacks(config_with(*nodes), tmp_path)


def test_the_name_of_a_callback_leads_to_no_other_folder(tmp_path: Path):
    config = config_with()
    config["callbacks"]["../mine"] = of("ModelCheckpoint")
    with pytest.raises(UserError, match=r"outside the run's folder"):
        build_callbacks(config, tmp_path)


def test_averaged_sgd_without_its_averages_has_to_be_asked_for(tmp_path: Path):
    config = config_with(model="awd_lstm")
    del config["callbacks"]["nt_asgd"]
    with pytest.raises(UserError, match=r"without callbacks\.nt_asgd"):
        build_callbacks(config, tmp_path)
    config["callbacks"]["nt_asgd"] = None
    assert build_callbacks(config, tmp_path)


AVERAGE = {"_target_": "lmbench.callbacks.weight_average.WeightAverage", "eta": 2}


def test_two_averages_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="nt_asgd"):
        build_callbacks(config_with(AVERAGE, model="awd_lstm"), tmp_path)


@pytest.mark.parametrize("nodes", [{"model": "awd_lstm"}, {"callbacks__average": AVERAGE}])
def test_an_average_in_low_precision_is_refused(nodes: dict[str, Any], tmp_path: Path):
    """In bfloat16, a thousandth of a difference of 1 is lost."""
    one = torch.ones(1, dtype=torch.bfloat16)
    assert torch.equal(one.lerp(2 * one, 1e-3), one)
    config = small_config(**nodes, trainer__precision="bf16-true")
    with pytest.raises(UserError, match=r"trainer\.precision=bf16-true.*Set .*bf16-mixed"):
        build_callbacks(config, tmp_path)


def test_a_progress_bar_of_lightning_replaces_ours(tmp_path: Path):
    config = small_config(
        callbacks__progress___target_="lightning.pytorch.callbacks.TQDMProgressBar"
    )
    names = [type(callback).__name__ for callback in build_callbacks(config, tmp_path)]
    assert "TQDMProgressBar" in names
    assert "Progress" not in names
    for of_run, number in ((config, 1), (small_config(), 0)):
        made = build.trainer(of_run, tmp_path).callbacks
        assert sum(isinstance(one, L.pytorch.callbacks.ProgressBar) for one in made) == number


def test_early_stopping_ends_a_run_for_good(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """No epoch gains 50, so the second one ends the run; a resume trains no further."""
    node = of("EarlyStopping", monitor="val/ppl", min_delta=50.0, patience=1)
    config = config_with(node, trainer__max_epochs=5, trainer__limit_train_batches=5)
    config["trainer"]["log_every_n_steps"] = 5
    train(ChosenRun(config), tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    assert read_json(tmp_path / "results.json")["train"]["epochs"] == 2
    with caplog.at_level(logging.INFO):
        train(ChosenRun(resumed_config(tmp_path, [])[0], resumes=True), tmp_path)
    said = "nothing was left to train: early stopping has ended the run; testing again"
    assert said in caplog.messages
    assert read_json(tmp_path / "results.json")["train"]["steps"] == 10
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_what_a_model_checkpoint_saves_lies_beside_lmbenchs_own(tmp_path: Path):
    node = of("ModelCheckpoint", monitor="val/ppl", filename="best", save_last=True)
    train(ChosenRun(config_with(node, trainer__max_steps=4)), tmp_path)
    ours = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    theirs = torch.load(tmp_path / "mine_0/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
    }


def test_a_checkpoint_has_what_a_model_checkpoint_did_in_its_epoch(tmp_path: Path):
    node = of("ModelCheckpoint", monitor="val/ppl")
    train(ChosenRun(config_with(node, trainer__max_epochs=1)), tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    (state,) = (x for key, x in checkpoint["callbacks"].items() if "ModelCheckpoint" in key)
    (saved,) = (tmp_path / "mine_0").iterdir()
    assert state["best_model_path"] == str(saved)


def test_the_results_are_those_of_the_weights_that_are_tested(tmp_path: Path):
    """After a resume from before the best epoch, another epoch may seem to be the best."""
    train(ChosenRun(config_with(trainer__max_epochs=2, trainer__limit_train_batches=5)), tmp_path)
    path = tmp_path / "checkpoints/best.ckpt"
    best = torch.load(path, weights_only=True)
    torch.save(best | {"best": (7, 10.0, 20, 0)}, path)
    train(ChosenRun(resumed_config(tmp_path, [])[0], resumes=True), tmp_path)
    results = read_json(tmp_path / "results.json")
    assert (results["best_epoch"], results["val"]["nll"]) == (7, 0.5)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # which exists in a resume
def test_a_checkpoint_names_no_files_for_lightning_to_remove(tmp_path: Path):
    """Lightning does not check whether a path with a protocol lies in the checkpoints' folder."""
    node = of("ModelCheckpoint")
    train(ChosenRun(config_with(node, scheduler=None, trainer__max_steps=4)), tmp_path)
    path, precious = tmp_path / "checkpoints/last.ckpt", tmp_path / "precious"
    precious.mkdir()
    checkpoint = torch.load(path, weights_only=True)
    (state,) = (x for key, x in checkpoint["callbacks"].items() if "ModelCheckpoint" in key)
    state["best_model_path"] = f"local://{precious}"
    torch.save(checkpoint, path)
    config, changed = resumed_config(tmp_path, ["trainer.max_steps=8"])
    with pytest.raises(UserError, match="names a URL"):
        train(ChosenRun(config, resumes=True, changed=changed), tmp_path)
    assert precious.is_dir()


def test_an_average_is_kept_where_the_weights_will_be():
    """Lightning sets callbacks up before it moves the model to the device and converts it."""
    module, meta = L.LightningModule(), torch.device("meta")
    module.layer = torch.nn.Linear(2, 3)
    average = WeightAverage(2.0)
    strategy = SimpleNamespace(root_device=meta)
    trainer = SimpleNamespace(strategy=strategy, precision_plugin=DoublePrecision())
    average.setup(trainer, module, "fit")
    weight = average._average_model.module.layer.weight
    assert (weight.device, weight.dtype) == (meta, torch.float64)


def test_an_average_is_what_is_validated_saved_and_tested(tmp_path: Path):
    """Against an average that is made here, from all steps' weights at once."""
    path = tmp_path / "checkpoints"
    config = config_with(AVERAGE, trainer__max_epochs=1)
    config["trainer"] |= {"limit_train_batches": 6, "log_every_n_steps": 6}
    raw: list[dict[str, torch.Tensor]] = []
    saving = Checkpoints.on_train_batch_start

    def note(self, trainer, pl_module, batch, batch_idx) -> None:
        raw.append({key: x.clone() for key, x in pl_module.state_dict().items()})
        saving(self, trainer, pl_module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_start", note)
        train(ChosenRun(config), tmp_path)
    saved = torch.load(path / "best.ckpt", weights_only=True)
    raw.append(saved["current_model_state"])
    counts = [t * (t + 1) / 2 for t in range(1, 7)]  # the shares of steps with eta 2
    average = {
        key: sum(count * x[key] for count, x in zip(counts, raw[1:], strict=True)) / sum(counts)
        for key in raw[1]
    }
    for key, x in saved["state_dict"].items():
        torch.testing.assert_close(x, average[key])
        assert not torch.equal(x, raw[-1][key])
    results = read_json(tmp_path / "results.json")
    for split, name in (("valid", "val"), ("test", "test")):
        evaluate(composed(f"run={tmp_path}", f"split={split}", name="evaluate"), "standard")
        nll = read_json(tmp_path / f"evaluation-standard-{split}.json")["nll"]
        assert results[name]["nll"] == pytest.approx(nll, rel=1e-5)

"""The loggers of a run: which there are, and what W&B and MLflow hold at its end."""

from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from small import composed, small_config

from lmbench.callbacks.metrics_csv import MetricsCSV
from lmbench.cli.train import train
from lmbench.errors import Interrupted, UserError
from lmbench.files import read_json
from lmbench.instantiate import training as build
from lmbench.instantiate.loggers import _ended, _mlflow_id, _wandb_id, build_loggers
from lmbench.run.changes import resumed_config
from lmbench.run.choice import ChosenRun

CSV = {"_target_": "lightning.pytorch.loggers.CSVLogger"}
pytestmark = pytest.mark.usefixtures("matmul_precision")


class Stopping(L.Callback):
    """Ends the run as a signal does, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise Interrupted(15)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains a run up to a step, then to its end as a resume with an unchanged config does."""

    def run(config: dict[str, Any], run_dir: Path, step: int) -> None:
        make = build.trainer
        with monkeypatch.context() as patch:
            patch.setattr(
                build,
                "trainer",
                lambda *args, more, **options: make(*args, more=[*more, Stopping(step)], **options),
            )
            with pytest.raises(Interrupted):
                train(ChosenRun(config), run_dir)
        again, changed = resumed_config(run_dir, [])
        train(ChosenRun(again, resumes=True, changed=changed), run_dir)

    return run


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [
        ("csv", [MetricsCSV]),
        ("tensorboard", [MetricsCSV, TensorBoardLogger]),
        ("[csv,tensorboard]", [MetricsCSV, TensorBoardLogger]),
    ],
)
def test_metrics_csv_is_written_beside_any_logger(tmp_path: Path, choice: str, kinds: list[type]):
    config = small_config(f"logger={choice}")
    assert [type(logger) for logger in build_loggers(config, tmp_path)] == kinds
    assert set(composed("logger=[tensorboard,wandb,mlflow]").logger) == {
        "csv",
        "tensorboard",
        "wandb",
        "mlflow",
    }


def test_a_runs_name_leads_no_tensorboard_elsewhere(tmp_path: Path):
    _, board = build_loggers(small_config("logger=tensorboard") | {"name": "../../a b"}, tmp_path)
    assert isinstance(board, TensorBoardLogger)
    assert Path(board.log_dir).resolve() == tmp_path.resolve() / "..-..-a-b_seed_1"


def test_another_logger_changes_no_metric(tmp_path: Path):
    alone, beside = folder(tmp_path, "alone"), folder(tmp_path, "beside")
    options = {"trainer__max_steps": 10, "trainer__log_every_n_steps": 2}
    train(ChosenRun(small_config("logger=csv", **options)), alone)
    train(ChosenRun(small_config(**options, logger__mine=CSV)), beside)
    assert (alone / "metrics.csv").read_bytes() == (beside / "metrics.csv").read_bytes()
    (theirs,) = beside.glob("lightning_logs/version_0/metrics.csv")
    text = theirs.read_text()
    assert str(read_json(beside / "results.json")["test"]["ppl"]) in text
    assert "best/test_ppl" in text
    assert "max_steps: 10" in theirs.with_name("hparams.yaml").read_text()


@pytest.mark.parametrize(
    ("logger", "part"),
    [
        ({**CSV, "name": "../x"}, r"logger\.mine\.name=\.\./x"),
        ({**CSV, "name": "/x"}, r"logger\.mine\.name=/x"),
        ({**CSV, "name": "local:///x"}, r"logger\.mine\.name"),
        ({**CSV, "version": "all"}, r"logger\.mine\.version is set by lmbench"),
        ({"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "log_dir": "/"}, "log_dir"),
        ({"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "foo": 1}, "foo cannot be"),
        ({"_target_": "lightning.pytorch.loggers.WandbLogger", "settings": {}}, "settings"),
        ({"_target_": "lightning.pytorch.loggers.MLFlowLogger", "artifact_location": "/"}, "art"),
        ({"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "x"}, "tracking"),
    ],
)
def test_a_config_lets_no_logger_write_elsewhere(tmp_path: Path, logger: dict[str, Any], part: str):
    with pytest.raises(UserError, match=part):
        build_loggers(small_config(logger__mine=logger), tmp_path)


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_what_installs_it(tmp_path: Path, package: str):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=rf"pip install -e '\.\[{package}\]'"):
        build_loggers(small_config(f"logger={package}"), tmp_path)


def test_a_resume_finds_the_ids_of_its_run(tmp_path: Path):
    assert _wandb_id(tmp_path) is None
    for name in ("run-20260203_101500-older", "offline-run-20270101_000000-newer", "run-x"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "mlflow_run_id").write_text("0" * 32)
    # Without a checkpoint, it begins anew.
    assert _wandb_id(tmp_path) is None
    assert _mlflow_id(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    assert _wandb_id(tmp_path) == "newer"
    assert _mlflow_id(tmp_path) == "0" * 32


@pytest.mark.parametrize(
    ("error", "exit_code", "status"),
    [
        (None, 0, "FINISHED"),
        (KeyboardInterrupt(), 130, "KILLED"),
        (Interrupted(15), 130, "KILLED"),
        (UserError("wrong"), 1, "FAILED"),
    ],
)
def test_records_elsewhere_end_as_the_run_does(
    error: BaseException | None, exit_code: int, status: str
):
    ended: list[Any] = []
    wandb = SimpleNamespace(finish=lambda **values: ended.append(values))
    mlflow = SimpleNamespace(set_terminated=lambda run_id, status: ended.append((run_id, status)))
    loggers = [
        type("Wandb", (WandbLogger,), {"experiment": wandb}),
        type("MLflow", (MLFlowLogger,), {"experiment": mlflow, "run_id": "7"}),
    ]
    made = [kind.__new__(kind) for kind in loggers]  # without the packages
    with pytest.raises(type(error)) if error else nullcontext(), _ended(made):
        if error is not None:
            raise error
    assert ended == [{"exit_code": exit_code}, ("7", status)]


@pytest.mark.slow
def test_wandb_continues_one_run_and_begins_another_for_the_next_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Any
):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    one, other = folder(tmp_path, "one"), folder(tmp_path, "other")
    config = small_config("logger=wandb", logger__wandb__offline=True, trainer__max_steps=10)
    stopped(config, one, step=6)
    assert wandb.run is None  # it has ended
    train(ChosenRun(config | {"seed": 2}), other)
    ids = [[path.name[-8:] for path in run.glob("wandb/offline-run-*")] for run in (one, other)]
    assert len(ids[0]) == 2
    assert len({*ids[0]}) == 1
    assert not {*ids[0]} & {*ids[1]}
    assert not [x for x in one.rglob("*") if x.is_symlink() and not x.resolve().is_relative_to(one)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own, about its database
def test_mlflow_continues_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Any):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_dir = folder(tmp_path, "one")
    config = small_config("logger=mlflow", trainer__max_epochs=2, trainer__limit_train_batches=5)
    stopped(config, run_dir, step=6)
    client = mlflow.MlflowClient(uri)
    (experiment,) = (x for x in client.search_experiments() if x.name == "lmbench")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "lstm_seed_1"
    assert found.info.status == "FINISHED"
    assert found.data.params["trainer/max_epochs"] == "2"
    steps = [x.step for x in client.get_metric_history(found.info.run_id, "val/ppl")]
    assert steps == [4, 9]
    expected = read_json(run_dir / "results.json")["test"]["ppl"]
    assert found.data.metrics["best/test_ppl"] == pytest.approx(expected)

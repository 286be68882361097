"""Short runs of any experiment: debug=fast, overfit and profile."""

import csv
from pathlib import Path

import pytest
from small import SMALL, composed, config_of

from lmbench.cli.train import train
from lmbench.files import read_json
from lmbench.instantiate import training as build
from lmbench.run.choice import ChosenRun
from lmbench.run.targets import PLACES, conf_dir, require_known_targets

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
TINY = (*SMALL, "data.num_train_tokens=4000")
SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("matmul_precision")


@pytest.mark.parametrize(
    "debug", ["fast", *(pytest.param(kind, marks=SLOW) for kind in ("overfit", "profile"))]
)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_any_experiment_can_be_debugged(experiment: str, debug: str):
    """Its run is short, and cannot be mistaken for the experiment."""
    config = composed(f"experiment={experiment}", f"debug={debug}", "init_from=x", "++data.path=x")
    plain = config_of(f"experiment={experiment}", f"debug={debug}", "init_from=x", "++data.path=x")
    build.require_known_keys(plain)
    require_known_targets(plain, PLACES, "here")
    assert config.name.endswith("_debug")
    assert config.trainer.max_time is None
    assert config.trainer.max_epochs * config.trainer.limit_train_batches <= 800


@pytest.mark.parametrize("debug", ["fast", "overfit", "profile"])
def test_a_debugged_run_is_logged_here_alone(debug: str):
    both = composed(f"debug={debug}", "logger=[tensorboard,wandb,mlflow]").logger
    assert (both.wandb, both.mlflow) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        ("experiment=cpu_hour", "model.head.cutoffs=[10]", "batching.shuffle_articles=false"),
        ("experiment=quickstart_awd_lstm",),
        ("experiment=awd_lstm_wikitext2_90",),
        ("model=lstm", "scheduler=plateau"),
    ],
)
def test_fast_does_a_little_of_everything(tmp_path: Path, choice: tuple[str, ...]):
    train(ChosenRun(config_of(*choice, "debug=fast", *TINY)), tmp_path)
    results = read_json(tmp_path / "results.json")
    assert (results["train"]["epochs"], results["train"]["steps"]) == (2, 10)
    assert results["val"]["ppl"] > 1
    assert results["test"]["ppl"] > 1
    assert (tmp_path / "checkpoints/last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        ("experiment=quickstart_awd_lstm",),
        ("model=lstm", "data=synthetic"),
        ("experiment=cores_synthetic", "model/core=min_gru"),
        ("experiment=cpu_hour", "data=synthetic", "model.head.cutoffs=[100]"),
    ],
)
def test_overfit_learns_its_windows_by_heart(tmp_path: Path, choice: tuple[str, ...]):
    train(ChosenRun(config_of(*choice, "debug=overfit")), tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [float(row["train/ppl"]) for row in csv.DictReader(file) if row["train/ppl"]]
    assert rows[0] > 100
    assert rows[-1] < 1.5


def test_profile_leaves_its_report_in_the_run(tmp_path: Path):
    config = config_of(
        "model=lstm", "debug=profile", *TINY, "batching.batch_size=4", "batching.bptt=5"
    )
    train(ChosenRun(config), tmp_path)
    assert "LanguageModelModule.optimizer_step" in (tmp_path / "fit-profile.txt").read_text()

"""The comparison of runs must find every difference."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from chaos import compare, unequal
from small import small_config
from torch.utils.tensorboard import SummaryWriter

from lmbench.cli.train import train
from lmbench.run.choice import ChosenRun


def content() -> dict:
    return {
        "weights": {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3])},
        "rows": [1, (2.0, "three")],
        "train": {"seconds": 1.0, "tokens_per_second": 2.0, "steps": 3},
        "environment": {"torch": "2"},
    }


def test_times_and_the_environment_may_differ():
    other = content()
    other["train"]["seconds"] = other["train"]["tokens_per_second"] = 9.0
    other["environment"] = None
    assert unequal(content(), other) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda c: c["weights"]["w"].add_(torch.tensor([0.0, 2**-22])), ".weights.w"),
        (lambda c: c["weights"].update(b=torch.tensor([3.0])), ".weights.b"),
        (lambda c: c["weights"].update(b=[3]), ".weights.b"),
        (lambda c: c["weights"].pop("b"), ".weights"),
        (lambda c: c["rows"].append(4), ".rows"),
        (lambda c: c["rows"].__setitem__(1, (2.0, "four")), ".rows[1][1]"),
        (lambda c: c["train"].update(steps=4), ".train.steps"),
    ],
)
def test_a_difference_is_named(change, found):
    other = content()
    change(other)
    assert unequal(content(), other) == [found]


def count_a_step_more(run_dir: Path, name: str) -> None:
    path = run_dir / "checkpoints" / name
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["global_step"] += 1
    path.unlink()  # best.ckpt and last.ckpt may be one file
    torch.save(checkpoint, path)


def change_results(run_dir: Path) -> None:
    path = run_dir / "results.json"
    results = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(results | {"seed": 5}), "utf-8")


def log_once_more(run_dir: Path) -> None:
    (folder,) = run_dir.glob("*_seed_*")
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("val/ppl", 3.0, 9)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    train(ChosenRun(small_config("logger=tensorboard", trainer__max_steps=4)), run_dir)
    return run_dir


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda run: None, []),
        (lambda run: (run / "metrics.csv").write_text(""), ["metrics.csv"]),
        (lambda run: count_a_step_more(run, "last.ckpt"), ["last.ckpt: .global_step"]),
        (lambda run: count_a_step_more(run, "best.ckpt"), ["best.ckpt: .global_step"]),
        (change_results, ["results.json: .seed"]),
        (log_once_more, ["TensorBoard: .val/ppl"]),
    ],
)
def test_a_difference_between_runs_is_named(
    run_dir: Path, tmp_path: Path, change: Callable[[Path], object], found: list[str]
):
    other = Path(shutil.copytree(run_dir, tmp_path / "other"))
    change(other)
    assert compare(run_dir, other) == found

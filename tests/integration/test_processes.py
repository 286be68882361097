"""Two processes on the CPU against one, with the same columns in total."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL
from torch.testing import assert_close
from trainings import command

ARGUMENTS = (
    "model=awd_lstm",
    *SMALL,
    "data.num_train_tokens=3000",
    "data.num_test_tokens=201",
    "model.embedding_dropout=0",
    *(f"model.core.{place}_dropout=0" for place in ("input", "hidden", "output", "weight")),
    "optimizer.lr=1",
    "batching.bptt=20",
    "evaluation.columns=4",
    "trainer.precision=64-true",
    "trainer.max_steps=20",
    "trainer.log_every_n_steps=1",
)
TWO = ("trainer.devices=2", "trainer.strategy=ddp")


def train(folder: Path, *overrides: str) -> None:
    result = command(folder, *ARGUMENTS, *overrides, "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("averaged", [False, True])
def test_two_processes_train_as_one(tmp_path: Path, averaged: bool):
    """To 1e-6, over 20 steps with penalties, clipping and variable windows."""
    start = f"callbacks.nt_asgd.average_from_start={str(averaged).lower()}"
    runs = []
    for name, overrides in (("one", ()), ("two", TWO)):
        train(tmp_path / name, *overrides, start)
        run = tmp_path / name / "run"
        checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        runs.append((json.loads((run / "results.json").read_text()), checkpoint["state_dict"]))
    (one, weights), (two, same_weights) = runs
    assert one["train"]["steps"] == two["train"]["steps"] == 20
    assert one["train"]["tokens"] == two["train"]["tokens"]
    assert two["val"]["num_tokens"] == 299  # each target once, over both processes
    assert two["test"]["num_tokens"] == 200
    for split in ("val", "test"):
        assert two[split]["ppl"] == pytest.approx(one[split]["ppl"], rel=1e-6)
    losses, same_losses = (
        np.genfromtxt(tmp_path / name / "run/metrics.csv", delimiter=",", names=True)["trainnll"]
        for name in ("one", "two")
    )
    assert np.isfinite(losses).sum() == 20
    np.testing.assert_allclose(same_losses, losses, rtol=1e-6)
    assert_close(same_weights, weights, rtol=1e-6, atol=1e-9)
    print(f"\nval/nll {two['val']['nll']:.9f} with two processes, {one['val']['nll']:.9f} with one")


@pytest.mark.slow
def test_two_processes_continue_as_if_they_had_never_stopped(tmp_path: Path):
    """With dropout, whose masks each process draws for itself."""
    more = (*TWO, "model.core.output_dropout=0.5", "trainer.max_steps=-1")
    for name, num_epochs in (("whole", 2), ("parts", 1)):
        train(tmp_path / name, *more, f"trainer.max_epochs={num_epochs}")
    result = command(tmp_path / "parts", "resume=run", "trainer.max_epochs=2")
    assert result.returncode == 0, result.stderr
    whole, parts = (tmp_path / name / "run" for name in ("whole", "parts"))
    assert (parts / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert len((whole / "metrics.csv").read_text().splitlines()) > 2 * 30

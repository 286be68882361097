"""``lmbench-train`` stopped in many ways, and ``resume=`` after each."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chaos import compare, unequal
from small import SMALL
from trainings import command, refusal, start

from lmbench.cli.output_folder import PROBE_BYTES

CHAOS = Path(__file__).parents[2] / "scripts/chaos.py"
NUM_EPOCHS = 10
ARGUMENTS = (
    "model=awd_lstm",
    *SMALL,
    "data.num_train_tokens=4000",
    "batching.bptt=10",
    # At such a learning rate validation goes up and down, and stalls early in the run.
    "optimizer.lr=40",
    "callbacks.nt_asgd.non_monotone_interval=1",
    f"trainer.max_epochs={NUM_EPOCHS}",
    "trainer.log_every_n_steps=3",
)

pytestmark = pytest.mark.slow


def end(process: "subprocess.Popen[str]") -> str:
    """Waits for the process to end; returns its stderr."""
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    return said


def wait_until(happened: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline
        time.sleep(0.002)


def num_rows(run_dir: Path) -> int:
    path = run_dir / "metrics.csv"
    return len(path.read_text("utf-8").splitlines()) - 1 if path.exists() else 0


def finish(folder: Path, *arguments: str) -> None:
    result = command(folder, *arguments)
    assert result.returncode == 0, result.stderr


def results_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "results.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, *ARGUMENTS, "hydra.run.dir=run")
    run_dir = folder / "run"
    triggered = results_of(run_dir)["nt_asgd"]["triggered_epoch"]
    assert triggered is not None
    assert 0 < triggered < NUM_EPOCHS - 2, "too late to be stopped while it averages"
    return run_dir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Path:
    """The directory of a run stopped by SIGTERM within an epoch, when it already averages."""
    folder = tmp_path_factory.mktemp("stopped")
    run_dir = folder / "run"
    process = start(folder, *ARGUMENTS, "hydra.run.dir=run")
    rows = whole.joinpath("metrics.csv").read_text("utf-8").splitlines()
    epoch = results_of(whole)["nt_asgd"]["triggered_epoch"] + 1
    first = next(i for i, row in enumerate(rows) if row.split(",")[1] == str(epoch))
    wait_until(lambda: num_rows(run_dir) > first + 2, process)
    process.send_signal(signal.SIGTERM)
    said = end(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"lmbench-train resume={run_dir}" in said
    last = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert "raw" in last["callbacks"]["NTASGD"]
    assert not (run_dir / "results.json").exists()
    return run_dir


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run, to be resumed."""
    return shutil.copytree(stopped, tmp_path / "run")


def test_a_run_that_is_stopped_again_and_again_ends_the_same(whole: Path, tmp_path: Path):
    """Resumed by the command that each stop names, in a folder with a difficult name."""
    run_dir = tmp_path / "ein Lauf, lr=1 'é'"
    quoted = str(run_dir).replace("'", "\\'")
    arguments = [*ARGUMENTS, f"hydra.run.dir='{quoted}'"]
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        process = start(tmp_path, *arguments)
        enough = num_rows(run_dir) + 25
        wait_until(lambda enough=enough: num_rows(run_dir) > enough, process)
        process.send_signal(signum)
        said = end(process)
        assert process.returncode == 128 + signum
        assert not (run_dir / "results.json").exists()
        (line,) = [line for line in said.splitlines() if line.startswith("Stopped. To resume: ")]
        name, *arguments = shlex.split(line.removeprefix("Stopped. To resume: "))
        assert name == "lmbench-train"
    finish(tmp_path, *arguments)
    assert compare(whole, run_dir) == []
    log = (run_dir / "train.log").read_text("utf-8")
    assert [log.count(f"{name}: saving") for name in ("SIGTERM", "SIGINT", "SIGUSR1")] == [1] * 3


def test_a_run_without_a_checkpoint_starts_over_and_overrides_are_kept(whole: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    process = start(tmp_path, *ARGUMENTS, "hydra.run.dir=run")
    wait_until(lambda: num_rows(run_dir) > 0, process)
    process.kill()
    end(process)
    assert process.returncode == -signal.SIGKILL
    assert not (run_dir / "checkpoints").exists()
    for number in (2, 3):
        finish(tmp_path, "resume=run", f"trainer.max_epochs={number}")
        assert results_of(run_dir)["train"]["epochs"] == number
        config = yaml.safe_load((run_dir / "config.yaml").read_text("utf-8"))
        assert config["trainer"]["max_epochs"] == number
    # The rows of the first epochs of the longer run, then that of the test.
    rows, of_whole = (
        path.joinpath("metrics.csv").read_text("utf-8").splitlines() for path in (run_dir, whole)
    )
    assert rows[:-1] == of_whole[: len(rows) - 1]
    assert {row.split(",")[1] for row in rows[1:-1]} == {"0", "1", "2"}
    assert rows[-1].split(",")[1] == str(results_of(run_dir)["best_epoch"])  # of the test
    # A finished run is only tested again.
    before = results_of(run_dir)
    checkpoints = {p.name: p.read_bytes() for p in (run_dir / "checkpoints").iterdir()}
    finish(tmp_path, "resume=run")
    assert not unequal(results_of(run_dir), before)
    assert results_of(run_dir)["train"]["epochs"] == 3
    assert (run_dir / "metrics.csv").read_text("utf-8").splitlines() == rows
    assert {p.name: p.read_bytes() for p in (run_dir / "checkpoints").iterdir()} == checkpoints
    # Someone makes room, and forgets.
    before = results_of(run_dir)
    for name in ("last", "previous"):
        (run_dir / f"checkpoints/{name}.ckpt").unlink(missing_ok=True)
    assert "without last.ckpt it cannot be resumed" in refusal(tmp_path, "resume=run")
    assert results_of(run_dir) == before
    assert (run_dir / "checkpoints/best.ckpt").read_bytes() == checkpoints["best.ckpt"]


def test_a_full_disk_leaves_the_last_checkpoint_whole(copy: Path, tmp_path: Path):
    """Simulated by a limit on file sizes that only a checkpoint exceeds."""
    last = copy / "checkpoints/last.ckpt"
    before = last.read_bytes()
    assert len(before) > PROBE_BYTES  # with which lmbench probes the folder

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (PROBE_BYTES, PROBE_BYTES))

    message = refusal(tmp_path, "resume=run", preexec_fn=limit_files)
    assert "File too large. To resume: lmbench-train resume=" in message
    assert last.read_bytes() == before
    assert {path.name for path in last.parent.iterdir()} <= {
        "last.ckpt",
        "previous.ckpt",
        "best.ckpt",
    }


def test_after_damage_the_previous_checkpoint_is_offered_and_works(
    copy: Path, whole: Path, tmp_path: Path
):
    last, previous = (copy / f"checkpoints/{name}.ckpt" for name in ("last", "previous"))
    last.write_bytes(last.read_bytes()[:-1000])
    message = refusal(tmp_path, "resume=run")
    assert "last.ckpt is damaged" in message
    assert "previous.ckpt: rename that to last.ckpt" in message
    previous.rename(last)
    finish(tmp_path, "resume=run")
    assert compare(whole, copy) == []


def test_inner_damage_of_a_checkpoint_is_reported_in_one_paragraph(copy: Path, tmp_path: Path):
    """The checkpoint can be read, and holds what is looked for first."""
    last = copy / "checkpoints/last.ckpt"
    whole = torch.load(last, weights_only=True)
    metrics = (copy / "metrics.csv").read_bytes()
    for name, value in (("optimizer_states", [{}]), ("best", 7), ("csv", [{"metrics": None}])):
        torch.save(whole | {name: value}, last)
        assert "last.ckpt" in refusal(tmp_path, "resume=run"), name
        assert (copy / "metrics.csv").read_bytes() == metrics


def test_an_unrelated_config_in_the_working_folder_is_not_a_run(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("of: something else\n")
    finish(tmp_path, *ARGUMENTS, "trainer.max_steps=2")
    (results,) = tmp_path.glob("outputs/*/*/results.json")
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "outputs"}
    assert json.loads(results.read_text("utf-8"))["train"]["steps"] == 2


@pytest.mark.parametrize("model", ["lstm", "awd_lstm"])
def test_runs_that_are_killed_at_random_moments_end_the_same(model: str):
    result = subprocess.run(
        [sys.executable, CHAOS, "--kills", "3", "--model", model],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("3 kills of ")]
    assert line.endswith("end results identical")


def test_a_sweep_that_is_stopped_continues_where_it_was(whole: Path, tmp_path: Path):
    """Finished jobs are left alone and a started one is resumed, whatever their order."""
    process = start(tmp_path, "-m", *ARGUMENTS, "seed=2,1,3", "hydra.sweep.dir=a sweep")

    def job(seed: int) -> Path:
        for path in (tmp_path / "a sweep").glob("*/config.yaml"):
            if yaml.safe_load(path.read_text("utf-8"))["seed"] == seed:
                return path.parent
        return tmp_path  # not begun

    wait_until(lambda: num_rows(job(1)) > 25, process)
    process.send_signal(signal.SIGTERM)
    said = end(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert not (job(1) / "results.json").exists()
    line = said.partition("Stopped. To resume: ")[2].splitlines()[0]
    *how, on = shlex.split(line)
    assert how[:-1] == ["the", "same", "command", "with"]
    of_done = [job(2) / name for name in ("results.json", "checkpoints/last.ckpt")]
    before = [path.read_bytes() for path in of_done]

    finish(tmp_path, "-m", *ARGUMENTS, "seed=3,1,2", how[-1], on)
    assert compare(whole, job(1)) == []
    assert [path.read_bytes() for path in of_done] == before
    assert results_of(job(3))["seed"] == 3
    assert len(list((tmp_path / "a sweep").glob("*/"))) == 3

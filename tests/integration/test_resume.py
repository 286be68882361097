"""``lmbench-train`` stopped in many ways, and ``resume=`` after each."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chaos import unequal

from lmbench.run.directory import alone_in

COMMAND = Path(sysconfig.get_path("scripts"), "lmbench-train")
CHAOS = Path(__file__).parents[2] / "scripts/chaos.py"
NUM_EPOCHS = 6
ARGUMENTS = (
    "model=awd_lstm",
    "data=synthetic",
    "data.num_words=40",
    "data.num_train_tokens=6000",
    "data.num_valid_tokens=300",
    "data.num_test_tokens=200",
    "model.embedding_size=8",
    "model.core.hidden_size=12",
    "batching.batch_size=4",
    "batching.bptt=10",
    "evaluation.columns=2",
    "evaluation.burn_in=10",
    # such a learning rate makes validation stall in the middle of the run
    "optimizer.lr=40",
    "callbacks.nt_asgd.non_monotone_interval=1",
    "trainer.accelerator=cpu",
    f"trainer.max_epochs={NUM_EPOCHS}",
    "trainer.log_every_n_steps=3",
)

pytestmark = pytest.mark.slow


def start(folder: Path, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True, exist_ok=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HYDRA_")}
    return subprocess.Popen(
        [COMMAND, *arguments],
        cwd=folder,
        env=inherited | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def end(process: "subprocess.Popen[str]") -> str:
    """What it said on stderr."""
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    return said


def wait_until(happened: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline
        time.sleep(0.002)


def num_rows(run_dir: Path) -> int:
    path = run_dir / "metrics.csv"
    return len(path.read_text("utf-8").splitlines()) - 1 if path.exists() else 0


def finish(folder: Path, *arguments: str) -> str:
    process = start(folder, *arguments)
    said = end(process)
    assert process.returncode == 0, said
    return said


def refusal(folder: Path, *arguments: str, **options: Any) -> str:
    """The message, which is all that there is beside Hydra's own first and last line."""
    process = start(folder, *arguments, **options)
    first, *message, last = end(process).strip().splitlines()
    assert process.returncode == 1
    assert first.startswith("Error executing job with overrides: ")
    assert last.startswith("Set the environment variable HYDRA_FULL_ERROR=1")
    lines = "\n".join(message).strip().splitlines()
    assert len(lines) == 1, message
    return lines[0]


def results_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "results.json").read_text("utf-8"))


def assert_same_run(run_dir: Path, other: Path) -> None:
    assert (run_dir / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    for name in ("last", "best"):
        contents = [
            torch.load(each / f"checkpoints/{name}.ckpt", weights_only=True)
            for each in (run_dir, other)
        ]
        assert not unequal(contents[0], contents[1]), name
    assert not unequal(results_of(run_dir), results_of(other))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, *ARGUMENTS, "hydra.run.dir=run")
    run_dir = folder / "run"
    triggered = results_of(run_dir)["nt_asgd"]["triggered_epoch"]
    assert 0 < triggered < NUM_EPOCHS - 1
    return run_dir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Path:
    """Of a run that was stopped by SIGTERM in the midst of an epoch, with averages already."""
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
    """Of the stopped run, to go on with."""
    return shutil.copytree(stopped, tmp_path / "run")


def test_a_run_that_is_stopped_by_each_signal_goes_on_to_the_last_bit(whole: Path, tmp_path: Path):
    """By the command that each stop has named, in a folder with a difficult name."""
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
        (line,) = [line for line in said.splitlines() if line.startswith("Stopped. To go on: ")]
        name, *arguments = shlex.split(line.removeprefix("Stopped. To go on: "))
        assert name == "lmbench-train"
    finish(tmp_path, *arguments)
    assert_same_run(run_dir, whole)
    log = (run_dir / "train.log").read_text("utf-8")
    assert [log.count(f"{name}: saving") for name in ("SIGTERM", "SIGINT", "SIGUSR1")] == [1] * 3


def test_a_run_without_a_checkpoint_starts_over_and_overrides_are_kept(whole: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    process = start(tmp_path, *ARGUMENTS, "hydra.run.dir=run")
    wait_until(lambda: num_rows(run_dir) > 3, process)
    process.kill()
    end(process)
    assert process.returncode == -signal.SIGKILL
    assert not (run_dir / "checkpoints").exists()
    resume = "resume=run"
    finish(tmp_path, resume, "trainer.max_epochs=2")
    assert results_of(run_dir)["train"]["epochs"] == 2
    finish(tmp_path, resume, "trainer.max_epochs=3")
    lines = (run_dir / "overrides.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"overrides": [f"trainer.max_epochs={number}"]} for number in (2, 3)
    ]
    # As the first epochs of the longer run, and after them the test.
    rows, of_whole = (
        path.joinpath("metrics.csv").read_text("utf-8").splitlines() for path in (run_dir, whole)
    )
    assert rows[:-1] == of_whole[: len(rows) - 1]
    assert {row.split(",")[1] for row in rows[1:]} == {"0", "1", "2", "3"}  # 3 is the test's
    # A finished run is only tested again; config.yaml, without the overrides, says six epochs.
    before = results_of(run_dir)
    checkpoints = {p.name: p.read_bytes() for p in (run_dir / "checkpoints").iterdir()}
    finish(tmp_path, resume)
    assert not unequal(results_of(run_dir), before)
    assert results_of(run_dir)["train"]["epochs"] == 3
    assert (run_dir / "metrics.csv").read_text("utf-8").splitlines() == rows
    assert {p.name: p.read_bytes() for p in (run_dir / "checkpoints").iterdir()} == checkpoints


def test_a_full_disk_leaves_the_last_checkpoint_whole(copy: Path, tmp_path: Path):
    """As a limit on the size of files, which only a checkpoint is too large for."""
    last = copy / "checkpoints/last.ckpt"
    before = last.read_bytes()
    limit = len(before) // 2

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    message = refusal(tmp_path, "resume=run", preexec_fn=limit_files)
    assert message.startswith("The checkpoint ")
    assert "cannot be written: File too large. Make room" in message
    assert last.read_bytes() == before
    assert {path.name for path in last.parent.iterdir()} <= {
        "last.ckpt",
        "previous.ckpt",
        "best.ckpt",
    }


def test_after_damage_the_checkpoint_before_is_offered_and_works(
    copy: Path, whole: Path, tmp_path: Path
):
    last, previous = (copy / f"checkpoints/{name}.ckpt" for name in ("last", "previous"))
    last.write_bytes(last.read_bytes()[:-1000])
    message = refusal(tmp_path, "resume=run")
    assert "last.ckpt is damaged" in message
    assert "previous.ckpt: rename that to last.ckpt to go on from it." in message
    previous.rename(last)
    finish(tmp_path, "resume=run")
    assert_same_run(copy, whole)


def test_what_cannot_be_resumed_is_refused_in_one_paragraph(copy: Path, tmp_path: Path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert "is not the directory of a run" in refusal(tmp_path, f"resume={tmp_path}")
    assert "is not the directory of a run" in refusal(tmp_path, "resume=nowhere")
    assert "Set resume=RUN_DIR" in refusal(tmp_path, "resume=")
    assert "Set resume=RUN_DIR" in refusal(tmp_path, "resume=null")
    assert "leave out -m" in refusal(tmp_path, "-m", "resume=run", "trainer.max_epochs=7,8")
    assert "leave out hydra.run.dir" in refusal(tmp_path, "resume=run", "hydra.run.dir=other")
    assert "would make it another run" in refusal(tmp_path, "resume=run", "model=lstm")
    limit = "trainer.limit_train_batches=0.001"
    assert "limit_train_batches" in refusal(tmp_path, "resume=run", limit)
    assert not (copy / "overrides.jsonl").exists()  # which would refuse the next one too
    with alone_in(copy):  # as long as the first process lives
        assert "Another process is at work" in refusal(tmp_path, "resume=run")
    ours = ("train.log", ".lock")  # and Hydra's own
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for path, content in before.items():
        if path.name not in ours and path.parent.name != ".hydra":
            assert after[path] == content


def test_hydra_does_not_follow_links_in_a_strangers_run(copy: Path, tmp_path: Path):
    """It opens the log and writes its folder before lmbench has a say."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "config.yaml").write_text("precious")
    (victim / "notes").write_text("precious")
    shutil.rmtree(copy / ".hydra")
    (copy / "train.log").unlink()
    (copy / ".hydra").symlink_to(victim)
    assert "is a link" in refusal(tmp_path, "resume=run")
    (copy / ".hydra").unlink()
    (copy / "train.log").symlink_to(victim / "notes")
    assert "is a link" in refusal(tmp_path, "resume=run")
    assert {path.name: path.read_text() for path in victim.iterdir()} == {
        "config.yaml": "precious",
        "notes": "precious",
    }


def test_a_config_of_something_else_in_the_working_folder_is_no_run(tmp_path: Path):
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


def test_a_sweep_that_is_stopped_goes_on_where_it_was(whole: Path, tmp_path: Path):
    """Done jobs are left alone, one that was begun is resumed, whatever the order of the jobs."""
    process = start(tmp_path, "-m", *ARGUMENTS, "seed=2,1,3", "hydra.sweep.dir=a sweep")
    sweep = tmp_path / "a sweep"
    wait_until(lambda: num_rows(sweep / "1") > 25, process)
    process.send_signal(signal.SIGTERM)
    said = end(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert sorted(path.name for path in sweep.glob("*/")) == ["0", "1"]
    assert not (sweep / "1/results.json").exists()
    line = said.partition("Stopped. To go on: ")[2].splitlines()[0]
    *how, on = shlex.split(line)
    assert how[:-1] == ["the", "same", "command", "with"]
    of_done = [sweep / "0" / name for name in ("results.json", "checkpoints/last.ckpt")]
    before = [path.read_bytes() for path in of_done]

    finish(tmp_path, "-m", *ARGUMENTS, "seed=3,1,2", how[-1], on)
    assert_same_run(sweep / "1", whole)
    assert [path.read_bytes() for path in of_done] == before
    (new,) = sweep.glob("0_*")
    assert results_of(new)["seed"] == 3
    assert sorted(path.name for path in sweep.glob("*/")) == sorted(["0", "1", new.name])


def test_a_sweep_is_not_resumed_by_mistake(tmp_path: Path):
    for arguments, message in (
        (["sweep_resume=true"], "sweep_resume goes on with a sweep"),
        (["sweep_resume=perhaps"], "sweep_resume must be true or false"),
        (["-m", "sweep_resume=true"], "sweep_resume=true needs hydra.sweep.dir=DIR"),
    ):
        process = start(tmp_path, *arguments, *ARGUMENTS)
        said = end(process)
        assert process.returncode == 1
        assert message in said
    assert not list(tmp_path.rglob("checkpoints"))

import errno
import logging
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lmbench.cli._command import _CAUGHT, JobFailed, errors_for_users, run_command, run_hydra
from lmbench.errors import Interrupted, UserError
from lmbench.run.directory import alone_in


def raise_in_command(error: BaseException, run_dir: Path, **options: bool) -> None:
    with errors_for_users(run_dir, **{"is_sweep": False} | options):
        raise error


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize("is_sweep", [False, True])
def test_a_user_error_is_shown_as_a_message(
    run_dir: Path, is_sweep: bool, caplog: pytest.LogCaptureFixture
):
    """A job of a sweep ends with an exception of its own, so that Hydra counts it as failed."""
    ends = JobFailed if is_sweep else SystemExit
    with pytest.raises(ends) as ended:
        raise_in_command(UserError("no corpus \x1b[2J"), run_dir, is_sweep=is_sweep)
    assert str(ended.value) == ("no corpus \x1b[2J" if is_sweep else "1")
    config = OmegaConf.create({"model": {"hidden_size": "${model.embeding_size}"}})
    with pytest.raises(ends), errors_for_users(run_dir, is_sweep=is_sweep):
        OmegaConf.to_container(config, resolve=True)
    first, second = caplog.records
    assert first.message == "no corpus \\x1b[2J"
    assert second.message.startswith("Interpolation key 'model.embeding_size' not")
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_too_little_memory_is_shown_as_a_message(run_dir: Path, caplog: pytest.LogCaptureFixture):
    with pytest.raises(RuntimeError) as of_cpu:
        torch.empty(2**60, dtype=torch.int8)
    for error in (
        of_cpu.value,
        torch.OutOfMemoryError("CUDA out of memory.\nTried"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ):
        for is_training, key in ((True, "batching.batch_size"), (False, "evaluation.columns")):
            with pytest.raises(SystemExit):
                raise_in_command(error, run_dir, is_training=is_training)
            assert key in caplog.records[-1].message
            assert "\n" not in caplog.records[-1].message
    with pytest.raises(RuntimeError, match="shapes"):
        raise_in_command(RuntimeError("shapes do not match"), run_dir)


def test_a_search_without_a_successful_trial_is_shown_as_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def main() -> None:
        raise ValueError("No trials are completed yet.")  # as Optuna does

    for name in ("HYDRA_FULL_ERROR", _CAUGHT):  # which the command sets
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "argv", ["lmbench-train", "hparams_search=lstm"])
    with pytest.raises(SystemExit) as ended:
        run_hydra(main, "train")
    assert ended.value.code == 1
    assert "The search has failed" in capsys.readouterr().err


def test_an_interruption_outside_a_run_ends_silently(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """While Hydra composes, or between two jobs of a sweep."""

    def main() -> None:
        raise KeyboardInterrupt

    for name in ("HYDRA_FULL_ERROR", _CAUGHT):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "argv", ["lmbench-train"])
    with pytest.raises(SystemExit) as ended:
        run_hydra(main, "train")
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Interrupted(signal.SIGTERM), 143),
        (Interrupted(signal.SIGUSR1), 128 + signal.SIGUSR1),
        (Interrupted(signal.SIGINT), 130),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_an_interruption_sets_the_exit_code(
    run_dir: Path, error: BaseException, code: int, caplog: pytest.LogCaptureFixture
):
    def stop(is_training: bool = True) -> list[str]:
        caplog.clear()
        with pytest.raises(SystemExit) as stopped:
            raise_in_command(error, run_dir, is_training=is_training)
        assert stopped.value.code == code
        return caplog.messages

    assert stop() == [f"Stopped. To resume: lmbench-train resume={run_dir}"]
    # An evaluation, a finished run and one that has not begun leave nothing to resume.
    assert not stop(is_training=False)
    (run_dir / "results.json").touch()
    assert not stop()
    (run_dir / "results.json").unlink()
    (run_dir / "config.yaml").unlink()
    assert not stop()


@pytest.mark.parametrize(
    "name",
    [
        "plain-name_1.0",
        "lr=0.1,dropout=0.5",
        'it\'s "quoted"',
        "(a) [b] {c: d}",
        "$HOME `id` ~ * ? ; & | #",
        "Wörter, 日本語 {oc.env:HOME}",
        "back\\slash",
    ],
)
def test_the_command_to_resume_can_be_typed_as_shown(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
):
    run_dir = tmp_path / name
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("")
    with pytest.raises(SystemExit):
        raise_in_command(Interrupted(15), run_dir)
    command = caplog.messages[-1].partition("To resume: ")[2]
    _, argument = shlex.split(command)
    override = OverridesParser.create().parse_override(argument)
    assert override.key_or_group == "resume"
    assert override.value() == str(run_dir)


@pytest.mark.parametrize(
    ("name", "left", "is_removed"),
    [
        ("outputs/2026-01-31/23-59-59", ".lock", True),
        ("outputs/2026-01-31/23-59-59", "train_ddp_process_1.log", True),
        ("outputs/2026-01-31/23-59-59", "config.yaml", False),
        ("outputs/2026-01-31/23-59-59", "mine.txt", False),
        ("outputs/mine", ".lock", False),
    ],
)
@pytest.mark.parametrize("error", [UserError("no corpus"), KeyboardInterrupt()])
def test_a_failed_start_leaves_no_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    left: str,
    is_removed: bool,
    error: BaseException,
):
    """Unless the user named it, or it holds more than a start writes."""
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / name
    run_dir.mkdir(parents=True)
    for file in ("train.log", left):
        (run_dir / file).touch()
    with pytest.raises(SystemExit):
        raise_in_command(error, run_dir)
    assert run_dir.exists() != is_removed
    assert run_dir.parent.exists() != is_removed


def test_a_failed_start_leaves_the_folder_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "outputs/2026-01-31/23-59-59"
    run_dir.mkdir(parents=True)
    with alone_in(run_dir), pytest.raises(SystemExit):
        raise_in_command(UserError("Another process is at work"), run_dir)
    assert run_dir.exists()


@pytest.mark.parametrize("is_training", [True, False])
def test_a_full_disk_or_a_blocked_path_is_shown_as_a_message(
    run_dir: Path, is_training: bool, caplog: pytest.LogCaptureFixture
):
    resume = " To resume: lmbench-train resume=" if is_training else "$"
    old, new = str(run_dir / "results.tmp"), str(run_dir / "results")
    for error, place in (
        (OSError(errno.ENOSPC, "full"), run_dir),
        (OSError(errno.EACCES, "full", old), old),
        (OSError(errno.EISDIR, "full", old, None, new), new),
    ):
        with pytest.raises(SystemExit):
            raise_in_command(error, run_dir, is_training=is_training)
        assert re.match(rf"{place}: full\.{resume}", caplog.messages[-1])


def test_a_line_that_cannot_be_logged_gives_no_traceback(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Full:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(logging, "raiseExceptions", True)
    logger = logging.Logger("no other handler has it")
    logger.addHandler(logging.StreamHandler(Full()))
    with errors_for_users(run_dir, is_sweep=False):
        logger.warning("a line")
    assert not capsys.readouterr().err


def test_other_errors_are_left_as_they_are(run_dir: Path):
    error = ValueError("a defect")
    with pytest.raises(ValueError, match="a defect") as found:
        raise_in_command(error, run_dir)
    assert found.value is error


PLAIN = """
import signal, sys, time
from lmbench.cli._command import run_command
from lmbench.errors import UserError
assert "hydra" not in sys.modules
# As in a terminal: what a shell starts in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
def command():
    print("a line")
    {action}
run_command(command)
print("after")
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("action", "code", "out", "err"),
    [
        ("return 7", 0, "a line\nafter\n", ""),
        ("raise UserError('no such file \\x1b[2J')", 1, "a line\n", "no such file \\x1b[2J\n"),
        ("signal.raise_signal(signal.SIGINT)", 130, "a line\n", ""),
        ("open('no/where', 'w')", 1, "a line\n", "no/where: No such file or directory.\n"),
        ("raise MemoryError('too little')", 1, "a line\n", "Out of memory. (too little)\n"),
    ],
)
def test_how_a_plain_command_ends(action: str, code: int, out: str, err: str):
    result = run_python("-c", PLAIN.format(action=action))
    assert (result.returncode, result.stdout, result.stderr) == (code, out, err)


def test_a_plain_command_whose_reader_has_gone_says_nothing():
    script = PLAIN.format(action="[print('x' * 1000) for _ in range(1000)]")
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.readline() == b"a line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


def test_a_plain_command_whose_stdout_is_full(
    capsys: pytest.CaptureFixture[str], full_stdout: Callable
):
    with full_stdout(), pytest.raises(SystemExit, match="1"):
        run_command(lambda: print("a line"))
    assert capsys.readouterr().err == "stdout cannot be written: No space left on device.\n"


def test_programming_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


def test_help_that_nobody_reads_to_the_end_ends_silently():
    process = subprocess.Popen(
        [sys.executable, "-m", "lmbench.cli.evaluate", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.close()
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (128 + signal.SIGPIPE, "")


def test_another_broken_pipe_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def main() -> None:
        raise BrokenPipeError

    for name in ("HYDRA_FULL_ERROR", _CAUGHT):  # which the command sets
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "argv", ["lmbench-train", "model=lstm"])
    with pytest.raises(BrokenPipeError):
        run_hydra(main, "train")

import errno
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from lmbench.command.ending import errors_for_users, run_command
from lmbench.errors import Interrupted, UserError


def raise_in_command(error: BaseException, run_dir: Path, *, is_sweep: bool = False) -> None:
    with errors_for_users(run_dir, is_sweep=is_sweep):
        raise error


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize("is_sweep", [False, True])
def test_an_error_of_the_user_is_a_message(
    run_dir: Path, is_sweep: bool, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.ERROR)
    with pytest.raises(CompactHydraException, match=r"^no such corpus$"):
        raise_in_command(UserError("no such corpus"), run_dir, is_sweep=is_sweep)
    # at the end of a sweep, Hydra shows that of the first failed job only
    assert [record.getMessage() for record in caplog.records] == ["no such corpus"] * is_sweep


@pytest.mark.parametrize("is_sweep", [False, True])
def test_a_reference_to_no_key_is_a_message(
    run_dir: Path, is_sweep: bool, caplog: pytest.LogCaptureFixture
):
    config = OmegaConf.create({"model": {"hidden_size": "${model.embeding_size}"}})
    message = r"^Interpolation key 'model\.embeding_size' not found full_key: model\.hidden_size"
    with (
        pytest.raises(CompactHydraException, match=message),
        errors_for_users(run_dir, is_sweep=is_sweep),
    ):
        OmegaConf.to_container(config, resolve=True)
    assert len(caplog.records) == is_sweep


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
def test_an_interruption_is_an_exit_code(
    run_dir: Path, error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        raise_in_command(error, run_dir)
    assert stopped.value.code == code
    assert f"To go on: lmbench-train resume={run_dir}\n" in capsys.readouterr().err
    # Of a run that is done, and before there is one, there is nothing to go on with.
    (run_dir / "results.json").touch()
    with pytest.raises(SystemExit) as stopped:
        raise_in_command(error, run_dir)
    assert stopped.value.code == code
    assert not capsys.readouterr().err
    (run_dir / "results.json").unlink()
    (run_dir / "config.yaml").unlink()
    with pytest.raises(SystemExit) as stopped:
        raise_in_command(error, run_dir)
    assert stopped.value.code == code
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "plain-name_1.0",
        "with a space",
        "lr=0.1,dropout=0.5",
        "it's",
        'it\'s "quoted"',
        "(a) [b] {c: d}",
        "$HOME `id` ~ * ? ; & | #",
        "Wörter, 日本語",
        "{oc.env:HOME}",
        "back\\slash",
    ],
)
def test_the_command_to_go_on_can_be_typed_as_it_stands(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    run_dir = tmp_path / name
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("")
    with pytest.raises(SystemExit):
        raise_in_command(Interrupted(15), run_dir)
    command = capsys.readouterr().err.strip().partition("To go on: ")[2]
    _, argument = shlex.split(command)
    override = OverridesParser.create().parse_override(argument)
    assert override.key_or_group == "resume"
    assert override.value() == str(run_dir)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_a_message(run_dir: Path, number: int):
    with pytest.raises(
        CompactHydraException, match=r"^Nothing more .*: full\. Make room\. To go on"
    ):
        raise_in_command(OSError(number, "full"), run_dir)


def test_an_evaluation_is_nothing_to_go_on_with(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit), errors_for_users(run_dir, is_sweep=False, is_training=False):
        raise KeyboardInterrupt
    assert not capsys.readouterr().err
    with (
        pytest.raises(CompactHydraException, match=r"Make room\.$"),
        errors_for_users(run_dir, is_sweep=False, is_training=False),
    ):
        raise OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR]
)
def test_what_is_in_the_way_of_a_run_is_a_message(run_dir: Path, number: int):
    error = OSError(number, "no way", str(run_dir / "tensorboard"))
    expected = rf"^{run_dir}/tensorboard: no way\. lmbench must be able to write there\."
    with pytest.raises(CompactHydraException, match=rf"{expected} To go on: lmbench-train resume="):
        raise_in_command(error, run_dir)
    (run_dir / "config.yaml").unlink()
    with pytest.raises(CompactHydraException, match=rf"{expected}$"):
        raise_in_command(error, run_dir)


def test_a_folder_in_the_place_of_a_file_is_named(run_dir: Path):
    (run_dir / "results.json").mkdir()
    (run_dir / "results.json.tmp").touch()
    with (
        pytest.raises(CompactHydraException, match=rf"^{run_dir}/results\.json: Is a directory\."),
        errors_for_users(run_dir, is_sweep=False),
    ):
        (run_dir / "results.json.tmp").replace(run_dir / "results.json")


def test_a_line_that_cannot_be_logged_is_no_traceback(
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
    for error in (
        OSError(errno.EIO, "broken", str(run_dir / "x")),
        OSError(errno.EACCES, "no way"),
        OSError(errno.EACCES, "no way", str(run_dir.parent / "x")),
        ValueError("a defect"),
    ):
        with pytest.raises(type(error)) as found:
            raise_in_command(error, run_dir)
        assert found.value is error


PLAIN = """
import signal, sys, time
from lmbench.command.ending import run_command
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


@pytest.mark.parametrize(
    ("action", "code", "out", "err"),
    [
        ("return 7", 0, "a line\nafter\n", ""),
        ("raise UserError('no such file')", 1, "a line\n", "no such file\n"),
        ("signal.raise_signal(signal.SIGINT)", 130, "a line\n", ""),
    ],
)
def test_how_a_plain_command_ends(action: str, code: int, out: str, err: str):
    result = subprocess.run(
        [sys.executable, "-c", PLAIN.format(action=action)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (code, out, err)


@pytest.mark.parametrize("name", ["compare", "generate", "export"])
def test_a_plain_command_is_a_module_too(name: str):
    result = subprocess.run(
        [sys.executable, "-m", f"lmbench.{name}", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.startswith(f"usage: lmbench-{name} ")


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


def test_a_plain_command_whose_stdout_is_closed_does_nothing(capsys: pytest.CaptureFixture[str]):
    done: list[str] = []
    with redirect_stdout(None), pytest.raises(SystemExit) as ended:
        run_command(lambda: done.append("something"))
    assert ended.value.code == 1
    assert capsys.readouterr().err == "stdout cannot be written: it is closed.\n"
    assert not done


def test_a_plain_command_whose_stdout_is_full(
    capsys: pytest.CaptureFixture[str], full_stdout: Callable
):
    with full_stdout(), pytest.raises(SystemExit) as ended:
        run_command(lambda: print("a line"))
    assert ended.value.code == 1
    assert capsys.readouterr().err == "stdout cannot be written: No space left on device.\n"


def test_errors_of_programmers_keep_their_traceback():
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(command)

"""How a command ends when something goes wrong."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from lmbench.errors import Interrupted, UserError, is_out_of_memory
from lmbench.run.directory import as_override, is_run, remove_failed_start
from lmbench.terminal.printing import end_unread, printable, printing, tell

log = logging.getLogger(__name__)

VERSION = f"lmbench {version('lmbench')}"
_FULL_ERROR, _CAUGHT = "HYDRA_FULL_ERROR", "LMBENCH_CATCHES_ERRORS"
OPTIONS_WITH_A_VALUE = ("-c", "--cfg", "-i", "--info", "-p", "--package", "-cp", "--config-path")
OPTIONS_WITH_A_VALUE += ("-cn", "--config-name", "-cd", "--config-dir", "--experimental-rerun")
"""Those of Hydra's options."""
_OPTIONS_THAT_PRINT = {"--help", "-h", "--cfg", "-c", "--info", "-i", "--hydra-help"}


class JobFailed(Exception):
    """A job of a sweep failed with an error that has been logged."""


@contextmanager
def errors_for_users(run_dir: Path, *, is_sweep: bool, is_training: bool = True) -> Iterator[None]:
    """Turns users' errors into messages without a traceback, and interruptions into exit codes.

    Args:
        run_dir: The run's directory.
        is_sweep: Whether it is part of a sweep, at whose end Hydra shows only the first failed
            job's error.
        is_training: Whether the run can be resumed.
    """
    from omegaconf.errors import OmegaConfBaseException  # plain commands do without

    # A line that stdout or train.log does not accept is lost; that needs no traceback.
    logging.raiseExceptions = False
    threading.excepthook = _thread_excepthook
    try:
        yield
        return
    except UserError as error:
        message, cause = str(error), error
    except OmegaConfBaseException as error:  # a value that refers to a missing key
        message, cause = " ".join(str(error).split()), error
    except OSError as error:  # a full disk, or a folder where a file should be
        place = error.filename2 or error.filename or run_dir  # a rename's target comes first
        message, cause = f"{place}: {error.strerror or error}.", error
        if is_training and is_run(run_dir):
            message += f" To resume: {_how_to_resume(run_dir, is_sweep)}"
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        lower = (
            "batching.batch_size, evaluation.window or the model's sizes"
            if is_training
            else "evaluation.columns or evaluation.window, or set device=cpu"
        )
        reason = str(error).partition("\n")[0]
        message, cause = f"Out of memory: lower {lower}. ({reason})", error
    except (Interrupted, KeyboardInterrupt) as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        is_done = not is_sweep and (run_dir / "results.json").is_file()
        if is_training and is_run(run_dir) and not is_done:
            how = _how_to_resume(run_dir, is_sweep)
            log.error(printable(f"Stopped. To resume: {how}"))
        elif is_training and not is_sweep:
            remove_failed_start(run_dir)
        sys.exit(128 + signum)
    if _wants_traceback() and not is_sweep:
        raise cause
    log.error(_printable(message))  # in train.log too
    if is_sweep:  # which goes on, and ends with this error
        raise JobFailed(message) from cause
    if is_training:
        remove_failed_start(run_dir)
    sys.exit(1)


def run_hydra(main: Callable[[], object], config_name: str) -> None:
    """Runs a command whose config Hydra composes; errors in that are reported in one line.

    Args:
        main: What ``hydra.main`` returned.
        config_name: Name of the primary config, for the keys that exist.
    """
    if "--version" in sys.argv[1:]:
        print(VERSION)
        return
    sys.argv[1:] = options_first(sys.argv[1:])
    if _wants_traceback():
        main()
        return
    from lmbench.cli._suggestions import explain, explain_arguments  # reads YAML

    if message := explain_arguments(sys.argv[1:], config_name):
        tell(_printable(message))
        sys.exit(1)
    # Hydra then raises its errors instead of printing them in a frame.
    os.environ |= {_FULL_ERROR: "1", _CAUGHT: "1"}
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        main()
    except KeyboardInterrupt:  # while Hydra composes, or between two jobs of a sweep
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # a training run may have other pipes
        if not any(text.partition("=")[0] in _OPTIONS_THAT_PRINT for text in sys.argv[1:]):
            raise
        end_unread()
    except JobFailed:
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        tell(_printable(explain(error, sys.argv[1:], config_name)))
        sys.exit(1)
    except ValueError as error:
        if not any(text.startswith("hparams_search=") for text in sys.argv[1:]):
            raise
        tell(_printable(f"The search has failed, the log says why. ({error})"))
        sys.exit(1)


def options_first(arguments: Sequence[str]) -> list[str]:
    """Hydra's options, then overrides: its parser takes no overrides on both sides of an option.

    >>> options_first(["model=lstm", "--cfg", "job", "seed=2", "-m"])
    ['--cfg', 'job', '-m', 'model=lstm', 'seed=2']
    """
    pairs = list(zip(["", *arguments], arguments, strict=False))
    are_options = [text.startswith("-") or before in OPTIONS_WITH_A_VALUE for before, text in pairs]
    options = [text for text, is_option in zip(arguments, are_options, strict=True) if is_option]
    others = [text for text, is_option in zip(arguments, are_options, strict=True) if not is_option]
    return [*options, *others]


def _wants_traceback() -> bool:
    """Whether the user asked for one; processes that the command starts inherit both variables."""
    return os.environ.get(_FULL_ERROR) == "1" and _CAUGHT not in os.environ


def run_command(command: Callable[[], object]) -> None:
    """Runs a plain command, and ends the process if something goes wrong.

    A user's mistake, a file that cannot be read or written and a lack of memory become one
    paragraph on stderr and exit code 1, Ctrl-C becomes exit code 130. If nobody reads stdout any
    more, as with ``| head``, nothing is reported.
    """
    try:
        command()
        with printing():
            sys.stdout.flush()
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        end_unread()
    except OSError as error:
        message = f"{error.filename2 or error.filename or 'A file'}: {error.strerror or error}."
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"Out of memory. ({str(error).partition(chr(10))[0]})"
    else:
        return
    tell(_printable(message))
    sys.exit(1)


def _printable(message: str) -> str:
    """The message made safe to print: file names and contents in it may come from a stranger."""
    return "\n".join(map(printable, message.split("\n")))


def _thread_excepthook(args: threading.ExceptHookArgs) -> None:
    """Prints a thread's traceback, as Python does.

    Not that of an OSError such as a full disk: TensorBoard raises it in the main thread, too.
    """
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def _how_to_resume(run_dir: Path, is_sweep: bool) -> str:
    if is_sweep:
        sweep_dir = as_override("hydra.sweep.dir", run_dir.parent)
        return f"the same command with {sweep_dir} sweep_resume=true"
    return f"lmbench-train {as_override('resume', run_dir)}"

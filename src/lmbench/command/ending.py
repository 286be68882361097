"""How a command ends when something goes wrong."""

import errno
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lmbench.errors import Interrupted, UserError
from lmbench.run.directory import as_override, is_run
from lmbench.stdout import end_unread, printing

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IN_THE_WAY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""What is not as the run needs it, rather than broken."""


@contextmanager
def errors_for_users(run_dir: Path, *, is_sweep: bool, is_training: bool = True) -> Iterator[None]:
    """Turns errors of users into a message without a traceback, and interruptions into exit codes.

    Args:
        run_dir: The run's directory.
        is_sweep: Whether it is a sweep, at whose end Hydra shows the first failed job's error only.
        is_training: Whether one can go on with the run.
    """
    from hydra.errors import CompactHydraException  # plain commands do without
    from omegaconf.errors import OmegaConfBaseException

    # A line that stdout or train.log does not take is lost, and need not be told in a traceback.
    logging.raiseExceptions = False
    try:
        yield
    except UserError as error:
        if is_sweep:
            log.error(error)
        raise CompactHydraException(str(error)) from error
    except OmegaConfBaseException as error:  # a value that refers to a key which is not there
        message = " ".join(str(error).split())
        if is_sweep:
            log.error(message)
        raise CompactHydraException(message)  # noqa: B904 - Hydra would print such a cause too
    except OSError as error:  # from TensorBoard's writer, say
        message = _problem(error, run_dir)
        if message is None:
            raise
        if is_training and is_run(run_dir):
            message += f" To go on: {_how_to_go_on(run_dir, is_sweep)}"
        if is_sweep:
            log.error(message)
        raise CompactHydraException(message) from error
    except (Interrupted, KeyboardInterrupt) as error:
        signum = error.signum if isinstance(error, Interrupted) else 2
        is_done = not is_sweep and (run_dir / "results.json").is_file()
        if is_training and (run_dir / "config.yaml").is_file() and not is_done:
            how = _how_to_go_on(run_dir, is_sweep)
            print(f"Stopped. To go on: {how}", file=sys.stderr)
        sys.exit(128 + signum)


def run_command(command: Callable[[], object]) -> None:
    """Runs a plain command, and ends the process where it goes wrong.

    A UserError becomes one paragraph on stderr and exit code 1, Ctrl-C exit code 130. Where nobody
    reads stdout any more, as behind ``| head``, nothing is said; where it is closed, nothing is
    done.
    """
    try:
        if sys.stdout is None:
            raise UserError("stdout cannot be written: it is closed.")
        command()
        with printing():
            sys.stdout.flush()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        end_unread()


def _problem(error: OSError, run_dir: Path) -> str | None:
    if error.errno in FULL:
        return f"Nothing more can be written into {run_dir}: {error.strerror}. Make room."
    path = error.filename2 or error.filename  # where a file could not be renamed to
    is_here = isinstance(path, str) and Path(path).is_relative_to(run_dir)
    if is_here and error.errno in IN_THE_WAY:
        return f"{path}: {error.strerror}. lmbench must be able to write there."
    return None


def _how_to_go_on(run_dir: Path, is_sweep: bool) -> str:
    if is_sweep:
        sweep_dir = as_override("hydra.sweep.dir", run_dir.parent)
        return f"the same command with {sweep_dir} sweep_resume=true"
    return f"lmbench-train {as_override('resume', run_dir)}"

"""How a command ends when something goes wrong."""

import errno
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import CompactHydraException

from lmbench.errors import Interrupted, UserError

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def errors_for_users(run_dir: Path, *, is_sweep: bool) -> Iterator[None]:
    """Turns errors of users into a message without a traceback, and interruptions into exit codes.

    Args:
        run_dir: the run's directory.
        is_sweep: at whose end Hydra shows the error of the first failed job only.
    """
    try:
        yield
    except UserError as error:
        if is_sweep:
            log.error(error)
        raise CompactHydraException(str(error)) from error
    except OSError as error:  # from TensorBoard's writer, say
        if error.errno not in FULL:
            raise
        message = f"Nothing more can be written into {run_dir}: {error.strerror}."
        if (run_dir / "config.yaml").is_file():
            message += f" Make room. To go on: lmbench-train {_override(run_dir)}"
        if is_sweep:
            log.error(message)
        raise CompactHydraException(message) from error
    except (Interrupted, KeyboardInterrupt) as error:
        signum = error.signum if isinstance(error, Interrupted) else 2
        if (run_dir / "config.yaml").is_file():
            print(f"Stopped. To go on: lmbench-train {_override(run_dir)}", file=sys.stderr)
        sys.exit(128 + signum)


def _override(run_dir: Path) -> str:
    """``resume=RUN_DIR`` as one types it: quoted for Hydra and for the shell where it must be."""
    path = str(run_dir)
    if not re.fullmatch(r"[\w./-]+", path, re.ASCII):
        path = "'" + path.replace("'", r"\'") + "'"
    return shlex.quote(f"resume={path}")

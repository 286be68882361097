"""The directory of a run: whether it is one, who works in it, and which links leave it."""

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lmbench.errors import UserError

DIVERGED = "diverged.txt"
"""File in the directory of a run that diverged, with what was not finite."""


def is_run(path: str | Path) -> bool:
    """Whether the path is the directory of a run."""
    try:
        return Path(path, "config.yaml").is_file()
    except OSError:  # in a folder that may not be read, or with too long a name
        return False


def require_run(path: Path) -> None:
    """Refuses what is not the directory of a run.

    Raises:
        UserError: Naming the runs in it, if it is a folder of runs.
    """
    from lmbench.files import is_folder  # --help can do without

    if is_run(path):
        return
    runs = sorted(x.parent for x in path.glob("*/config.yaml")) if is_folder(path) else []
    if runs:
        names = ", ".join(shown(run) for run in runs[:3]) + (", …" if len(runs) > 3 else "")
        raise UserError(f"{path} is not a run, but a folder of {len(runs)}: name one of {names}.")
    raise UserError(f"{path} is not the directory of a run: it has no config.yaml.")


def require_inside(folder: Path) -> None:
    """Refuses a folder with a link that leads out of it: what is written would land elsewhere.

    Raises:
        UserError: Naming the link.
    """
    root = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UserError(
                f"{path} is a link that leads out of {folder}: what is written there would land "
                "elsewhere. Remove the link."
            )


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Locks other processes out of a run's directory; the system unlocks it when this one ends.

    Raises:
        UserError: Another process is at work there.
    """
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"Another process is at work in {run_dir}. Wait for it or stop it. A new run needs a "
            "folder of its own: hydra.run.dir=DIR."
        ) from error


def last_checkpoint(run_dir: Path) -> Path | None:
    """Where a resume continues; None if the run was stopped before it saved."""
    path = run_dir / "checkpoints/last.ckpt"
    return path if path.exists() or path.with_name("previous.ckpt").exists() else None


def require_no_run(run_dir: Path) -> None:
    """Refuses a folder in which a run has begun: a second one would mix with it.

    Raises:
        UserError: Naming what is there, and how the run is continued.
    """
    outputs = [run_dir / "config.yaml"] if is_run(run_dir) else outputs_of(run_dir)
    if not outputs:
        return
    resume = f" To continue it: lmbench-train {as_override('resume', Path(shown(run_dir)))}."
    raise UserError(
        f"{shown(run_dir)} holds a run already ({outputs[0].name}). A second one would mix with it."
        f"{resume if is_run(run_dir) else ''}"
    )


def outputs_of(run_dir: Path) -> list[Path]:
    """What training has left in a run's directory, except for its config and its log."""
    files = ("metrics.csv", "timing.csv", "results.json", DIVERGED, "mlflow_run_id")
    paths = [run_dir / name for name in ("checkpoints", "wandb", "lightning_logs", *files)]
    tensorboard = [path for path in run_dir.glob("*_seed_*") if path.is_dir()]
    return [*(path for path in paths if path.exists()), *tensorboard]


def clear_run(run_dir: Path) -> None:
    """Removes the output of a run that has no checkpoint to resume from."""
    for path in outputs_of(run_dir):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_unfinished_files(run_dir: Path) -> None:
    """Removes what killed trainings of a run were writing; the caller is alone in its folder.

    Not what evaluations write: one may be at work beside.
    """
    of_training = r"(.+\.ckpt|(metrics|timing)\.csv|(results|overrides)\.json|config\.yaml)"
    for folder in (run_dir, run_dir / "checkpoints"):
        for path in folder.glob("*.tmp"):
            if re.fullmatch(rf"{of_training}\.\d+\.tmp", path.name):
                path.unlink(missing_ok=True)


def remove_failed_start(run_dir: Path) -> None:
    """Removes the folder that was made for a run which failed before it had a config.

    One that the user has named stays, and so does one in which another process is at work.
    """
    made_at_start = r"\.lock|train\.log|train_ddp_process_\d+\.log"
    is_by_date = re.fullmatch(r"outputs/\d+-\d+-\d+/\d+-\d+-\d+", shown(run_dir))
    with suppress(OSError, UserError), alone_in(run_dir):
        if is_by_date and all(re.fullmatch(made_at_start, path.name) for path in run_dir.iterdir()):
            shutil.rmtree(run_dir)
            run_dir.parent.rmdir()  # unless there is something in it


def noted_overrides(run_dir: Path) -> list[str] | None:
    """The overrides that the run began with; None if a resume has changed its config."""
    from lmbench.files import read_json  # --help can do without

    try:
        return list(map(str, read_json(run_dir / "overrides.json")["overrides"]))
    except (UserError, KeyError, TypeError):
        return None


def key_of(override: str) -> str:
    """The key that an override sets, adds or deletes."""
    return override.lstrip("+~").partition("=")[0]


def shown(path: Path) -> str:
    """The path as short as it can be typed: relative to the current folder, if it is inside it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def as_override(key: str, path: Path) -> str:
    """``KEY=PATH`` as one types it: quoted for Hydra and for the shell where needed."""
    return shlex.quote(f"{key}={quoted(str(path))}")


def quoted(text: str) -> str:
    """A text as Hydra takes it: in quotes if it would be read as something else."""
    is_number_or_word = re.fullmatch(r"[+-]?\.?\d[^/]*|null|true|false|inf|nan", text, re.I)
    if re.fullmatch(r"[\w./+-]+", text, re.ASCII) and not is_number_or_word:
        return text
    return "'" + text.replace("'", r"\'") + "'"

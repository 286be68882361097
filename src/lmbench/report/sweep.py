"""A table at the end of a sweep."""

import atexit
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lmbench.errors import UserError
from lmbench.report.folders import field, optional_field, read_json
from lmbench.run.directory import as_override
from lmbench.run.sweep import RECORD, recorded_job
from lmbench.stdout import printing


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        run_dir: Its folder.
        overrides: What makes it this job, e.g. ``("model=lstm", "seed=1")``.
        valid: Its best validation perplexity; None if it did not finish.
        test: Its test perplexity, if it has one.
        floor: The perplexity of the true distribution on test, if that is known.
        seconds: How long it trained, if that is known.
    """

    run_dir: Path
    overrides: tuple[str, ...]
    valid: float | None = None
    test: float | None = None
    floor: float | None = None
    seconds: float | None = None


def sweep_jobs(sweep_dir: Path) -> Iterator[Job]:
    """The jobs of a sweep that have begun, in their order.

    Raises:
        UserError: A job's record or results are damaged.
    """
    run_dirs = (record.parent for record in sweep_dir.glob(f"*/{RECORD}"))
    for run_dir in sorted(run_dirs, key=_number):
        path, overrides = run_dir / "results.json", tuple(recorded_job(run_dir) or ())
        if not path.is_file():
            yield Job(run_dir, overrides)
            continue
        results = read_json(path)
        yield Job(
            run_dir,
            overrides,
            valid=field(results, "val.ppl", float, path),
            test=optional_field(results, "test.ppl", float, path),
            floor=optional_field(results, "data.perplexity_floor.test", float, path),
            seconds=optional_field(results, "train.seconds", float, path),
        )


def _number(run_dir: Path) -> tuple[int, str]:
    number, _, _ = run_dir.name.partition("_")
    return int(number) if number.isdecimal() else sys.maxsize, run_dir.name


class SweepTable(Callback):
    """Shows all jobs of a multirun, the best validation perplexity first, unfinished ones last."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Has the table printed at the end of the command.

        Hydra calls ``on_multirun_end`` only if no job failed, and then the table is needed most.
        """
        atexit.register(_show, Path(config.hydra.sweep.dir))


def _show(sweep_dir: Path) -> None:
    try:
        jobs = list(sweep_jobs(sweep_dir))
        if not jobs:
            return
        with printing():
            Console().print(sweep_table(jobs, title=str(sweep_dir)))
            unfinished = [job.run_dir.name for job in jobs if job.valid is None]
            if unfinished:
                print(
                    f"Not finished: {', '.join(unfinished)}. To go on: the same command with "
                    f"{as_override('hydra.sweep.dir', sweep_dir)} sweep_resume=true"
                )
    except UserError as error:
        print(error, file=sys.stderr)
    except SystemExit:  # nobody reads it, and this is the end: Python would show a traceback
        pass


def sweep_table(jobs: Iterable[Job], *, title: str) -> Table:
    """Jobs as rows, each with the overrides that not all of them share.

    The column of the perplexity floor is there only where a job has one.
    """
    jobs = sorted(jobs, key=_valid_perplexity)
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    with_floor = any(job.floor is not None for job in jobs)
    table = Table(title=title, title_justify="left")
    table.add_column("job")
    table.add_column("overrides", overflow="fold")
    for column in ("valid ppl", "test ppl", *(["test floor"] if with_floor else []), "minutes"):
        table.add_column(column, justify="right")
    for job in jobs:
        own = "\n".join(item for item in job.overrides if item not in shared)
        table.add_row(job.run_dir.name, own, *_cells(job, with_floor))
    return table


def _valid_perplexity(job: Job) -> float:
    return float("inf") if job.valid is None else job.valid


def _cells(job: Job, with_floor: bool) -> list[str]:
    if job.valid is None:
        return ["not finished"]
    return [
        f"{job.valid:.2f}",
        "" if job.test is None else f"{job.test:.2f}",
        *(["" if job.floor is None else f"{job.floor:.2f}"] if with_floor else []),
        "" if job.seconds is None else f"{job.seconds / 60:.1f}",
    ]

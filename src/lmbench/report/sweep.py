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
from rich.text import Text

from lmbench.errors import UserError
from lmbench.files import read_json
from lmbench.printing import printable, printing
from lmbench.report.folders import field, optional_field
from lmbench.run.directory import as_override


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        run_dir: Its folder, whose name tells its overrides.
        valid: Its best validation perplexity; None if it did not finish.
        test: Its test perplexity, if it has one.
        floor: The perplexity of the true distribution on test, if that is known.
        seconds: How long it trained, if that is known.
    """

    run_dir: Path
    valid: float | None = None
    test: float | None = None
    floor: float | None = None
    seconds: float | None = None


def sweep_jobs(sweep_dir: Path) -> Iterator[Job]:
    """The jobs of a sweep that have begun: the folders in which Hydra has noted one.

    Raises:
        UserError: A job's results are damaged.
    """
    for run_dir in sorted(folder.parent for folder in sweep_dir.glob("*/.hydra")):
        path = run_dir / "results.json"
        if not path.is_file():
            yield Job(run_dir)
            continue
        results = read_json(path)
        yield Job(
            run_dir,
            valid=field(results, "val.ppl", float, path),
            test=optional_field(results, "test.ppl", float, path),
            floor=optional_field(results, "data.perplexity_floor.test", float, path),
            seconds=optional_field(results, "train.seconds", float, path),
        )


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
            unfinished = [printable(job.run_dir.name) for job in jobs if job.valid is None]
            if unfinished:
                print(
                    f"Not finished: {', '.join(unfinished)}. To resume: the same command with "
                    f"{as_override('hydra.sweep.dir', sweep_dir)} sweep_resume=true"
                )
    except UserError as error:
        print(printable(str(error)), file=sys.stderr)
    except SystemExit:  # nobody reads it, and this is the end: Python would show a traceback
        pass


def sweep_table(jobs: Iterable[Job], *, title: str) -> Table:
    """Jobs as rows; the column of the perplexity floor is there only where a job has one."""
    jobs = sorted(jobs, key=lambda job: float("inf") if job.valid is None else job.valid)
    with_floor = any(job.floor is not None for job in jobs)
    table = Table(title=Text(printable(title)), title_justify="left")
    table.add_column("job", overflow="fold")
    for column in ("valid ppl", "test ppl", *(["test floor"] if with_floor else []), "minutes"):
        table.add_column(column, justify="right")
    for job in jobs:
        table.add_row(Text(printable(job.run_dir.name)), *_cells(job, with_floor))
    return table


def _cells(job: Job, with_floor: bool) -> list[str]:
    if job.valid is None:
        return ["not finished"]
    return [
        f"{job.valid:.2f}",
        "" if job.test is None else f"{job.test:.2f}",
        *(["" if job.floor is None else f"{job.floor:.2f}"] if with_floor else []),
        "" if job.seconds is None else f"{job.seconds / 60:.1f}",
    ]

"""A table at the end of a sweep."""

import atexit
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lmbench.report.runs import Job, sweep_jobs


class SweepTable(Callback):
    """Shows all jobs of a multirun, the best validation perplexity first, failed ones last."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Has the table printed at the end of the command.

        Hydra calls ``on_multirun_end`` only if no job failed, and then the table is needed most.
        """
        atexit.register(_show, Path(config.hydra.sweep.dir))


def _show(sweep_dir: Path) -> None:
    if sweep_dir.is_dir():
        Console().print(sweep_table(sweep_jobs(sweep_dir), title=str(sweep_dir)))


def sweep_table(jobs: Iterable[Job], *, title: str) -> Table:
    """Jobs as rows, each with the overrides that not all of them share.

    The column of the perplexity floor is there only where a job has one.
    """
    jobs = sorted(jobs, key=_valid_perplexity)
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    with_floor = any("perplexity_floor" in job.results["data"] for job in jobs if job.results)
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
    return job.results["val"]["ppl"] if job.results else float("inf")


def _cells(job: Job, with_floor: bool) -> list[str]:
    if job.results is None:
        return ["failed"]
    results = job.results
    floor = results["data"].get("perplexity_floor")
    return [
        f"{results['val']['ppl']:.2f}",
        f"{results['test']['ppl']:.2f}" if results["test"] else "",
        *([f"{floor['test']:.2f}" if floor else ""] if with_floor else []),
        f"{results['train']['seconds'] / 60:.1f}" if results["train"]["seconds"] else "",
    ]

"""A table at the end of a sweep."""

import atexit
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from lmbench.report.folders import read_json


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        run_dir: its folder.
        overrides: what it was given, e.g. ``("model=lstm", "seed=1")``.
        results: its ``results.json``; None if it did not finish.
    """

    run_dir: Path
    overrides: tuple[str, ...]
    results: dict[str, Any] | None


def sweep_jobs(sweep_dir: Path) -> Iterator[Job]:
    """The jobs of a Hydra multirun, in their order."""
    numbered = (path for path in sweep_dir.iterdir() if path.is_dir() and path.name.isdecimal())
    for run_dir in sorted(numbered, key=lambda path: int(path.name)):
        overrides = run_dir / ".hydra/overrides.yaml"
        results = run_dir / "results.json"
        yield Job(
            run_dir,
            tuple(str(item) for item in OmegaConf.load(overrides)) if overrides.is_file() else (),
            read_json(results) if results.is_file() else None,
        )


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

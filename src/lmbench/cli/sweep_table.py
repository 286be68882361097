"""What is shown at the end of a sweep: means over seeds, what has not finished, what comes next."""

import atexit
import shlex
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lmbench.errors import UserError
from lmbench.run.directory import DIVERGED, as_override, is_run
from lmbench.terminal.printing import printable, printing, tell


class SweepTable(Callback):
    """Shows all groups of a multirun, the best validation perplexity first."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Registers the table for the end; ``on_multirun_end`` is only called if no job failed."""
        atexit.register(_show, Path(config.hydra.sweep.dir))


def _show(sweep_dir: Path) -> None:
    try:
        with printing():
            show_sweep(sweep_dir)
    except UserError as error:
        tell(printable(str(error)))
    except SystemExit:  # nobody reads it; raised at exit, it would show a traceback
        pass


def show_sweep(sweep_dir: Path) -> None:
    """Prints a short form of what :func:`lmbench.cli.compare.main` prints for a sweep's runs."""
    from rich.console import Console

    from lmbench.report.formats import print_table
    from lmbench.report.groups import group_runs
    from lmbench.report.runs import read_runs
    from lmbench.report.tables import group_table

    if not any(sweep_dir.glob("*/results.json")):
        return  # the jobs have said why
    runs, skipped = read_runs([(None, sweep_dir)])
    for section in group_runs(runs)[0]:
        print_table(group_table(section), Console())
    left_out = [item.path for item in skipped if item.path.parent == sweep_dir]
    if diverged := [path.name for path in left_out if (path / DIVERGED).exists()]:
        print(f"Diverged: {printable(', '.join(diverged))}")
    if unfinished := [x.name for x in left_out if is_run(x) and x.name not in diverged]:
        how = f"{as_override('hydra.sweep.dir', sweep_dir)} sweep_resume=true"
        names = printable(", ".join(unfinished))
        print(f"Not finished: {names}. To resume: the same command with {how}")
    folder = shlex.quote(printable(str(sweep_dir)))
    print(f"Which is better: lmbench-compare {folder} --output {folder}-compared")
    if any(sweep_dir.glob("*/*/events.out.tfevents*")):
        print(f"Curves: tensorboard --logdir {folder}")

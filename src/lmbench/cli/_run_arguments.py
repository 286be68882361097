"""Bare folders of runs on the command line of ``lmbench-evaluate``, as Hydra's ``run=…``."""

import re
import sys
from collections.abc import Sequence

from lmbench.cli._command import OPTIONS_WITH_A_VALUE
from lmbench.cli._suggestions import explain_arguments
from lmbench.files import is_folder
from lmbench.run.directory import quoted
from lmbench.run.targets import conf_files
from lmbench.terminal.printing import printable


def with_run(arguments: Sequence[str]) -> list[str]:
    """The command line with bare run directories turned into ``run=DIR``, and splits into a list.

    Several runs make a sweep, even without ``-m``.

    >>> with_run(["outputs/1", "split=valid", "--cfg", "job"])
    ['split=valid', '--cfg', 'job', 'run=outputs/1']
    >>> with_run(["a", "b"])
    ['-m', 'run=a,b']
    >>> with_run(["a", "split=valid,test"])
    ['split=[valid,test]', 'run=a']
    """
    are_runs = _are_runs(arguments)
    folders = [quoted(text) for text, yes in zip(arguments, are_runs, strict=True) if yes]
    others = [text for text, yes in zip(arguments, are_runs, strict=True) if not yes]
    if folders and any(text.startswith("run=") for text in others):
        sys.exit("Give the runs by their folders, or by run=…, not both.")
    others = [re.sub(r"^split=(\w+(,\w+)+)$", r"split=[\1]", text) for text in others]
    if len(folders) > 1 and not {"-m", "--multirun"} & set(others):
        others.insert(0, "-m")
    return [*others, *([f"run={','.join(folders)}"] if folders else [])]


def require_folders(arguments: Sequence[str]) -> None:
    """Ends the command if a run is not a folder, before the others are evaluated."""
    if message := explain_arguments(arguments, "evaluate"):  # of --split valid, valid is not a run
        sys.exit(printable(message))
    for text, is_run in zip(arguments, _are_runs(arguments), strict=True):
        if is_run and not is_folder(text):
            is_option = text in {path.stem for path in conf_files("evaluation")}
            hint = f" Did you mean evaluation={text}?" if is_option else ""
            sys.exit(printable(f"{text} is not the directory of a run.{hint}"))


def _are_runs(arguments: Sequence[str]) -> list[bool]:
    """Which arguments name runs: they are folders, or neither overrides nor options."""
    return [
        before not in OPTIONS_WITH_A_VALUE
        and (is_folder(text) or not re.match(r"[-+~]|[\w./@]+=", text))
        for before, text in zip(["", *arguments], arguments, strict=False)
    ]

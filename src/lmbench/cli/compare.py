"""``lmbench-compare``: groups runs over seeds, and tells which group is better."""

import argparse
from pathlib import Path
from typing import Any

from lmbench.cli._command import VERSION, run_command
from lmbench.terminal.printing import printable, printing


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script."""
    options = _parser().parse_intermixed_args(arguments)
    run_command(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> None:
    # Slow imports stay out of ``--help``.
    from rich.console import Console
    from rich.text import Text

    from lmbench.report.comparison import compare
    from lmbench.report.formats import print_table
    from lmbench.report.literature import choose_published
    from lmbench.report.page import write_report

    report = compare(
        options.paths,
        split=options.split,
        group_by=options.group_by,
        published=choose_published(options.published),
        ensembles=options.ensemble,
        output=options.output,
    )
    files = write_report(report, options.output) if options.output else []
    console = Console()
    with printing(f" The files are in {options.output}." if files else ""):
        for chapter in report.chapters:
            for table in chapter.tables:
                print_table(table, console)
            for sentence in chapter.verdict:
                console.print(Text(printable(sentence.text)))
                if sentence.command:
                    console.print(Text(f"    {printable(sentence.command)}"), soft_wrap=True)
            console.print()
        for item in report.skipped:
            reason = Text(printable(f"Left out: {item.path}: {item.reason}"))
            console.print(reason, soft_wrap=True)  # there may be a command in it
        for file in files:
            print(file)


def _labelled(text: str) -> tuple[str | None, Path]:
    """``NAME=DIR``; or ``DIR``, even if the folder's name contains a "="."""
    from lmbench.files import exists  # imports yaml, which --help can do without

    name, equals, folder = text.partition("=")
    is_plain = not equals or not name or exists(text)
    if not is_plain and not folder:  # as with a space after the "="
        raise argparse.ArgumentTypeError(f"{text} names no folder")
    return (None, Path(text)) if is_plain else (name, Path(folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lmbench-compare",
        description="Compare runs: a table of means over seeds, which is better, and how certain "
        "that is; with --output a page with plots, and tables as Markdown, CSV, LaTeX and JSON.",
    )
    parser.add_argument("--version", action="version", version=VERSION)
    add = parser.add_argument
    help_paths = "a run, a multirun, or a folder that holds some; NAME renames its runs"
    add("paths", metavar="[NAME=]DIR", nargs="+", type=_labelled, help=help_paths)
    add("--output", type=Path, metavar="DIR", help="write page, tables and plots")
    add("--split", choices=["test", "valid"], default="test", help="default: test")
    lists: dict[str, Any] = {"action": "append", "default": []}
    add("--group-by", metavar="KEY", help="group runs by a key of their configs", **lists)
    help_ensemble = (
        "average the probabilities of these runs (evaluated with evaluation.save_tokens=true on "
        "valid and test), or of folders with a valid.txt and a test.txt, one probability per target"
    )
    lists |= {"nargs": "+", "type": _labelled}
    add("--ensemble", metavar="[NAME=]DIR", help=help_ensemble, **lists)
    published: dict[str, Any] = {"nargs": "?", "const": "all", "type": lambda x: x.split(",")}
    help_published = "show published results on WikiText-2 beside the measured ones: all, or some"
    add("--published", metavar="NAME,…", help=help_published, **published)
    return parser


if __name__ == "__main__":
    main()

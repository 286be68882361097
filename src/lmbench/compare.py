"""``lmbench-compare``: groups runs over seeds, and tells which is better and how surely."""

import argparse
from pathlib import Path

from lmbench.command import run_command
from lmbench.printing import printing
from lmbench.report.published import PUBLISHED, choose_published


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script."""
    options = _parser().parse_args(arguments)
    run_command(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> None:
    # Slow imports stay out of ``--help``.
    from rich.console import Console

    from lmbench.report.comparison import compare
    from lmbench.report.output import write_report
    from lmbench.report.terminal import show

    published = choose_published(options.published)
    report = compare(options.run_dirs, split=options.split, published=published)
    files = write_report(report, options.output) if options.output else []
    with printing(f" The files are in {options.output}." if files else ""):
        show(report, Console())
        for file in files:
            print(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lmbench-compare",
        description="Compare runs: a table of means over seeds and, with --output, a page with "
        "plots and tests of significance, and the tables as Markdown, CSV and LaTeX.",
    )
    parser.add_argument(
        "run_dirs",
        metavar="RUN_DIR",
        nargs="+",
        type=Path,
        help="a run, a multirun, or a folder that holds some",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write page, tables and plots")
    parser.add_argument(
        "--split",
        choices=["test", "valid"],
        default="test",
        help="the split that is tested for significance (default: test)",
    )
    parser.add_argument(
        "--published",
        nargs="?",
        const="all",
        metavar="NAME,…",
        type=lambda names: names.split(","),
        help="set published results on WikiText-2 beside the measured ones; all, or of "
        + ", ".join(PUBLISHED),
    )
    return parser


if __name__ == "__main__":
    main()

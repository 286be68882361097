"""``lmbench-export``: a run's model as a folder that others can load without pickle."""

import argparse
from pathlib import Path

from lmbench.cli._command import VERSION, run_command
from lmbench.terminal.printing import printable, printing


def export(run_dir: Path, output: Path, *, overwrite: bool) -> None:
    """Writes the export of a run, and prints where it is and how large.

    Args:
        run_dir: The directory of a finished run.
        output: The folder to write.
        overwrite: Whether to replace an older export.

    Raises:
        UserError: The run has not finished or is damaged; there is something else at ``output``;
            its results belong to other weights.
    """
    # Slow imports stay out of ``--help``.
    from lmbench.instantiate.model import build_saved
    from lmbench.run.config import read_run_config
    from lmbench.saved.card import model_card
    from lmbench.saved.checkpoint import read_run_model
    from lmbench.saved.export import write_export

    saved = read_run_model(run_dir)
    model = build_saved(saved)
    name, card = model_card(run_dir, read_run_config(run_dir, ()), model.weights_sha256())
    write_export(output, saved, model, corpus_name=name, card=card, overwrite=overwrite)
    lines = [f"{path.stat().st_size:>13,} bytes  {path.name}" for path in sorted(output.iterdir())]
    lines.append(f"{model.num_parameters:,} parameters, exported to {output}")
    with printing(f" The export is in {output}."):
        print("\n".join(map(printable, lines)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lmbench-export",
        description="Write a run's model as a folder to share: weights in safetensors, "
        "vocabulary, config, and a model card with the run's perplexities. "
        "lmbench.load(FOLDER) and lmbench-generate read it.",
    )
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="directory of a finished run")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: RUN_DIR/export")
    parser.add_argument("--overwrite", action="store_true", help="replace an older export")
    return parser


def main() -> None:
    """Entry point of the console script."""
    options = _parser().parse_args()
    output = options.output or options.run_dir / "export"
    run_command(lambda: export(options.run_dir, output, overwrite=options.overwrite))


if __name__ == "__main__":
    main()

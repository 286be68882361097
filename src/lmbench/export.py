"""``lmbench-export``: a run's model as a folder that others can load without pickle."""

import argparse
from pathlib import Path

from lmbench.command.ending import run_command
from lmbench.stdout import printing


def export(run_dir: Path, output: Path, *, program: bool, overwrite: bool) -> None:
    """Writes the export of a run, and says where it is and how large.

    Args:
        run_dir: The directory of a finished run.
        output: The folder to be.
        program: Whether ``step.pt2`` is a part of it.
        overwrite: Whether to replace an export of before.

    Raises:
        UserError: The run has not finished or is damaged; there is something else at ``output``;
            its results are of other weights; no program can be made of the model.
    """
    # Slow imports stay out of ``--help``.
    from lmbench.report.model_card import model_card
    from lmbench.report.scores import read_results, require_weights
    from lmbench.run.overrides import recorded_overrides
    from lmbench.saved.export import CARD, PROGRAM, require_free, writing_export
    from lmbench.saved.loading import read_run, run_values
    from lmbench.saved.model import build
    from lmbench.saved.step_program import write_step_program, zero_state

    require_free(output, overwrite=overwrite)
    saved = read_run(run_dir)
    model = build(saved)
    results = read_results(run_dir)
    require_weights(run_dir, results, model.weights_sha256())
    card = model_card(
        run_dir,
        run_values(run_dir),
        results,
        overrides=recorded_overrides(run_dir),
        state_shapes=[[tuple(x.shape) for x in layer] for layer in zero_state(model, 1)],
        has_program=program,
    )
    name = results["data"]["name"]
    with writing_export(output, saved, model, corpus_name=name, overwrite=overwrite) as folder:
        # JSON has a way of writing halves of letters, which UTF-8 has not.
        (folder / CARD).write_text(card, "utf-8", "backslashreplace")
        if program:
            write_step_program(model, len(saved.vocabulary), folder / PROGRAM)
    lines = [f"{path.stat().st_size:>13,} bytes  {path.name}" for path in sorted(output.iterdir())]
    lines.append(f"{model.num_parameters:,} parameters, exported to {output}")
    with printing(f" The export is in {output}."):
        print("\n".join(lines))


def main() -> None:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(
        prog="lmbench-export",
        description="Write a run's model as a folder to share: weights in safetensors, "
        "vocabulary, config, a model card with all that the run has measured, and one step as a "
        "program of torch.export, checked against the model. lmbench.load(FOLDER) and "
        "lmbench-generate read it.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="directory of a finished run")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: RUN_DIR/export")
    parser.add_argument("--overwrite", action="store_true", help="replace an export of before")
    parser.add_argument("--no-program", action="store_true", help="leave out step.pt2")
    options = parser.parse_args()
    output = options.output or options.run_dir / "export"
    program, overwrite = not options.no_program, options.overwrite
    run_command(lambda: export(options.run_dir, output, program=program, overwrite=overwrite))


if __name__ == "__main__":
    main()

"""Groups and runs with all digits, as CSV for programs."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from lmbench.report.groups import Group, Section, protocols_of
from lmbench.report.runs import Run
from lmbench.report.scores import SPLITS
from lmbench.report.statistics import Estimate
from lmbench.report.summary import (
    evaluation_names,
    mean_over_runs,
    minutes_of,
    peak_memory_bytes_of,
)

Row = dict[str, Any]


def table_rows(section: Section) -> list[Row]:
    """A row for each group."""
    names = evaluation_names(section.groups)
    rows = []
    for group in section.groups:
        best = group.best_run
        row: Row = {**_of_group(section, group), "num_seeds": len(group.runs)}
        for split in SPLITS:
            row |= _estimate_fields(f"{split}_ppl", group.perplexity(split))
        row |= {f"best_{split}_ppl": _ppl(best, split) for split in SPLITS}
        row |= {
            "best_run_dir": str(best.run_dir),
            "num_parameters": best.num_parameters,
            "epochs_min": min(run.num_epochs for run in group.runs),
            "epochs_max": max(run.num_epochs for run in group.runs),
            "minutes_mean": mean_over_runs(group, minutes_of),
            "tokens_per_second_mean": mean_over_runs(group, lambda run: run.tokens_per_second),
            "peak_memory_bytes_max": peak_memory_bytes_of(group),
            "protocol": group.protocol,
        }
        row |= {
            f"floor_{split}_ppl": section.corpus.perplexity_floor.get(split) for split in SPLITS
        }
        for name in names:
            for split in SPLITS:
                found = group.evaluations(name, split)
                value = group.evaluated_perplexity(name, split)
                row |= _estimate_fields(f"{name}_{split}_ppl", value)
                row[f"{name}_{split}_num_runs"] = len(found)
                row[f"{name}_{split}_protocol"] = "; ".join(protocols_of(found))
        rows.append(row)
    return rows


def run_rows(section: Section) -> list[Row]:
    """A row for each run."""
    rows = []
    for group in section.groups:
        for run in group.runs:
            row: Row = {**_of_group(section, group), "seed": run.seed, "run_dir": str(run.run_dir)}
            for split in SPLITS:
                score = run.scores.get(split)
                row[f"{split}_nll"] = score.nll if score else None
                row[f"{split}_ppl"] = score.ppl if score else None
            row |= {
                "best_epoch": run.best_epoch,
                "epochs": run.num_epochs,
                "num_parameters": run.num_parameters,
                "seconds": run.seconds,
                "tokens_per_second": run.tokens_per_second,
                "peak_memory_bytes": run.peak_memory_bytes,
                "device": run.device,
                "protocol": run.protocol,
            }
            for (name, split), evaluation in run.evaluations.items():
                row[f"{name}_{split}_ppl"] = evaluation.score.ppl
                row[f"{name}_{split}_protocol"] = evaluation.protocol
            rows.append(row)
    return rows


def csv_text(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """The rows under all their columns; what a row does not have stays empty.

    A text that a spreadsheet would take for a formula begins with an apostrophe, as it writes one.

    Args:
        rows: Column → value.
        columns: What the columns are even if there is no row; else they are those of the rows.
    """
    text = io.StringIO()
    names = columns or list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_as_text, names))
    writer.writerows([_as_text(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def _as_text(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t"))
    return f"'{value}" if is_formula else value


def _of_group(section: Section, group: Group) -> Row:
    return {
        "corpus": section.corpus.name,
        "corpus_sha256": section.corpus.sha256,
        "group": group.number,
        "label": group.label,
    }


def _estimate_fields(name: str, value: Estimate | None) -> Row:
    return {
        f"{name}_mean": value.mean if value else None,
        f"{name}_half_width": value.half_width if value else None,
    }


def _ppl(run: Run, split: str) -> float | None:
    return run.scores[split].ppl if split in run.scores else None

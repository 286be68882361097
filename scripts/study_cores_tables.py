"""The tables of the study of cores: what its tuning found and what its final runs reached."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from study_cores_plan import (
    CORPORA,
    DROPOUTS,
    GENERATION,
    LRS,
    Job,
    final_runs,
    speed_runs,
    trials_of_dropout,
    trials_of_lr,
    valid_perplexity,
    whole_trials_of_lr,
)

from lmbench.files import read_json
from lmbench.report.formats import estimate_text, p_text
from lmbench.report.statistics import estimate, holm, t_test

COLUMNS = (
    "valid",
    "test",
    "bits above the floor, test",
    "against awd_lstm, test",
    "test with cache",
    "training, tokens/s",
    "training, GiB",
    "ms per word generated",
)


def tables(root: Path, corpus: str) -> str:
    """What the tuning found and what the final runs reached, as Markdown."""
    both = (_tuning_rows(root, corpus), _final_rows(root, corpus))
    return "\n\n".join("\n".join(_lines(rows)) for rows in both)


def _tuning_rows(root: Path, corpus: str) -> list[list[str]]:
    factors = sorted(CORPORA[corpus].dropout_factors)
    has_whole = ["whole runs"] if CORPORA[corpus].short else []
    rows = [["core", *(f"lr {lr}" for lr in LRS), *has_whole, *map("dropout x {}".format, factors)]]
    for core in CORPORA[corpus].sizes:
        cells = [_perplexity_cell(job) for job in trials_of_lr(root, corpus, core).values()]
        if has_whole:
            whole = whole_trials_of_lr(root, corpus, core)
            best = ", ".join(f"lr {lr}: {_perplexity_cell(job)}" for lr, job in whole.items())
            cells.append(best or "—")
        trials = trials_of_dropout(root, corpus, core)
        cells += [_perplexity_cell(trials.get(factor)) for factor in factors]
        if set(cells) != {"—"}:
            rows.append([core, *cells])
    return rows


def _final_rows(root: Path, corpus: str) -> list[list[str]]:
    runs = {core: final_runs(root, corpus, core) for core in CORPORA[corpus].sizes}
    finished = {
        core: [job for job in jobs if (valid_perplexity(job) or math.inf) < math.inf]
        for core, jobs in runs.items()
    }
    differences = against_awd_lstm(
        {core: _values(jobs, "results.json", "test", "nll") for core, jobs in finished.items()}
    )
    rows = [["core", "size", "lr", "dropout x", *COLUMNS]]
    for core, jobs in runs.items():
        num_diverged = sum(valid_perplexity(job) == math.inf for job in jobs)
        name = f"{core} ({num_diverged} of {len(jobs)} diverged)" if num_diverged else core
        start = [name, str(CORPORA[corpus].sizes[core])]
        if done := finished[core]:
            timed = speed_runs(root, corpus, core)
            rows.append([*start, *_final_cells(done, timed, differences.get(core, "—"))])
        elif num_diverged:
            rows.append([*start, *["—"] * (len(rows[0]) - 2)])
    return rows


def against_awd_lstm(nats: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """How much higher each core's perplexity is than AWD-LSTM's, in percent, with 95% intervals.

    These are the study's primary comparisons: Welch's tests over seeds, p adjusted for all of them
    together (Holm 1979).

    Args:
        nats: Core → nats per token of each seed.
    """
    base = nats.get("awd_lstm", ())
    tests = {
        core: test
        for core, values in nats.items()
        if core != "awd_lstm" and (test := t_test(base, values, is_paired=False))
    }
    adjusted = holm([test.p for test in tests.values()])
    texts = {}
    for (core, test), p in zip(tests.items(), adjusted, strict=True):
        percent, low, high = (100 * math.expm1(value) for value in test[:3])
        texts[core] = f"{percent:+.1f}% ({low:+.1f} to {high:+.1f}), p {p_text(p)}"
    return texts


def _perplexity_cell(job: Job | None) -> str:
    perplexity = valid_perplexity(job) if job else None
    if perplexity is None:
        return "—"
    return "diverged" if perplexity == math.inf else f"{perplexity:.2f}"


def _final_cells(jobs: Sequence[Job], timed: Sequence[Job], difference: str) -> Iterable[str]:
    overrides = jobs[0].overrides
    yield f"{overrides['optimizer.lr']}"
    yield f"{overrides['model.core.input_dropout'] / DROPOUTS['model.core.input_dropout']:g}"
    results = [read_json(job.folder / "results.json") for job in jobs]
    for split in ("val", "test"):
        yield estimate_text(estimate([result[split]["ppl"] for result in results]))
    floor = results[0]["data"].get("perplexity_floor")
    bits = [math.log2(result["test"]["ppl"] / floor["test"]) for result in results if floor]
    yield f"{statistics.fmean(bits):.3f}" if bits else "—"
    yield difference
    found = _values(jobs, "evaluation-cache-test.json", "ppl")
    yield estimate_text(estimate(found)) if found else "—"
    speeds = _values(timed, "results.json", "train", "tokens_per_second")
    yield f"{statistics.median(speeds):,.0f}" if speeds else "—"
    yield f"{max(result['train']['peak_memory_bytes'] for result in results) / 2**30:.2f}"
    times = _values(timed, GENERATION, "milliseconds_per_word")
    yield f"{statistics.median(times):.2f}" if times else "—"


def _values(jobs: Sequence[Job], name: str, *keys: str) -> list[Any]:
    """A value of a JSON file in each job's folder that has it."""
    paths = [job.folder / name for job in jobs]
    values: list[Any] = [read_json(path) for path in paths if path.exists()]
    return [reduce(getitem, keys, value) for value in values]


def _lines(table: Sequence[Sequence[str]]) -> Iterable[str]:
    for row in (table[0], ["---"] * len(table[0]), *table[1:]):
        yield f"| {' | '.join(row)} |"

"""What an evaluation found: for programs, for people, and target by target."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lmbench.data.articles import article_starts
from lmbench.data.vocabulary import count_words
from lmbench.errors import UserError
from lmbench.evaluation.evaluator import Evaluator, describe
from lmbench.evaluation.reading import Reading
from lmbench.evaluation.summary import articles, summarize
from lmbench.files import replace_text
from lmbench.report.records import write_columns
from lmbench.terminal.printing import printable

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """An evaluation of a split."""

    results: dict[str, Any]
    """The content of ``evaluation-NAME-SPLIT.json``."""
    reading: Reading
    """The targets with their log-probabilities."""
    article_starts: np.ndarray | None
    """Where articles begin in the split, if it has any."""


def evaluate(
    evaluator: Evaluator,
    splits: Sequence[str],
    *,
    name: str,
    of_run: Mapping[str, Any],
    tune: bool = False,
) -> Iterator[Outcome]:
    """Evaluates splits, one after the other.

    Args:
        evaluator: What evaluates them.
        splits: "valid" and "test", or one of them.
        name: Name of the evaluation.
        of_run: What else the results say about the run.
        tune: Whether to tune the evaluator's modes on valid first, once.

    Yields:
        What was found on each split.

    Raises:
        UserError: There is nothing to tune; or a target has no probability left.
    """
    start = time.perf_counter()
    evaluator.prepare(*splits, *(["valid"] if tune else []))
    prepared_at = time.perf_counter()
    tuned = evaluator.tune() if tune else None
    tuned_at = time.perf_counter()
    beforehand = {
        "tuning_seconds": tuned_at - prepared_at if tune else None,
        "preparation_seconds": prepared_at - start if evaluator.reading_modes else None,
    }
    for split in splits:
        yield _evaluate(evaluator, split, name, of_run, tuned, beforehand)


def _evaluate(
    evaluator: Evaluator,
    split: str,
    name: str,
    of_run: Mapping[str, Any],
    tuned: Mapping[str, Any] | None,
    beforehand: Mapping[str, float | None],
) -> Outcome:
    begin = time.perf_counter()
    reading = evaluator.read(split)
    remedies = [mode.remedy for mode in evaluator.reading_modes]
    _require_probabilities(reading, remedy=" ".join(remedies) or "The model has diverged.")
    without: dict[str, Any] = {}
    seconds: dict[str, Any] = {}
    for mode in evaluator.rescoring_modes:
        before = time.perf_counter()
        without[f"without_{mode.name}"] = reading.score.plain()
        reading = mode.rescored(reading, evaluator)
        _require_probabilities(reading, remedy=mode.remedy)
        seconds[f"{mode.name}_seconds"] = time.perf_counter() - before
    end = time.perf_counter()
    corpus = evaluator.corpus
    starts = article_starts(getattr(corpus, split), corpus.vocabulary)
    counts = count_words(corpus.train, len(corpus.vocabulary))
    results = {
        "lmbench_version": version("lmbench"),
        **of_run,
        "evaluation": {"name": name, **evaluator.plain_settings(split)},
        "split": split,
        "corpus_sha256": corpus.sha256,
        "tuned": tuned,
        **reading.score.plain(),
        **without,
        **summarize(reading, corpus.vocabulary, counts=counts, article_starts=starts),
        "seconds": end - begin,
        **seconds,
        **beforehand,
        "environment": {
            "torch": torch.__version__,
            "num_threads": torch.get_num_threads(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    }
    return Outcome(results, reading, starts)


def write(outcome: Outcome, run_dir: Path, *, save_tokens: bool) -> None:
    """Writes ``evaluation-NAME-SPLIT.json`` and, if wanted, the record of all targets beside it.

    Args:
        outcome: What was found.
        run_dir: The run's directory.
        save_tokens: Whether to write the record; if not, one of an earlier evaluation is deleted.
    """
    results = outcome.results
    path = run_dir / f"evaluation-{results['evaluation']['name']}-{results['split']}"
    if save_tokens:
        reading = outcome.reading
        columns = {"position": reading.positions, "target": reading.targets}
        columns["log_probability"] = reading.log_probs.numpy()
        if outcome.article_starts is not None:
            columns["article"] = articles(reading, outcome.article_starts)
        write_columns(path.with_name(f"{path.name}.parquet"), columns)
    else:  # an earlier record would not belong to these results
        for ending in ("parquet", "txt"):
            earlier = path.with_name(f"{path.name}.{ending}")
            if earlier.exists():
                earlier.unlink()
                log.info("removed %s, from an earlier evaluation", earlier)
    write_results(path.with_name(f"{path.name}.json"), results, "evaluation")


def write_results(path: Path, results: Mapping[str, Any], key: str) -> None:
    """Writes a JSON file, with a warning if it replaces one that differs in ``key``."""
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with suppress(OSError, ValueError, KeyError, TypeError):  # no earlier results, or damaged ones
        if json.loads(path.read_text("utf-8"))[key] != results[key]:
            log.warning("replacing %s, from an evaluation with other settings", path)
    replace_text(path, text)


def show(results: Mapping[str, Any]) -> None:
    """Prints the results as a table."""
    evaluation = results["evaluation"]
    rows = {"all": results}
    for key, score in results.items():
        if key.startswith("without_") and score is not None:
            rows[f"all, without the {key.removeprefix('without_')}"] = score
    names = {
        "training_count": "in training {} times",
        "article_position": "tokens {} of an article",
        "unk": "{}",
    }
    for group, buckets in results["perplexity_by"].items():
        name = names.get(group, f"{group} {{}}")
        rows |= {name.format(bucket["bucket"]): bucket for bucket in buckets}
    of_modes = [
        f"{name} {describe(settings)}"
        for name, settings in evaluation.items()
        if isinstance(settings, dict)
    ]
    title = f"{results['model']}, {evaluation['name']} evaluation of {results['split']}"
    print(printable(title))
    print(f"{'targets':<36}{'perplexity':>14}{'nats/token':>12}{'tokens':>14}")
    for name, score in rows.items():
        figures = f"{score['ppl']:>14,.2f}{score['nll']:>12.4f}{score['num_tokens']:>14,}"
        print(f"{name:<36}{figures}")
    print(f"{results['bits_per_character']:.3f} bits per character, {results['seconds']:.1f} s")
    reading = f"{evaluation['columns']} column(s), windows of {evaluation['window']}"
    print(", ".join([reading, *of_modes]))


def _require_probabilities(reading: Reading, *, remedy: str) -> None:
    lost = ~(reading.log_probs > math.log(np.finfo(np.float64).tiny))
    if lost.any():
        position = reading.positions[int(lost.nonzero()[0])]
        raise UserError(
            f"{int(lost.sum()):,} of {len(lost):,} targets have no probability above zero, the "
            f"first of them at position {position:,}. {remedy}"
        )

"""What an evaluation found: for programs, for people, and target by target."""

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lmbench.data.articles import article_starts
from lmbench.data.corpus import Corpus
from lmbench.data.vocabulary import count_words
from lmbench.errors import UserError
from lmbench.evaluation.evaluator import Evaluator
from lmbench.evaluation.reading import Reading
from lmbench.evaluation.record import write_record
from lmbench.evaluation.summary import summarize
from lmbench.evaluation.tuning import Grids
from lmbench.files import replace_text

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Outcome:
    """An evaluation of a split.

    Attributes:
        results: All that ``evaluation-NAME-SPLIT.json`` says.
        reading: The targets with their log-probabilities.
        article_starts: Where articles begin in the split, if it has any.
    """

    results: dict[str, Any]
    reading: Reading
    article_starts: np.ndarray | None


def evaluate(
    evaluator: Evaluator,
    corpus: Corpus,
    split: str,
    *,
    name: str,
    of_run: Mapping[str, Any],
    grids: Grids | None = None,
) -> Outcome:
    """Evaluates a split, after tuning on valid where grids are given.

    Args:
        evaluator: What evaluates it.
        corpus: The evaluator's corpus.
        split: "valid" or "test".
        name: Name of the evaluation.
        of_run: What the results are to say of the run besides.
        grids: Grids of the cache and of dynamic evaluation; None tunes nothing.

    Raises:
        UserError: There is nothing to tune; or a target has no probability left.
    """
    start = time.perf_counter()
    evaluator.prepare(*({split} if grids is None else {split, "valid"}))
    prepared = time.perf_counter()
    tuned = None
    if grids is not None:
        if evaluator.cache is None and evaluator.dynamic is None:
            raise UserError("evaluation.tune=true: this evaluation has nothing to tune.")
        tuned = evaluator.tune(*grids)
    begin = time.perf_counter()
    without_cache = evaluator.read(split)
    read = time.perf_counter()
    reading = evaluator.with_cache(without_cache, split)
    end = time.perf_counter()
    learns = evaluator.dynamic is not None
    remedy = "Set evaluation.dynamic.lr lower." if learns else "The model has diverged."
    _require_probabilities(without_cache, remedy=remedy)
    _require_probabilities(reading, remedy="Set evaluation.cache.theta lower.")
    starts = article_starts(getattr(corpus, split), corpus.vocabulary)
    counts = count_words(corpus.train, len(corpus.vocabulary))
    results = {
        "lmbench_version": version("lmbench"),
        **of_run,
        "evaluation": {"name": name, **evaluator.settings(split)},
        "split": split,
        "corpus_sha256": corpus.sha256,
        "tuned": tuned,
        **_score(reading),
        "without_cache": _score(without_cache) if evaluator.cache is not None else None,
        **summarize(reading, corpus.vocabulary, counts=counts, article_starts=starts),
        "seconds": end - begin,
        "cache_seconds": end - read if evaluator.cache is not None else None,
        "tuning_seconds": begin - prepared if tuned is not None else None,
        "statistics_seconds": prepared - start if evaluator.dynamic is not None else None,
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
        save_tokens: Whether to write the record; one of an earlier evaluation goes if not.
    """
    results = outcome.results
    path = run_dir / f"evaluation-{results['evaluation']['name']}-{results['split']}"
    if save_tokens:
        write_record(outcome.reading, path, outcome.article_starts)
    else:  # it would not belong to these results
        for ending in ("parquet", "txt"):
            before = path.with_name(f"{path.name}.{ending}")
            if before.exists():
                before.unlink()
                log.info("%s, of an evaluation before, is removed", before)
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    path = path.with_name(f"{path.name}.json")
    before = _settings_in(path)
    if before not in (None, results["evaluation"]):
        log.warning("%s, of an evaluation with other settings, is replaced", path)
    replace_text(path, text)


def _settings_in(path: Path) -> Any:
    """How the evaluation was made whose results a file holds; None if there is none to read."""
    try:
        return json.loads(path.read_text("utf-8"))["evaluation"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def show(results: Mapping[str, Any]) -> None:
    """Prints the results as tables."""
    evaluation = results["evaluation"]
    title = f"{results['model']}, {evaluation['name']} evaluation of {results['split']}"
    table = Table(title=title, title_justify="left")
    for column in ("targets", "perplexity", "nats/token", "tokens"):
        table.add_column(column, justify="left" if column == "targets" else "right")
    table.add_row(*_cells("all", results), end_section=results["without_cache"] is None)
    if results["without_cache"] is not None:
        table.add_row(*_cells("all, without the cache", results["without_cache"]), end_section=True)
    names = {
        "training_count": "in training {} times",
        "article_position": "tokens {} of an article",
        "unk": "{}",
    }
    for group, buckets in results["perplexity_by"].items():
        for bucket in buckets:
            last = bucket is buckets[-1]
            name = names[group].format(bucket["bucket"])
            table.add_row(*_cells(name, bucket), end_section=last)
    table.caption = ", ".join(
        [
            f"{results['bits_per_character']:.3f} bits per character",
            f"{evaluation['columns']} column(s), windows of {evaluation['window']}",
            *(
                f"{kind} " + ", ".join(f"{name} {value}" for name, value in settings.items())
                for kind in ("cache", "dynamic")
                if (settings := evaluation[kind])
            ),
            f"{results['seconds']:.1f} s",
        ]
    )
    Console().print(table)


def _cells(name: str, score: Mapping[str, Any]) -> list[str]:
    return [name, f"{score['ppl']:,.2f}", f"{score['nll']:.4f}", f"{score['num_tokens']:,}"]


def _score(reading: Reading) -> dict[str, Any]:
    nll = reading.nll
    return {"nll": nll, "ppl": math.exp(nll), "num_tokens": len(reading.positions)}


def _require_probabilities(reading: Reading, *, remedy: str) -> None:
    lost = ~(reading.log_probs > math.log(np.finfo(np.float64).tiny))
    if lost.any():
        position = reading.positions[int(lost.nonzero()[0])]
        raise UserError(
            f"{int(lost.sum()):,} of {len(lost):,} targets are left without a probability, the "
            f"first of them at position {position:,}. {remedy}"
        )

"""Perplexity of valid and test, target by target: the measure of ``evaluation=standard``."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from lmbench.data.articles import article_starts
from lmbench.data.columns import EvaluationSettings
from lmbench.data.vocabulary import count_words
from lmbench.errors import UserError
from lmbench.evaluation._summary import articles, summarize
from lmbench.evaluation.evaluator import Evaluator, ReadingMode, RescoringMode, describe
from lmbench.evaluation.measure import Measure, Outcome, TrainedRun
from lmbench.evaluation.reading import Reading
from lmbench.machine import set_up_allocator
from lmbench.report.records import write_columns
from lmbench.terminal.printing import printable

_GROUPS = {
    "training_count": "in training {} times",
    "article_position": "tokens {} of an article",
    "unk": "{}",
}


@dataclass
class SplitPerplexity(Measure):
    """Perplexity of splits, read as they are or in one or more modes.

    Args:
        settings: How the splits are read.
        modes: What is done beyond the standard evaluation.
        tune: Whether to tune the modes on valid first, once.
        save_tokens: Whether to write the log-probability of every target.

    Raises:
        ValueError: What is given as a mode is none.
    """

    settings: EvaluationSettings = field(default_factory=EvaluationSettings)
    modes: Sequence[ReadingMode | RescoringMode] = ()
    tune: bool = False
    save_tokens: bool = False

    def __post_init__(self) -> None:
        for mode in self.modes:
            if not isinstance(mode, (ReadingMode, RescoringMode)):
                raise ValueError(f"modes must read or rescore targets: {mode!r} does neither")

    def outcomes(self, run: TrainedRun, splits: Sequence[str], name: str) -> Iterator[Outcome]:
        """Evaluates splits, one after the other.

        Raises:
            UserError: There is nothing to tune; or a target has no probability left.
        """
        set_up_allocator(keep_large=True)  # all windows have the same size
        folder = run.folder / "checkpoints"
        evaluator = Evaluator(run.model, run.corpus, folder, self.settings, self.modes)
        start = time.perf_counter()
        evaluator.prepare(*splits, *(["valid"] if self.tune else []))
        prepared_at = time.perf_counter()
        tuned = evaluator.tune() if self.tune else None
        tuned_at = time.perf_counter()
        beforehand = {
            "tuning_seconds": tuned_at - prepared_at if self.tune else None,
            "preparation_seconds": prepared_at - start if evaluator.reading_modes else None,
        }
        for split in splits:
            yield self._outcome(run, evaluator, split, name, tuned, beforehand)

    def _outcome(
        self,
        run: TrainedRun,
        evaluator: Evaluator,
        split: str,
        name: str,
        tuned: Mapping[str, Any] | None,
        beforehand: Mapping[str, float | None],
    ) -> Outcome:
        begin = time.perf_counter()
        reading, scores, seconds = _read(evaluator, split)
        seconds = {"seconds": time.perf_counter() - begin, **seconds, **beforehand}
        corpus = run.corpus
        starts = article_starts(getattr(corpus, split), corpus.vocabulary)
        counts = count_words(corpus.train, len(corpus.vocabulary))
        results = {
            **run.about,
            "evaluation": {"name": name, **evaluator.plain_settings(split)},
            "split": split,
            "tuned": tuned,
            **scores,
            **summarize(reading, corpus.vocabulary, counts=counts, article_starts=starts),
            **seconds,
            "environment": {
                "torch": torch.__version__,
                "num_threads": torch.get_num_threads(),
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
            },
        }
        write_records = partial(write_columns, columns=_columns(reading, starts))
        return Outcome(
            name=f"evaluation-{name}-{split}",
            results=results,
            settings="evaluation",
            figure=results["ppl"],
            table=_table(results),
            write_records=write_records if self.save_tokens else None,
        )


def _read(evaluator: Evaluator, split: str) -> tuple[Reading, dict[str, Any], dict[str, float]]:
    """A split's reading, its score and those before each rescoring, and what rescoring took."""
    reading = evaluator.read(split)
    remedies = [mode.remedy for mode in evaluator.reading_modes]
    _require_probabilities(reading, remedy=" ".join(remedies) or "The model has diverged.")
    without: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for mode in evaluator.rescoring_modes:
        before = time.perf_counter()
        without[f"without_{mode.name}"] = reading.score.plain()
        reading = mode.rescored(reading, evaluator)
        _require_probabilities(reading, remedy=mode.remedy)
        seconds[f"{mode.name}_seconds"] = time.perf_counter() - before
    return reading, {**reading.score.plain(), **without}, seconds


def _columns(reading: Reading, starts: np.ndarray | None) -> dict[str, np.ndarray]:
    columns = {
        "position": reading.positions,
        "target": reading.targets,
        "log_probability": reading.log_probs.numpy(),
    }
    return columns if starts is None else {**columns, "article": articles(reading, starts)}


def _table(results: Mapping[str, Any]) -> str:
    evaluation = results["evaluation"]
    rows = {"all": results}
    for key, score in results.items():
        if key.startswith("without_"):
            rows[f"all, without the {key.removeprefix('without_')}"] = score
    for group, buckets in results["perplexity_by"].items():
        rows |= {_GROUPS[group].format(bucket["bucket"]): bucket for bucket in buckets}
    modes = [
        f"{name} {describe(settings)}"
        for name, settings in evaluation.items()
        if isinstance(settings, dict)
    ]
    reading = f"{evaluation['columns']} column(s), windows of {evaluation['window']}"
    return "\n".join(
        [
            printable(f"{results['model']}, {evaluation['name']} evaluation of {results['split']}"),
            f"{'targets':<36}{'perplexity':>14}{'nats/token':>12}{'tokens':>14}",
            *(
                f"{name:<36}{row['ppl']:>14,.2f}{row['nll']:>12.4f}{row['num_tokens']:>14,}"
                for name, row in rows.items()
            ),
            f"{results['bits_per_character']:.3f} bits per character, {results['seconds']:.1f} s",
            ", ".join([reading, *modes]),
        ]
    )


def _require_probabilities(reading: Reading, *, remedy: str) -> None:
    lost = ~(reading.log_probs > math.log(np.finfo(np.float64).tiny))
    if lost.any():
        position = reading.positions[int(lost.nonzero()[0])]
        raise UserError(
            f"{int(lost.sum()):,} of {len(lost):,} targets have no probability above zero, the "
            f"first of them at position {position:,}. {remedy}"
        )

"""A model evaluated on the splits of its corpus: standard, with a cache, dynamically, or both."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmbench.data.columns import PROTOCOLS, Columns, columns_by_protocol
from lmbench.data.corpus import Corpus
from lmbench.errors import UserError
from lmbench.evaluation.cache import Cache, with_cache
from lmbench.evaluation.dynamic import Dynamic, learning
from lmbench.evaluation.gradient_statistics import (
    Statistics,
    gradient_statistics,
    keep_statistics,
)
from lmbench.evaluation.reading import OnWindow, Reading, read_stream
from lmbench.evaluation.tuning import CacheGrid, DynamicGrid, tune_cache, tune_dynamic
from lmbench.model.language_model import LanguageModel

Phase = Callable[[str, int], AbstractContextManager[OnWindow]]
"""Opens a phase of a name and a number of targets, and is told how it goes on."""


@contextmanager
def silent(phase: str, num_targets: int) -> Iterator[OnWindow]:
    """Shows nothing."""
    yield lambda num_scored, nats: None


class Evaluator:
    """Reads the splits of a corpus with a model.

    Args:
        model: The trained model.
        corpus: The corpus that it was trained on.
        protocol: See :func:`lmbench.data.columns.columns_by_protocol`.
        columns: Likewise.
        burn_in: Likewise.
        window: Time steps that are read at once; with ``dynamic``, of a segment. It moves results
            only with that and with the cache's ``warmup``.
        cache: Settings of the cache; None for none.
        dynamic: Settings of dynamic evaluation; None for none.
        statistics_columns: Columns in which the training split is read for gradient statistics.
        statistics_segments: Segments that are read at most; None for all.
        statistics_path: File that keeps the statistics for the next evaluation; None for none.
        phase: Shows how it goes on.

    Attributes:
        cache: Settings of the cache, as given or as :meth:`tune` found them.
        dynamic: Likewise.

    Raises:
        ValueError: The protocol is unknown, or a number is out of its range.
    """

    def __init__(
        self,
        model: LanguageModel,
        corpus: Corpus,
        *,
        protocol: str = "standard",
        columns: int = 64,
        burn_in: int = 512,
        window: int = 70,
        cache: Cache | None = None,
        dynamic: Dynamic | None = None,
        statistics_columns: int = 100,
        statistics_segments: int | None = None,
        statistics_path: Path | None = None,
        phase: Phase = silent,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
        for name, value, least in (
            ("columns", columns, 1),
            ("burn_in", burn_in, 0),
            ("window", window, 1),
            ("statistics_columns", statistics_columns, 1),
            ("statistics_segments", 1 if statistics_segments is None else statistics_segments, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        self.cache = cache
        self.dynamic = dynamic
        self._model = model
        self._corpus = corpus
        self._protocol = protocol
        self._columns = columns
        self._burn_in = burn_in
        self._window = window
        self._statistics_columns = statistics_columns
        self._statistics_segments = statistics_segments
        self._statistics_path = statistics_path
        self._phase = phase

    def settings(self, split: str) -> dict[str, Any]:
        """How a split is evaluated, in plain values."""
        columns = self._columns_of(split)
        statistics = {"columns": self._statistics_columns, "segments": self._statistics_segments}
        return {
            "protocol": self._protocol,
            "columns": columns.num_columns,
            "burn_in": 0 if self._protocol == "published" else self._burn_in,
            "window": self._window,
            "cache": asdict(self.cache) if self.cache else None,
            "dynamic": asdict(self.dynamic) if self.dynamic else None,
            "statistics": statistics if self._needs_statistics else None,
        }

    def prepare(self, *splits: str) -> None:
        """Computes what the readings need, so that it need not count as their time.

        Args:
            splits: Those that are to be read.

        Raises:
            UserError: The training split is too short for the columns of the statistics; or a split
                would be read in more columns than the evaluation can do with.
        """
        for split in splits:
            self._require_columns(self._columns_of(split), self.dynamic)
        if not self._needs_statistics:
            return
        most = len(self._corpus.train) // 3
        if self._statistics_columns > most:
            raise UserError(
                f"evaluation.dynamic.statistics.columns={self._statistics_columns} are too many "
                f"for a training split of {len(self._corpus.train):,} tokens: set {max(1, most)} "
                "or less."
            )
        _ = self._statistics

    def read(self, split: str) -> Reading:
        """Scores valid or test without the cache; its outputs are kept where a cache is to come."""
        return self._read(split, self.dynamic)

    def with_cache(self, reading: Reading, split: str) -> Reading:
        """Lays the cache over a reading; without one, the reading itself."""
        if self.cache is None:
            return reading
        with self._phase(f"cache over {split}", len(reading.positions)) as on_window:
            return with_cache(
                reading,
                self.cache,
                steps_at_once=self._window,
                device=self._model.device,
                on_queries=lambda number: on_window(number, 0.0),
            )

    def tune(
        self, cache_grid: CacheGrid | None, dynamic_grid: DynamicGrid | None
    ) -> dict[str, Any]:
        """Replaces the settings by the best of the grids, on valid alone.

        The cache is tuned on the reading with the tuned dynamic evaluation, where there is one, and
        on the same tokens.

        Returns:
            ``num_tokens`` (None for all of valid), and under ``cache`` and ``dynamic``, where there
            is such a thing to tune, all that was tried.
        """
        num_tokens = None
        tried: dict[str, Any] = {}
        if self.dynamic is not None and dynamic_grid is not None:
            num_tokens = dynamic_grid.num_tokens
            self.dynamic, tried["dynamic"] = tune_dynamic(
                lambda dynamic: self._read("valid", dynamic, num_tokens),
                self.dynamic,
                dynamic_grid,
            )
        if self.cache is not None and cache_grid is not None:
            reading = self._read("valid", self.dynamic, num_tokens)
            with self._phase("cache, the whole grid", len(reading.positions)) as on_window:
                self.cache, tried["cache"] = tune_cache(
                    reading,
                    self.cache,
                    cache_grid,
                    steps_at_once=self._window,
                    device=self._model.device,
                    on_queries=lambda number: on_window(number, 0.0),
                )
        return {"num_tokens": num_tokens, **tried}

    def _read(self, split: str, dynamic: Dynamic | None, num_tokens: int | None = None) -> Reading:
        columns = self._columns_of(split, num_tokens)
        self._require_columns(columns, dynamic)
        name = f"reading {split}"
        learner: AbstractContextManager[Any] = nullcontext()
        if dynamic is not None:
            name += f" dynamically, lr {dynamic.lr:g}, decay {dynamic.decay:g}"
            statistics = self._statistics if self._needs_statistics else None
            learner = learning(self._model, dynamic, statistics)
        num_targets = columns.num_scored(0, columns.num_rows)
        with self._phase(name, num_targets) as on_window, learner as learn:
            return read_stream(
                self._model,
                columns,
                window=self._window,
                keep_outputs=self.cache is not None,
                learn=learn,
                on_window=on_window,
            )

    def _require_columns(self, columns: Columns, dynamic: Dynamic | None) -> None:
        if self.cache is not None and self.cache.warmup and columns.num_columns > 1:
            raise UserError(
                "evaluation.cache.warmup=true is the published script's, which reads a split in "
                f"one column, not in {columns.num_columns}, and in windows of 2,000: set "
                "evaluation.columns=1, evaluation.window=2000 and evaluation.protocol=standard."
            )
        if dynamic is not None and dynamic.lr > 0 and columns.num_columns > 1:
            # The last column is read from its start while the first one is.
            raise UserError(
                f"Dynamic evaluation in {columns.num_columns} columns would score text with a "
                "model that has learnt from what follows it: set evaluation.columns=1 and "
                "evaluation.protocol=standard."
            )

    def _columns_of(self, split: str, num_tokens: int | None = None) -> Columns:
        return columns_by_protocol(
            getattr(self._corpus, split)[:num_tokens],
            split,
            protocol=self._protocol,
            columns=self._columns,
            burn_in=self._burn_in,
        )

    @property
    def _needs_statistics(self) -> bool:
        return self.dynamic is not None and self.dynamic.rule == "rms"

    @functools.cached_property
    def _statistics(self) -> Statistics:
        made_from = {
            "weights": self._model.weights_sha256(),
            "corpus": self._corpus.sha256,
            "window": self._window,
            "columns": self._statistics_columns,
            "segments": self._statistics_segments,
        }
        if self._statistics_path is None:
            return self._compute_statistics()
        shapes = {name: weight.shape for name, weight in self._model.named_parameters()}
        return keep_statistics(self._statistics_path, made_from, shapes, self._compute_statistics)

    def _compute_statistics(self) -> Statistics:
        num_targets = len(self._corpus.train)
        if self._statistics_segments is not None:
            segment = self._window * self._statistics_columns
            num_targets = min(num_targets, segment * self._statistics_segments)
        with self._phase("gradient statistics of train", num_targets) as on_window:
            return gradient_statistics(
                self._model,
                self._corpus.train,
                window=self._window,
                num_columns=self._statistics_columns,
                num_segments=self._statistics_segments,
                on_window=on_window,
            )

"""Evaluation of a model on the splits of its corpus: as it is, or in one or more modes.

Each node of ``evaluation`` in a config that has a ``_target_`` makes a mode. A new mode is thus a
file beside this one and a file in ``conf/evaluation/``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lmbench.data.columns import Columns, EvaluationSettings
from lmbench.data.corpus import Corpus
from lmbench.errors import UserError
from lmbench.evaluation.progress import OnWindow, progress_of
from lmbench.evaluation.reading import Learn, Reading, read_stream
from lmbench.evaluation.tuning import Grid, KeptScores, tune_in_turn, warn_of_edges
from lmbench.model.language_model import LanguageModel
from lmbench.perplexity import Score


class Mode:
    """What an evaluation does beyond the standard one: a dataclass of plain settings.

    Attributes:
        name: Its key in ``evaluation``, in the config and in the results.
        remedy: What to do if it leaves a target without a probability.
        grid: What tuning tries; None for a mode that is not tuned.
    """

    name: ClassVar[str]
    remedy: ClassVar[str]
    grid: Grid | None

    def settings(self) -> dict[str, Any]:
        """What the results say about it, as a plain dict: its settings under its name."""
        return {self.name: {key: value for key, value in vars(self).items() if key != "grid"}}

    @property
    def why_one_column(self) -> str:
        """Why it cannot work with several columns; empty if it can."""
        return ""


class ReadingMode(Mode):
    """A mode that changes the model while it reads.

    Attributes:
        samples: Number of readings that it combines; 0 if it has no say in that.
    """

    samples: int = 0

    def prepare(self, evaluator: "Evaluator") -> None:
        """Computes what it needs, before the timed reading."""

    def during(self, evaluator: "Evaluator") -> AbstractContextManager[Learn | None]:
        """The context in which a split is read; on exit the model is as it was before.

        Yields:
            The argument ``learn`` of :func:`lmbench.evaluation.reading.read_stream`, or None.
        """
        return nullcontext()

    def repeated(
        self, read: Callable[[float], Reading], evaluator: "Evaluator", on_window: OnWindow
    ) -> Reading:
        """Combines the readings of a split; other modes act anew in each.

        Args:
            read: Reads the split once, with the dropouts' probabilities times its argument.
            evaluator: Provides the model.
            on_window: What ``read`` calls after each window.
        """
        return read(0.0)


class RescoringMode(Mode, ABC):
    """A mode that gives the targets of a finished reading other probabilities.

    The reading has kept its outputs; the model is the trained one again, not as it was for reading.
    """

    @abstractmethod
    def rescored(self, reading: Reading, evaluator: "Evaluator") -> Reading:
        """The same targets with other log-probabilities."""

    @abstractmethod
    def tune(self, reading: Reading, evaluator: "Evaluator") -> list[dict[str, Any]]:
        """Adopts the best settings of its grid for a reading of valid.

        Returns:
            A :func:`lmbench.evaluation.tuning.trial` for each combination that was tried.
        """


@dataclass
class Evaluator:
    """Reads the splits of a corpus with a model.

    Args:
        model: The trained model.
        corpus: The corpus that it was trained on.
        folder: Where modes keep what they compute for the next evaluation.
        settings: How the splits are read.
        modes: What is done beyond the standard evaluation. Those that change the reading come
            before those that rescore it, and each kind in the order of the names.

    Attributes:
        reading_modes: The modes that change the reading, in order.
        rescoring_modes: The modes that rescore it, in order.
    """

    model: LanguageModel
    corpus: Corpus
    folder: Path
    settings: EvaluationSettings
    modes: Sequence[ReadingMode | RescoringMode] = ()

    def __post_init__(self) -> None:
        # Tuning depends on the order, and the name of the evaluation does not say it.
        self.modes = sorted(self.modes, key=lambda mode: mode.name)
        self.reading_modes = [mode for mode in self.modes if isinstance(mode, ReadingMode)]
        self.rescoring_modes = [mode for mode in self.modes if isinstance(mode, RescoringMode)]

    def plain_settings(self, split: str) -> dict[str, Any]:
        """How a split is evaluated, as a plain dict."""
        settings = {
            **self.settings.plain(self._columns_of(split).num_columns),
            "window": self.settings.window,
        }
        for mode in self.modes:
            settings |= mode.settings()
        return settings

    def prepare(self, *splits: str) -> None:
        """Computes what reading these splits needs, so that it does not count as their time.

        Raises:
            UserError: A mode cannot read a split in so many columns, or refuses the corpus.
        """
        for split in splits:
            self._columns_of(split)
        for mode in self.reading_modes:
            mode.prepare(self)

    def read(self, split: str, num_tokens: int | None = None) -> Reading:
        """Scores valid or test, or its first tokens, with the modes that change the reading."""
        columns = self._columns_of(split, num_tokens)
        repeating = max(self.reading_modes, key=lambda mode: mode.samples, default=ReadingMode())
        phase = f"reading {split}" + (f" {repeating.samples} times" if repeating.samples else "")
        for mode in self.reading_modes:
            phase += f", {mode.name} {describe(mode.settings()[mode.name])}"

        def read_once(dropout_factor: float = 0.0) -> Reading:
            learn = None
            with ExitStack() as stack:
                for mode in self.reading_modes:
                    learn = stack.enter_context(mode.during(self)) or learn
                return read_stream(
                    self.model,
                    columns,
                    window=self.settings.window,
                    keep_outputs=bool(self.rescoring_modes),
                    learn=learn,
                    dropout_factor=dropout_factor,
                    on_window=on_window,
                )

        num_scored = columns.num_scored(0, columns.num_rows)
        with progress_of(phase, max(1, repeating.samples) * num_scored) as on_window:
            return repeating.repeated(read_once, self, on_window)

    def tune(self) -> dict[str, Any]:
        """Gives each mode that has a grid its best settings, on valid alone.

        All are tuned on the same tokens, one after the other. Other modes that read, tuned already
        or not, act meanwhile with the settings that they have; those that rescore come after.

        Returns:
            ``num_tokens`` (None for all of valid), and everything that was tried, by mode name.

        Raises:
            UserError: No mode has a grid.
        """
        grids = {mode.name: mode.grid for mode in self.modes if mode.grid}
        if not grids:
            raise UserError("evaluation.tune=true: this evaluation has nothing to tune.")
        limits = [grid.get("num_tokens") for grid in grids.values()]
        num_tokens = min((limit for limit in limits if limit), default=None)
        if num_tokens is not None and num_tokens >= len(self.corpus.valid):
            num_tokens = None
        made_from = {
            "weights": self.model.weights_sha256(),
            "corpus": self.corpus.sha256,
            "window": self.settings.window,
            **self.settings.plain(self._columns_of("valid", num_tokens).num_columns),
            "num_tokens": num_tokens,
        }
        kept = KeptScores(self.folder / "tuning.json", made_from)

        def score() -> Score:
            settings = [mode.settings() for mode in self.reading_modes]
            return kept.score(settings, lambda: self.read("valid", num_tokens).score)

        tried: dict[str, Any] = {}
        for mode in self.reading_modes:
            if mode.grid:
                tried[mode.name] = tune_in_turn(mode, score)
        if grids.keys() - tried.keys():
            reading = self.read("valid", num_tokens)
            for mode in self.rescoring_modes:
                if mode.grid:
                    tried[mode.name] = mode.tune(reading, self)
                if mode is not self.rescoring_modes[-1]:
                    reading = mode.rescored(reading, self)
        for mode in self.modes:
            warn_of_edges(mode)
        return {"num_tokens": num_tokens, **tried}

    def _columns_of(self, split: str, num_tokens: int | None = None) -> Columns:
        columns = self.settings.arrange(getattr(self.corpus, split)[:num_tokens], split)
        for mode in self.modes:
            if columns.num_columns > 1 and mode.why_one_column:
                raise UserError(
                    f"evaluation.{mode.name}: {mode.why_one_column}. Set evaluation.columns=1, not "
                    f"{columns.num_columns}, and evaluation.protocol=standard."
                )
        return columns


def describe(settings: dict[str, Any]) -> str:
    """Settings as text for people."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())

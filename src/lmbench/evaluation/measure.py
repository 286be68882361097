"""What can be measured of a trained model, and what comes of it."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmbench.data.corpus import Corpus
from lmbench.data.vocabulary import Vocabulary
from lmbench.files import replace_text
from lmbench.model import LanguageModel

log = logging.getLogger(__name__)


@dataclass
class TrainedRun:
    """A run's best checkpoint, ready to be measured.

    Args:
        folder: The run's directory.
        model: The model, in evaluation mode.
        vocabulary: Its words.
        load_corpus: Reads the corpus that it was trained on, which not every measure needs.
        about: What each result says about the run: the model's name, the seed, hashes.
    """

    folder: Path
    model: LanguageModel
    vocabulary: Vocabulary
    load_corpus: Callable[[], Corpus]
    about: Mapping[str, Any]

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus that the model was trained on."""
        return self.load_corpus()


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Args:
        name: Name of its files, without their endings. Those of perplexities, which
            lmbench-compare reads, begin with ``evaluation-``.
        results: Plain values, for ``NAME.json``.
        settings: The key in ``results`` under which they say how they were measured.
        figure: The one number that a sweep of evaluations is about.
        table: The results for people.
        write_records: Writes what was found for each target, pair or word to the path that it is
            given, ``NAME.parquet``; None to write nothing.
    """

    name: str
    results: Mapping[str, Any]
    settings: str
    figure: float
    table: str
    write_records: Callable[[Path], object] | None = None

    def write(self, folder: Path) -> None:
        """Writes the files, each whole or not at all; warns if other settings' results go."""
        path = folder / f"{self.name}.json"
        records = path.with_suffix(".parquet"), path.with_suffix(".txt")
        if self.write_records:
            self.write_records(records[0])
        for earlier in () if self.write_records else records:
            if earlier.exists():  # it would not belong to these results
                earlier.unlink()
                log.info("removed %s, from an earlier evaluation", earlier)
        with suppress(OSError, ValueError, KeyError, TypeError):  # nothing earlier, or damaged
            if json.loads(path.read_text("utf-8"))[self.settings] != self.results[self.settings]:
                log.warning("replacing %s, from an evaluation with other settings", path)
        text = json.dumps(self.results, indent=2, allow_nan=False, ensure_ascii=False)
        replace_text(path, f"{text}\n")


class Measure(ABC):
    """Something that can be measured of a trained model.

    A config names it as ``_target_`` of ``evaluation``, whose other keys are its arguments. Without
    one, the measure is :class:`lmbench.evaluation.split_perplexity.SplitPerplexity`.
    """

    @abstractmethod
    def outcomes(self, run: TrainedRun, splits: Sequence[str], name: str) -> Iterator[Outcome]:
        """Measures, and yields what was found as soon as it is known.

        Args:
            run: What is measured.
            splits: "valid" and "test", or one of them, for measures of the corpus.
            name: Names of the chosen options, for the names of files.

        Raises:
            UserError: A file or a setting does not fit the model.
        """

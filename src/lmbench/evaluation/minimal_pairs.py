"""Minimal pairs: how often a model finds the grammatical sentence more probable.

Shape letter: P pairs.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from lmbench.data.minimal_pairs import PairSet, read_pairs
from lmbench.data.tokenizer.choice import make_tokenizer, tokenizer_for
from lmbench.data.tokenizer.contract import UNK, Tokenizer
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.evaluation.measure import Measure, Outcome, TrainedRun
from lmbench.evaluation.progress import progress_of
from lmbench.evaluation.surprisal import sentence_surprisals
from lmbench.files import file_stem
from lmbench.model import LanguageModel
from lmbench.report.records import write_table
from lmbench.terminal.printing import printable

LEVELS = ("field", "phenomenon", "paradigm")

TIE_BITS = 1e-4
"""Surprisals that differ by no more are equal: float32 sums of a sentence are up to 2.5e-5 bits off
(8,375 pairs of BLiMP, an LSTM of 14M parameters, against float64)."""


@dataclass(frozen=True, eq=False)
class PairScores:
    """A model's scores for minimal pairs.

    Args:
        good: ``(P,)`` surprisals of the grammatical sentences, in bits.
        bad: ``(P,)`` those of the ungrammatical ones.
        has_unknown: ``(P,)`` whether a word of either sentence was read as ``<unk>``.
        is_identical: ``(P,)`` whether the two sentences are the same to the model.
        unknown_word_share: The share of all words that were read as ``<unk>``.
    """

    good: Float[np.ndarray, " P"]
    bad: Float[np.ndarray, " P"]
    has_unknown: Bool[np.ndarray, " P"]
    is_identical: Bool[np.ndarray, " P"]
    unknown_word_share: float

    @property
    def is_tie(self) -> Bool[np.ndarray, " P"]:
        """Whether neither sentence is more probable, to within :data:`TIE_BITS`."""
        return self.is_identical | (np.abs(self.good - self.bad) <= TIE_BITS)

    @property
    def are_known(self) -> Bool[np.ndarray, " P"]:
        """Whether all words are known and the two sentences differ."""
        return ~self.has_unknown & ~self.is_identical

    @property
    def is_correct(self) -> Bool[np.ndarray, " P"]:
        """Whether the grammatical sentence is more probable."""
        return ~self.is_tie & (self.good < self.bad)


@dataclass
class MinimalPairs(Measure):
    """Accuracy on minimal pairs: the share whose good sentence is more probable.

    A sentence is read by itself after an ``<eos>``, and its probability is the product of those of
    its words, without that of its end (as in Warstadt et al. 2020). A pair whose sentences have the
    same probability, to within :data:`TIE_BITS`, is a tie, and does not count as correct.

    The results hold ``num_pairs``, ``num_correct``, ``num_ties`` and ``accuracy`` of all pairs;
    under ``parts``, of pairs without unknown words, of those with some, and of those whose
    sentences are identical to the model; under ``by``, the same for each field, phenomenon and
    paradigm.

    Args:
        pairs: See :func:`lmbench.data.minimal_pairs.read_pairs`.
        tokenizer: See :func:`lmbench.data.tokenizer.choice.tokenizer_for`.

    Raises:
        ValueError: The tokenizer is unknown.
    """

    pairs: Path
    tokenizer: str | None = "auto"

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            make_tokenizer(self.tokenizer)

    def outcomes(self, run: TrainedRun, splits: Sequence[str], name: str) -> Iterator[Outcome]:
        """Scores all pairs, whatever the splits.

        Raises:
            UserError: See :func:`lmbench.data.minimal_pairs.read_pairs`; or no words are left of a
                sentence; or there are unknown words, and the vocabulary has no ``<unk>``.
        """
        start = time.perf_counter()
        pairs = read_pairs(self.pairs)
        tokenizer = tokenizer_for(run.vocabulary, self.tokenizer)
        scores = score_pairs(run.model, run.vocabulary, tokenizer, pairs)
        levels = {level: [getattr(pair, level) for pair in pairs.pairs] for level in LEVELS}
        results = {
            **run.about,
            "pairs": {"name": pairs.name, "sha256": pairs.sha256, "tokenizer": tokenizer.name},
            **_counts(scores, np.ones(len(pairs.pairs), bool)),
            "unknown_word_share": scores.unknown_word_share,
            "parts": {
                "known": _counts(scores, scores.are_known),
                "unknown": _counts(scores, scores.has_unknown & ~scores.is_identical),
                "identical": _counts(scores, scores.is_identical),
            },
            "by": {level: _by(names, scores) for level, names in levels.items()},
            "seconds": time.perf_counter() - start,
        }
        columns = {
            **{level: pa.array(names, pa.string()) for level, names in levels.items()},
            "good": [pair.good for pair in pairs.pairs],
            "bad": [pair.bad for pair in pairs.pairs],
            "surp_good": scores.good,
            "surp_bad": scores.bad,
            "unknown": scores.has_unknown,
            "identical": scores.is_identical,
            "correct": scores.is_correct,
        }
        yield Outcome(
            name=f"minimal_pairs-{file_stem(pairs.name)}",
            results=results,
            settings="pairs",
            figure=results["accuracy"],
            table=_table(results),
            write_records=partial(write_table, table=pa.table(columns)),
        )


def score_pairs(
    model: LanguageModel, vocabulary: Vocabulary, tokenizer: Tokenizer, pairs: PairSet
) -> PairScores:
    """A model's scores for pairs.

    Raises:
        UserError: See :meth:`MinimalPairs.outcomes`.
    """
    words = [
        tokenizer.cut(text.replace("\n", " "))
        for pair in pairs.pairs
        for text in (pair.good, pair.bad)
    ]
    if [] in words:  # all of it was punctuation that the vocabulary lacks
        pair = pairs.pairs[words.index([]) // 2]
        raise UserError(f"No word is left to read in one of {pair.good!r} and {pair.bad!r}.")
    sentences = [vocabulary.encode([tokenizer.eos, *sentence]) for sentence in words]
    unknown = np.array([sum(word not in vocabulary.ids for word in sentence) for sentence in words])
    num_words = sum(map(len, words))
    with progress_of(f"reading {printable(pairs.name)}", num_words) as on_window:
        surprisals = sentence_surprisals(model, sentences, on_window)
    both = zip(sentences[::2], sentences[1::2], strict=True)
    return PairScores(
        good=surprisals[::2],
        bad=surprisals[1::2],
        has_unknown=unknown[::2] + unknown[1::2] > 0,
        is_identical=np.array([np.array_equal(good, bad) for good, bad in both]),
        unknown_word_share=int(unknown.sum()) / num_words,
    )


def _table(results: Mapping[str, Any]) -> str:
    rows = [("all", results, results["parts"]["known"])]
    for level in ("field", "phenomenon"):
        rows += [(row["name"], row, row["known"]) for row in results["by"][level]]
    return "\n".join(
        [
            printable(f"{results['model']}, minimal pairs of {results['pairs']['name']}"),
            f"{'':<36}{'accuracy':>10}{'pairs':>9}{'ties':>7}{'known words':>13}{'pairs':>9}",
            *(
                f"{printable(name):<36}{_percent(row)}{row['num_pairs']:>9,}{row['num_ties']:>7,}"
                f"{_percent(known):>13}{known['num_pairs']:>9,}"
                for name, row, known in rows
            ),
            f"{results['unknown_word_share']:.1%} of the words are read as {UNK}; "
            f"pairs identical to the model: {results['parts']['identical']['num_pairs']:,}",
        ]
    )


def _counts(scores: PairScores, here: Bool[np.ndarray, " P"]) -> dict[str, Any]:
    num_pairs, num_correct = int(here.sum()), int(scores.is_correct[here].sum())
    return {
        "num_pairs": num_pairs,
        "num_correct": num_correct,
        "num_ties": int(scores.is_tie[here].sum()),
        "accuracy": num_correct / num_pairs if num_pairs else None,
    }


def _by(names: Sequence[str | None], scores: PairScores) -> list[dict[str, Any]]:
    """Counts for each name, in alphabetical order."""
    array = np.array([name or "" for name in names])
    return [
        {
            "name": name,
            **_counts(scores, array == name),
            "known": _counts(scores, (array == name) & scores.are_known),
        }
        for name in sorted(set(array.tolist()) - {""})
    ]


def _percent(counts: Mapping[str, Any]) -> str:
    accuracy = counts["accuracy"]
    return f"{'' if accuracy is None else f'{accuracy:.1%}':>10}"

"""Minimal pairs: how often a model finds the grammatical sentence more probable.

Shape letter: P pairs.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from lmbench.data.minimal_pairs import PairSet
from lmbench.data.tokenizer.contract import Tokenizer
from lmbench.data.vocabulary import UNK, Vocabulary
from lmbench.errors import UserError
from lmbench.evaluation.outcome import write_results
from lmbench.evaluation.progress import progress_of
from lmbench.evaluation.surprisal import sentence_surprisals
from lmbench.files import file_stem, replacing
from lmbench.model import LanguageModel
from lmbench.terminal.printing import printable

LEVELS = ("field", "phenomenon", "paradigm")


@dataclass(frozen=True, eq=False)
class PairScores:
    """A model's scores for minimal pairs.

    Args:
        good: ``(P,)`` surprisals of the grammatical sentences, in bits.
        bad: ``(P,)`` those of the ungrammatical ones.
        has_unknown: ``(P,)`` whether a word of either sentence was read as ``<unk>``.
        is_identical: ``(P,)`` whether the two sentences are the same to the model.
    """

    good: Float[np.ndarray, " P"]
    bad: Float[np.ndarray, " P"]
    has_unknown: Bool[np.ndarray, " P"]
    is_identical: Bool[np.ndarray, " P"]

    @property
    def is_tie(self) -> Bool[np.ndarray, " P"]:
        """Whether neither sentence is more probable."""
        return self.is_identical | (self.good == self.bad)

    @property
    def are_known(self) -> Bool[np.ndarray, " P"]:
        """Whether all words are known and the two sentences differ."""
        return ~self.has_unknown & ~self.is_identical

    @property
    def is_correct(self) -> Bool[np.ndarray, " P"]:
        """Whether the grammatical sentence is more probable."""
        return ~self.is_tie & (self.good < self.bad)


def evaluate_pairs(
    model: LanguageModel,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    pairs: PairSet,
    *,
    of_run: Mapping[str, Any],
) -> tuple[dict[str, Any], PairScores]:
    """Accuracy on minimal pairs: the share whose good sentence is more probable.

    A sentence is read by itself after an ``<eos>``, and its probability is the product of those of
    its words, without that of its end (as in Warstadt et al. 2020). A pair whose sentences have the
    same probability is a tie, and does not count as correct.

    Args:
        model: The model, in evaluation mode.
        vocabulary: The model's vocabulary.
        tokenizer: What cuts the sentences.
        pairs: The pairs.
        of_run: What else the results say about the run.

    Returns:
        The content of the JSON file: ``num_pairs``, ``num_correct``, ``num_ties`` and ``accuracy``
        of all pairs; under ``parts``, of pairs without unknown words, of those with some, and of
        those whose sentences are identical to the model; under ``by``, the same for each field,
        phenomenon and paradigm. And the scores of each pair.

    Raises:
        UserError: There are unknown words, and the vocabulary has no ``<unk>``; or no words are
            left of a sentence.
    """
    start = time.perf_counter()
    words = [
        tokenizer.cut(text.replace("\n", " "))
        for pair in pairs.pairs
        for text in (pair.good, pair.bad)
    ]
    if [] in words:  # all of it was punctuation that the vocabulary lacks
        pair = pairs.pairs[words.index([]) // 2]
        raise UserError(f"No word is left to read in one of {pair.good!r} and {pair.bad!r}.")
    sentences = [vocabulary.encode([tokenizer.eos, *of_sentence]) for of_sentence in words]
    unknown = [sum(word not in vocabulary.ids for word in of_sentence) for of_sentence in words]
    num_words = sum(map(len, words))
    with progress_of(f"reading {pairs.name}", num_words) as on_window:
        surprisals = sentence_surprisals(model, sentences, on_window)
    scores = PairScores(
        good=surprisals[::2],
        bad=surprisals[1::2],
        has_unknown=np.array(unknown[::2]) + np.array(unknown[1::2]) > 0,
        is_identical=np.array(
            [
                np.array_equal(good, bad)
                for good, bad in zip(sentences[::2], sentences[1::2], strict=True)
            ]
        ),
    )
    results = {
        "lmbench_version": version("lmbench"),
        **of_run,
        "pairs": {"name": pairs.name, "sha256": pairs.sha256, "tokenizer": tokenizer.name},
        **_counts(scores, np.ones(len(pairs.pairs), bool)),
        "unknown_word_share": sum(unknown) / num_words,
        "parts": {
            "known": _counts(scores, scores.are_known),
            "unknown": _counts(scores, scores.has_unknown & ~scores.is_identical),
            "identical": _counts(scores, scores.is_identical),
        },
        "by": {level: _by([getattr(p, level) for p in pairs.pairs], scores) for level in LEVELS},
        "seconds": time.perf_counter() - start,
    }
    return results, scores


def write_pairs(
    results: Mapping[str, Any], scores: PairScores, pairs: PairSet, folder: Path
) -> None:
    """Writes ``minimal_pairs-NAME.json``, and ``.parquet`` with a row for each pair."""
    path = folder / f"minimal_pairs-{file_stem(pairs.name)}"
    columns = {level: [getattr(pair, level) for pair in pairs.pairs] for level in LEVELS}
    table = pa.table(
        {
            **{level: pa.array(values, pa.string()) for level, values in columns.items()},
            "good": [pair.good for pair in pairs.pairs],
            "bad": [pair.bad for pair in pairs.pairs],
            "surp_good": scores.good,
            "surp_bad": scores.bad,
            "unknown": scores.has_unknown,
            "identical": scores.is_identical,
            "correct": scores.is_correct,
        }
    )
    with replacing(path.with_name(f"{path.name}.parquet")) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    write_results(path.with_name(f"{path.name}.json"), results, "pairs")


def show_pairs(results: Mapping[str, Any]) -> None:
    """Prints the results as a table."""
    title = f"{results['model']}, minimal pairs of {results['pairs']['name']}"
    print(printable(title))
    print(f"{'':<36}{'accuracy':>10}{'pairs':>9}{'ties':>7}{'known words':>13}{'pairs':>9}")
    rows = [("all", results, results["parts"]["known"])]
    for level in ("field", "phenomenon"):
        rows += [(row["name"], row, row["known"]) for row in results["by"][level]]
    for name, counts, known in rows:
        figures = f"{_percent(counts)}{counts['num_pairs']:>9,}{counts['num_ties']:>7,}"
        print(f"{printable(name):<36}{figures}{_percent(known):>13}{known['num_pairs']:>9,}")
    parts = results["parts"]
    print(
        f"{results['unknown_word_share']:.1%} of the words are read as {UNK}; "
        f"pairs identical to the model: {parts['identical']['num_pairs']:,}"
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

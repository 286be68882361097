"""Article titles against the text they are written in."""

import re
from pathlib import Path

import numpy as np
import pytest

from lmbench.data.articles import article_starts
from lmbench.data.benchmarks import load_benchmark
from lmbench.data.vocabulary import EOS, Vocabulary


def stream(text: str) -> tuple[np.ndarray, Vocabulary]:
    """Ids and vocabulary of a text, each line end an ``<eos>``."""
    tokens = [word for line in text.splitlines() for word in [*line.split(), EOS]]
    words = tuple(dict.fromkeys(tokens))
    return np.array([words.index(token) for token in tokens], dtype=np.int32), Vocabulary(words)


def test_starts_are_where_title_lines_begin() -> None:
    ids, vocabulary = stream("\n = A = \n\n x = y \n\n = = B = = \n\n z \n\n = C d = \n\n w \n")
    starts = article_starts(ids, vocabulary)
    assert starts is not None
    assert starts.tolist() == [1, 21]
    assert vocabulary.decode(ids[21:25]) == ["=", "C", "d", "="]


@pytest.mark.parametrize(
    "text",
    [
        "= A = \n x \n",  # no empty line after it
        "x \n = A = \n\n",  # none before it
        "\n = A = = \n\n",
        "\n = A \n\n",  # no sign at its end
        "\n = = A = = \n\n",  # a section
        "\n = = \n\n",  # no name
        "a b c\n",
        "a = b\n",
    ],
)
def test_other_lines_are_no_titles(text: str) -> None:
    assert article_starts(*stream(text)) is None


def test_a_stream_without_line_ends_has_no_titles() -> None:
    assert article_starts(np.array([1, 1], dtype=np.int32), Vocabulary(("=", "a", EOS))) is None
    assert article_starts(np.array([0], dtype=np.int32), Vocabulary(("a",))) is None


def test_the_first_line_and_the_last_can_be_titles() -> None:
    starts = article_starts(*stream("= A =\n\nx\n\n= B =\n"))
    assert starts is not None
    assert starts.tolist() == [0, 8]


def test_wikitext2_has_its_published_number_of_articles(
    wikitext2_dir: Path, tmp_path: Path
) -> None:
    # Merity et al. 2016 (arXiv 1609.07843), table 1: 600, 60 and 60 articles.
    corpus = load_benchmark("wikitext2", wikitext2_dir, cache_dir=tmp_path)
    for split, number in (("train", 600), ("valid", 60), ("test", 60)):
        starts = article_starts(getattr(corpus, split), corpus.vocabulary)
        assert starts is not None
        assert len(starts) == number
    lines = (wikitext2_dir / "test.txt").read_text("utf-8").split("\n")
    titles = [
        line.split()
        for before, line, after in zip(lines, lines[1:], lines[2:], strict=False)
        if re.fullmatch(r" = [^=].*[^=] = ", line) and not before.strip() and not after.strip()
    ]
    found = [
        corpus.vocabulary.decode(corpus.test[start : start + len(title)])
        for start, title in zip(starts, titles, strict=True)
    ]
    assert found == titles

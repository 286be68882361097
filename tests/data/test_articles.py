"""Article titles and shuffled articles, checked against the text itself."""

import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from lmbench.data.articles import article_starts, shuffled_articles
from lmbench.data.benchmarks import load_benchmark
from lmbench.data.vocabulary import EOS, Vocabulary


def words_of(text: str) -> list[str]:
    """The words of a text; each line end is an ``<eos>``."""
    return [word for line in text.splitlines() for word in [*line.split(), EOS]]


def stream(text: str) -> tuple[np.ndarray, Vocabulary]:
    """Ids and vocabulary of a text."""
    tokens = words_of(text)
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
def test_other_lines_are_not_titles(text: str) -> None:
    assert article_starts(*stream(text)) is None


def test_a_stream_without_line_ends_has_no_titles() -> None:
    assert article_starts(np.array([1, 1], dtype=np.int32), Vocabulary(("=", "a", EOS))) is None
    assert article_starts(np.array([0], dtype=np.int32), Vocabulary(("a",))) is None


def test_the_first_and_last_lines_can_be_titles() -> None:
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


def test_articles_come_in_every_order_equally_often() -> None:
    """Each article stays whole, and the text before the first one stays in front."""
    before, *articles = "x y \n\n", "= A =\n\n a b\n\n", "= B c =\n\n\n", "= D =\n\n d d d\n"
    ids, vocabulary = stream(before + "".join(articles))
    starts = article_starts(ids, vocabulary)
    assert starts is not None
    kept = ids.copy()
    counts = {before + "".join(order): 0 for order in permutations(articles)}
    for epoch in range(600):
        shuffled = shuffled_articles(ids, starts, seed=3, epoch=epoch)
        words = vocabulary.decode(shuffled)
        (text,) = [text for text in counts if words_of(text) == words]
        counts[text] += 1
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 28  # χ² of 5: p = 4e-5
    assert ids.tolist() == kept.tolist()


def test_the_order_of_articles_depends_on_the_seed_and_the_epoch() -> None:
    starts = np.arange(0, 400, 4)
    ids = np.arange(400, dtype=np.int32)

    def order(seed: int, epoch: int) -> list[int]:
        return shuffled_articles(ids, starts, seed, epoch).tolist()

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(one) for one in orders}) == 9
    assert orders == [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    # Not drawn from the random numbers of the windows' lengths and the columns' first rows.
    for others in ((0, 1), (0, 1, 1)):
        drawn = 4 * np.random.default_rng(others).permutation(100)
        assert order(0, 1)[::4] != drawn.tolist()

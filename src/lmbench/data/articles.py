"""The articles of a stream, found by the titles that WikiText gives them."""

import numpy as np
from jaxtyping import Int

from lmbench.data.vocabulary import EOS, Vocabulary


def article_starts(
    ids: Int[np.ndarray, " N"], vocabulary: Vocabulary
) -> Int[np.ndarray, " A"] | None:
    """Positions in a stream at which an article's title line begins, in ascending order.

    A title is a line of its own between single equals signs, ``= Robert Boulter =``, with an empty
    line before and after it; section headings have two or more signs on each side. Other lines
    that begin with a sign, such as table rows, lack one of these marks.

    Returns:
        (A,) the positions of the titles' first signs; None if the corpus has no titles.
    """
    if EOS not in vocabulary.ids or "=" not in vocabulary.ids:
        return None
    eos, sign = vocabulary.ids[EOS], vocabulary.ids["="]
    line_ends = np.flatnonzero(ids == eos)
    first = np.concatenate([[0], line_ends[:-1] + 1])[: len(line_ends)]
    num_words = line_ends - first
    is_title = num_words >= 3  # two signs and a name
    is_title[1:] &= num_words[:-1] == 0
    is_title[:-1] &= num_words[1:] == 0
    first, last = first[is_title], line_ends[is_title] - 1
    between_signs = (ids[first] == sign) & (ids[last] == sign)
    starts = first[between_signs & (ids[first + 1] != sign) & (ids[last - 1] != sign)]
    return starts if len(starts) else None


def shuffled_articles(
    ids: Int[np.ndarray, " N"], starts: Int[np.ndarray, " A"], seed: int, epoch: int
) -> Int[np.ndarray, " N"]:
    """A copy of a stream with its articles in an order drawn from ``(seed, epoch)``.

    Text before the first title keeps its place. In every epoch articles follow different ones and
    begin in different columns, and different ones are left out at the end of the stream.

    Source: the shuffle of documents in qlabs-eng/slowrun.
    """
    before, *articles = np.split(ids, starts)
    generator = np.random.default_rng((seed, epoch, 2))  # 2: unlike those of windows and columns
    order = generator.permutation(len(articles))
    return np.concatenate([before, *(articles[index] for index in order)])

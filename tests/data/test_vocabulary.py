from collections import Counter

import numpy as np
import pytest
from texts import limited

from lmbench.data import vocabulary
from lmbench.data.tokenizer.words import WhiteSpace
from lmbench.data.vocabulary import EOS, UNK, Vocabulary, limit_vocabulary
from lmbench.errors import UserError

SMALL = Vocabulary(("the", EOS, UNK, "cat"))


def test_ids_are_positions():
    assert SMALL.ids == {"the": 0, EOS: 1, UNK: 2, "cat": 3}
    assert len(SMALL) == 4
    assert SMALL.unk_id == 2
    assert Vocabulary(("a",)).unk_id is None


def test_encode_and_decode():
    ids = SMALL.encode(["cat", "dog", "the", EOS])
    assert ids.dtype == np.int32
    assert ids.tolist() == [3, 2, 0, 1]
    assert SMALL.decode(ids) == ["cat", UNK, "the", EOS]
    assert SMALL.decode([0, 3]) == ["the", "cat"]
    assert SMALL.encode([]).shape == (0,)


def test_a_long_stream_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocabulary, "COUNTED_TOGETHER", 3)
    ids = np.random.default_rng(0).integers(0, 5, 20).astype(np.int32)
    expected = [int((ids == word).sum()) for word in range(6)]
    assert vocabulary.count_words(ids, 6).tolist() == expected


def test_what_people_are_shown():
    assert Vocabulary(("", "<eos>", "a", "1", "b")).examples == "a, b"
    assert repr(SMALL) == "Vocabulary(4 words)"


def test_encode_without_unk_names_the_unknown_words():
    """Cut if they are long, and such that a terminal shows them."""
    with pytest.raises(UserError, match=r"^'x+\.\.\.x+', '\\x1b\[31m': not among the 1 w") as error:
        Vocabulary(("the",)).encode(["x" * 10**5, "the", "\x1b[31m"])
    assert len(str(error.value)) < 200


def test_wrong_arguments():
    with pytest.raises(ValueError, match="not a string"):
        SMALL.encode("the cat")
    with pytest.raises(ValueError, match="must not repeat"):
        Vocabulary(("a", "b", "a"))


@pytest.mark.parametrize("with_unk", [False, True])
@pytest.mark.parametrize("min_count", [1, 2, 3, 50, 10_000])
@pytest.mark.parametrize("max_size", [None, 2, 3, 10, 39, 40, 41, 42, 43, 100])
def test_limit_against_counting(with_unk, min_count, max_size):
    generator = np.random.default_rng(0)
    tokens = [f"w{k}" for k in np.minimum(generator.zipf(1.3, size=600), 39)]
    tokens[7::9] = [EOS] * len(tokens[7::9])
    if with_unk:
        tokens[100] = UNK
    counts = Counter(tokens)
    vocabulary, new_ids = limit_vocabulary(
        list(counts), np.array(list(counts.values())), min_count, max_size, WhiteSpace()
    )
    expected = limited(tokens, min_count, max_size)
    assert vocabulary.words == tuple(dict.fromkeys(expected))
    new_id = dict(zip(counts, new_ids, strict=True))
    assert vocabulary.decode([new_id[word] for word in tokens]) == expected


def test_among_equally_frequent_words_the_first_to_appear_stay():
    words = ["c", "b", EOS, "a"]
    vocabulary, new_ids = limit_vocabulary(words, np.array([1, 1, 5, 1]), 1, 3, WhiteSpace())
    assert vocabulary.words == ("c", UNK, EOS)
    assert new_ids.tolist() == [0, 1, 2, 1]

"""Any bytes at all give the corpus that Python reads, or are refused in one paragraph."""

import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from texts import limited, reference_tokens

from lmbench.data.corpus import SPLITS, load_text
from lmbench.errors import UserError

MARK = "\ufeff".encode()  # byte order mark
WHITE_SPACE = [chr(code) for code in range(0x3001) if chr(code).isspace()]
LIKE_WHITE_SPACE = ["\0", "\ufeff", "\n\ufeff", "\u200b", "\u180e", "\r\n"]

WORDS = ["a", "b", "c", "ä", "日本", "<unk>", "<eos>"]
PIECES = st.one_of(
    st.sampled_from([*WORDS, " ", "\n"]),
    st.sampled_from(WORDS).map(" {} ".format),
    st.sampled_from([*WHITE_SPACE, *LIKE_WHITE_SPACE]),
    st.text(max_size=3),
).map(str.encode)
BROKEN_PIECES = st.one_of(
    st.binary(min_size=1, max_size=4),
    st.characters(categories=["Cs"]).map(lambda char: char.encode("utf-8", "surrogatepass")),
    st.characters(min_codepoint=0x80, exclude_categories=["Cs"]).map(lambda c: c.encode()[:-1]),
)


def one_in(draw, number: int) -> bool:
    return draw(st.integers(1, number)) == number


@st.composite
def contents(draw, *, one_broken_in: int = 20) -> bytes:
    """The content of a file: mostly text, sometimes broken, now and then with a very long line."""
    if one_in(draw, 40):
        return draw(st.binary(max_size=50))
    if one_in(draw, 40):
        return draw(st.text(" \t\r\n", max_size=20)).encode()
    parts = draw(st.lists(PIECES, max_size=30))
    if one_in(draw, 4):
        parts.insert(0, MARK)
    if one_in(draw, 30):
        part = draw(st.sampled_from(["a", "a b ", " ", "日"])).encode()
        parts.append(part * draw(st.integers(1, 2**20 // len(part))))
    if one_in(draw, one_broken_in):
        parts.insert(draw(st.integers(0, len(parts))), draw(BROKEN_PIECES))
    return b"".join(parts)


@st.composite
def corpora(draw) -> dict[str, bytes]:
    texts = {split: draw(contents()) for split in SPLITS}
    if draw(st.booleans()):  # else hardly any training text would have the words of the others
        texts["train"] += b" <unk>"
    return texts


def trouble_with(content: bytes) -> str | None:
    """Where a file is not UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"is not UTF-8: byte {content[error.start]:#04x} at byte offset {error.start:,}, "
    return None


def reference(
    texts: dict[str, bytes], min_count: int | None, max_size: int | None
) -> dict[str, list[str]] | str:
    """The tokens of each split, or what the refusal must say."""
    for split, content in texts.items():
        if trouble := trouble_with(content):
            return f"{split}.txt {trouble}"
    tokens = {split: reference_tokens(content.decode()) for split, content in texts.items()}
    if empty := [split for split in SPLITS if not tokens[split]]:
        return f"no text in {' and '.join(empty)}. "
    if min_count is None:
        min_count = 1 if "<unk>" in tokens["train"] else 2
    training = limited(tokens["train"], min_count, max_size)
    known = set(training)
    heldout = {
        split: [word if word in known else "<unk>" for word in tokens[split]]
        for split in ("valid", "test")
    }
    if "<unk>" not in known and "<unk>" in heldout["valid"] + heldout["test"]:
        return "words that the training split lacks "
    return {"train": training, **heldout}


def entries(cache_dir: Path) -> int:
    return sum(path.is_dir() for path in cache_dir.glob("*"))


def message(error: UserError) -> str:
    text = str(error)
    assert len(text.splitlines()) == 1
    assert len(text) < 1500
    assert text.endswith(".")
    return text


@given(corpora(), st.none() | st.integers(1, 4), st.none() | st.integers(2, 8))
def test_a_corpus_is_as_python_reads_it_or_refused(texts, min_count, max_size):
    expected = reference(texts, min_count, max_size)
    event(expected.split("UTF-8")[0][-12:] if isinstance(expected, str) else "a corpus")
    with tempfile.TemporaryDirectory() as root:
        cache_dir = Path(root, "cache")
        for split, content in texts.items():
            Path(root, f"{split}.txt").write_bytes(content)

        def load():
            return load_text(root, cache_dir=cache_dir, min_count=min_count, max_size=max_size)

        if isinstance(expected, str):
            with pytest.raises(UserError) as caught:
                load()
            assert expected in message(caught.value)
            assert entries(cache_dir) == 0
            return
        cold = load()
        with patch("lmbench.data.corpus.write_ids", side_effect=AssertionError("built again")):
            warm = load()
        for corpus in (cold, warm):
            assert corpus.sha256 == cold.sha256
            assert corpus.vocabulary.words == tuple(dict.fromkeys(expected["train"]))
            for split in SPLITS:
                assert corpus.vocabulary.decode(getattr(corpus, split)) == expected[split]
        assert entries(cache_dir) == 1

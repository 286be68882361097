"""A text split by documents: nothing is lost or duplicated, and the shares are about right."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lmbench.data._documents import Document, joined, split_documents
from lmbench.data.articles import article_starts
from lmbench.data.corpus import load_text
from lmbench.errors import UserError

SHARES = {"train": 0.8, "valid": 0.08, "test": 0.12}


def write(folder: Path, documents: list[str]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:05}.txt" for number in range(len(documents))]
    for path, text in zip(paths, documents, strict=True):
        path.write_bytes(text.encode())
    return paths


@pytest.fixture
def split(tmp_path: Path) -> Callable[..., tuple[dict[str, str], str]]:
    """Splits documents, each in a file of its own: the text of each split, and how it was done."""

    def split(*documents: str) -> tuple[dict[str, str], str]:
        files = write(tmp_path / "files", list(documents))
        pieces, how = split_documents(files, SHARES, source="here")
        return {name: b"".join(joined(those)).decode() for name, those in pieces.items()}, how

    return split


def paragraphs(number: int, seed: str, words: int = 30) -> list[str]:
    """Each has words of its own, so that it can be recognized."""
    draw = random.Random(seed)
    counts = [draw.randint(1, words) for _ in range(number)]
    return [" ".join(f"{seed}.{n}.{w}" for w in range(count)) for n, count in enumerate(counts)]


def assert_near(texts: dict[str, str], least: float = 0.7, most: float = 1.3) -> None:
    total = sum(map(len, texts.values()))
    for name, share in SHARES.items():
        assert least * share < len(texts[name]) / total < most * share


def test_many_files_stay_whole_and_in_order(split):
    draw = random.Random(0)
    documents = ["\n".join(paragraphs(draw.randint(1, 60), f"d{n}")) + "\n" for n in range(300)]
    texts, how = split(*documents)
    where = {document: [n for n in texts if document in texts[n]] for document in documents}
    assert all(len(names) == 1 for names in where.values())
    for name, text in texts.items():
        assert text == "".join(document for document in documents if where[document] == [name])
    assert_near(texts)
    counts = [sum(names == [name] for names in where.values()) for name in SHARES]
    assert how == "split by documents: train {}, valid {}, test {}".format(*counts)
    # Spread over the whole text, short and long documents alike.
    for name in ("valid", "test"):
        places = [n for n, document in enumerate(documents) if where[document] == [name]]
        assert min(places) < 60
        assert max(places) > 240
        assert 0.6 < counts[list(SHARES).index(name)] / 300 / SHARES[name] < 1.5


def test_documents_of_the_same_text_go_to_the_same_split(split):
    """Or what is read in training would be scored in validation."""
    documents = ["\n".join(paragraphs(9, f"d{n}")) + "\n" for n in range(300)]
    texts, _ = split(*documents, *documents[::-1])
    assert all(len([n for n in texts if document in texts[n]]) == 1 for document in documents)
    assert_near(texts)


def test_the_split_depends_on_the_content_alone(split):
    documents = [f"document {n}\n" * (1 + n % 7) for n in range(100)]
    texts, _ = split(*documents)
    again, _ = split(*documents[::-1])
    assert {n: sorted(t.split("\n")) for n, t in again.items()} == {
        n: sorted(t.split("\n")) for n, t in texts.items()
    }


@pytest.mark.parametrize("before", [" \n", "", "\ufeff"])
def test_articles_in_files_of_their_own_keep_their_borders(tmp_path: Path, before: str):
    files = [f"{before}= Title {n} =\n\n{'text ' * (1 + n % 7)}\n" for n in range(120)]
    write(tmp_path / "files", files)
    corpus = load_text(tmp_path / "files", cache_dir=tmp_path / "cache")
    starts = [article_starts(getattr(corpus, name), corpus.vocabulary) for name in SHARES]
    assert sum(len(those) for those in starts if those is not None) == 120
    num_tokens = sum(len(text.strip("\ufeff").split()) + text.count("\n") for text in files)
    num_added = 0 if "\n" in before else 120 - 3  # before all but the first of a split
    assert sum(corpus.num_tokens.values()) == num_tokens + num_added


@pytest.mark.parametrize("before", [" \n", "", "\ufeff", "Preface\n \n"])
def test_articles_of_one_file(split, before: str):
    """Also if the first title is in the file's first line."""
    articles = [f" = Article {n} = \n \n = = Part = = \n \n text {n} \n \n" for n in range(120)]
    text = before + "".join(articles)
    texts, how = split(text)
    counts = [int(count) for count in re.findall(r"\d+", how)]
    assert sum(counts) == len(articles)
    for article in articles:
        assert sum(article.strip() in text for text in texts.values()) == 1
    assert sorted("".join(texts.values())) == sorted(text.removeprefix("\ufeff"))
    assert_near(texts, 0.5, 1.5)


def test_titles_are_still_titles_where_the_ends_are_cut_off(tmp_path: Path):
    articles = []
    for number in range(60):
        lines = paragraphs(12, f"a{number}")
        articles.append(f" \n = Title {number} = \n \n" + "".join(f" {line} \n" for line in lines))
    (path,) = write(tmp_path / "one", ["".join(articles)])
    corpus = load_text(path, cache_dir=tmp_path / "cache")
    assert "end of each of its 60" in corpus.notes[0]
    starts = article_starts(corpus.train, corpus.vocabulary)
    assert starts is not None
    assert len(starts) == 60


@pytest.mark.parametrize("seed", range(10))
def test_documents_of_the_same_text_are_cut_alike(split, seed: int):
    """Or what is read in training would be scored in validation."""
    draw = random.Random(seed)
    lengths = [draw.randint(20, 60) for _ in range(6)]
    documents = ["\n".join(paragraphs(n, f"d{i}")) + "\n" for i, n in enumerate(lengths)]
    texts, how = split(*documents, documents[draw.randrange(6)])
    assert "end of each" in how
    words = [set(text.split()) for text in texts.values()]
    assert not words[0] & words[1]
    assert not words[0] & words[2]
    assert not words[1] & words[2]


@pytest.mark.parametrize("variant", range(3))  # its hash decides when its turn comes
def test_one_giant_among_many_is_cut(split, variant: int):
    giant = "".join(f"{variant} line {n}\n" for n in range(30_000))
    texts, how = split(giant, *(f"small {n}\n" for n in range(200)))
    assert "end" in how
    assert_near(texts, 0.9, 1.1)


@pytest.mark.parametrize("line_end", ["\n", "\n\n", "\r\n"])
def test_the_end_of_a_novel_is_held_out(split, line_end: str):
    lines = paragraphs(400, "novel")
    text = line_end.join(lines) + line_end
    texts, how = split(text)
    assert "end" in how
    assert texts["train"] + texts["valid"] + texts["test"] == text
    assert all(text.endswith(line_end) for text in texts.values())
    assert_near(texts, 0.9, 1.1)


def test_the_end_of_each_of_a_few_files_is_held_out(split):
    documents = ["".join(f"{line}\n" for line in paragraphs(80, f"d{n}")) for n in range(5)]
    texts, _ = split(*documents)
    assert sorted("".join(texts.values())) == sorted("".join(documents))
    for number, document in enumerate(documents):
        parts = {n: [w for w in t.split() if w.startswith(f"d{number}.")] for n, t in texts.items()}
        assert parts["train"] + parts["valid"] + parts["test"] == document.split()
        assert all(parts.values())
    assert_near(texts, 0.9, 1.1)


@pytest.mark.parametrize("seed", range(20))
def test_no_text_is_in_two_splits(tmp_path: Path, seed: int):
    """A few articles in one file, also where a short one follows a long one without a cut."""
    draw = random.Random(seed)
    text = ""
    for number in range(8):
        num_lines, words = draw.choice([(2, 300), (2, 5), (40, 5)]) if number else (40, 5)
        lines = paragraphs(num_lines, f"{seed}.{number}", words)
        text += f"\n = Title {number} = \n \n" + "\n".join(lines) + "\n"
    (path,) = write(tmp_path / "one", [text])
    pieces, _ = split_documents([path], SHARES, source="here")
    places = sorted((one.start, one.stop) for those in pieces.values() for one in those)
    assert [start for start, _ in places] == [0, *(stop for _, stop in places[:-1])]
    assert places[-1][1] == path.stat().st_size


@pytest.mark.parametrize("variant", ["chapters", "title and text"])
def test_long_lines_are_cut_at_spaces(split, variant: str):
    lines = [" ".join(paragraphs(200, f"c{number}")) for number in range(10)]
    text = "\n".join(lines) if variant == "chapters" else "A Novel\n" + " ".join(lines)
    texts, _ = split(text)
    assert texts["train"] + texts["valid"] + texts["test"] == text
    assert [word for part in texts.values() for word in part.split()] == text.split()
    assert_near(texts, 0.7, 1.3)


def test_a_single_line_is_cut_at_spaces(split):
    texts, _ = split("wörd " * 500)
    assert "".join(texts.values()) == "wörd " * 500
    assert all(set(text.split()) == {"wörd"} for text in texts.values())
    assert_near(texts, 0.9, 1.1)


@pytest.mark.parametrize(
    "text", ["one two three four five six seven eight nine ten", "a\nb\n", "x"]
)
def test_a_text_that_is_too_small_to_split_is_refused(split, text: str):
    with pytest.raises(UserError, match=r"^here is too small to be split: .*train\.txt"):
        split(text)


def test_blocks_and_the_byte_order_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (path,) = write(tmp_path / "one", ["\ufeffa b\n\nc\ufeff d\ne"])
    size = path.stat().st_size
    for num_bytes in range(1, size + 2):
        monkeypatch.setattr("lmbench.data._documents.BLOCK_BYTES", num_bytes)
        blocks = list(Document(path, 0, size).blocks())
        assert b"".join(blocks).decode() == "a b\n\nc\ufeff d\ne"
        assert all(block.endswith(b"\n") for block in blocks[:-1])
        assert max(map(len, blocks)) <= num_bytes + 8  # the rest of a line
        assert b"".join(Document(path, 3, 7).blocks()) == b"a b\n"

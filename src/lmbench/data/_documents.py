"""A text without splits, split by documents into training, validation and test.

A file is a document; one with titles as in WikiText, ``= Robert Boulter =``, has as many documents
as titles. Whole documents are dealt out, in an order that depends on their content alone. If a
split would get fewer than five, or far from its share, the end of each document goes to valid and
test instead; the same holds for a single document, such as a novel.
"""

import hashlib
import mmap
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from lmbench.data.text_files import BLOCK_BYTES
from lmbench.errors import UserError

# The empty line before a title as lmbench.data.articles defines it, or the beginning of a file.
_BEFORE_TITLE = re.compile(
    rb"(?:\A(?:\xef\xbb\xbf)?|^[^\S\n]*\n)(?=[^\S\n]*= [^=\s](?:.*[^=\s])? =[^\S\n]*\n[^\S\n]*$)",
    re.MULTILINE,
)

LONG_LINE_BYTES = 2000
"""Longer lines, such as a chapter on each, may be cut where a text is split."""


class Document(NamedTuple):
    """A document, or a piece of one: bytes ``start`` to ``stop`` (exclusive) of a file."""

    path: Path
    start: int
    stop: int
    sha256: str = ""
    """Hash of a whole document's text."""

    def blocks(self) -> Iterator[bytes]:
        """Its text in blocks of whole lines, without a byte order mark at the file's start."""
        with _mapped(self.path) as text:
            start = self.start
            while start < self.stop:
                line_end = text.find(b"\n", start + BLOCK_BYTES, self.stop)
                end = self.stop if line_end < 0 else line_end + 1
                yield text[start:end] if start else text[:end].removeprefix(b"\xef\xbb\xbf")
                start = end

    @property
    def begins_with_title(self) -> bool:
        """Whether it is the beginning of a file whose first line is a title."""
        with _mapped(self.path) as text:
            before = None if self.start else _BEFORE_TITLE.match(text)
            return before is not None and b"\n" not in before[0]


def joined(documents: Iterable[Document]) -> Iterator[bytes]:
    """Blocks of a text made of documents, with the empty line that a title needs before it."""
    for number, document in enumerate(documents):
        if number and document.begins_with_title:
            yield b"\n"
        yield from document.blocks()


def split_documents(
    files: Sequence[Path], shares: Mapping[str, float], *, source: str
) -> tuple[dict[str, list[Document]], str]:
    """Divides the text of some files among the splits.

    Args:
        files: Files of text.
        shares: Fractions of the bytes for ``train``, ``valid`` and ``test``; they sum to 1.
        source: What error messages call the text.

    Returns:
        What each split gets, in the order of the files; and a note for people on what was done.

    Raises:
        UserError: There is no text, or too little.
    """
    documents = [document for file in files for document in _documents(file)]
    if split := _whole(documents, shares):
        counts = ", ".join(f"{name} {len(pieces):,}" for name, pieces in split.items())
        return split, f"split by documents: {counts}"
    split = _ends(documents, shares)
    if empty := [name for name, pieces in split.items() if not pieces]:
        raise UserError(
            f"{source} is too small to be split: nothing is left for {' and '.join(empty)}. Give "
            "more text, or a folder with train.txt, valid.txt and test.txt."
        )
    what = "the text" if len(documents) == 1 else f"each of its {len(documents)} documents"
    return split, f"split: the end of {what} becomes valid and test"


def _documents(path: Path) -> Iterator[Document]:
    with _mapped(path) as text:
        # The empty line belongs to its title: cut off with the text before, there would be none.
        starts = [match.start() for match in _BEFORE_TITLE.finditer(text)]
        for start, stop in pairwise([0, *starts[1:], len(text)]):
            with memoryview(text) as view, view[start:stop] as content:
                if content:
                    yield Document(path, start, stop, hashlib.sha256(content).hexdigest())


def _whole(
    documents: Sequence[Document], shares: Mapping[str, float]
) -> dict[str, list[Document]] | None:
    """Gives each document to the split that lacks the most; None if that does not work out.

    Documents of the same text go to the same split.
    """
    total, sizes = 0, dict.fromkeys(shares, 0)
    chosen: dict[str, str] = {}  # hash of a text → split
    for document in sorted(documents, key=lambda document: document.sha256):
        # Only earlier documents count: with its own size, short ones would go to valid and test.
        lacking = {name: share * total - sizes[name] for name, share in shares.items()}
        name = chosen.setdefault(document.sha256, max(lacking, key=lacking.__getitem__))
        size = document.stop - document.start
        total, sizes[name] = total + size, sizes[name] + size
    split = {name: [d for d in documents if chosen[d.sha256] == name] for name in shares}
    is_near = all(abs(sizes[name] / share - total) < total / 2 for name, share in shares.items())
    return split if is_near and all(len(pieces) >= 5 for pieces in split.values()) else None


def _ends(documents: Sequence[Document], shares: Mapping[str, float]) -> dict[str, list[Document]]:
    """Cuts each document, at line ends where there are some; those of the same text alike."""
    cuts: dict[tuple[str, str], int] = {}  # (hash of a text, split) → where its piece begins
    split: dict[str, list[Document]] = {name: [] for name in shares}
    owed = {"test": 0.0, "valid": 0.0}  # bytes still due after earlier cuts; may be negative
    for path, start, stop, sha256 in documents:
        end = stop
        with _mapped(path) as text:
            for name, due in owed.items():
                wanted = shares[name] * (stop - start) + due
                if (sha256, name) not in cuts:
                    cuts[sha256, name] = _cut(text, start, end, wanted) - start
                cut = start + cuts[sha256, name]
                owed[name] = wanted - (end - cut)
                split[name].append(Document(path, cut, end))
                end = cut
        split["train"].append(Document(path, start, end))
    return {name: [d for d in pieces if d.start < d.stop] for name, pieces in split.items()}


def _cut(text: mmap.mmap | bytes, start: int, end: int, wanted: float) -> int:
    """Where to cut to get about ``wanted`` bytes before ``end``: at a paragraph, or a line.

    A document of a single line, or a line of more than ``LONG_LINE_BYTES``, is cut at a space.
    ``end`` if no cut is within half of ``wanted``.
    """
    # Earlier documents may have left more due than this one has.
    target, slack = max(start, round(end - wanted)), round(wanted / 2)
    low, high = max(start, target - slack), min(end, target + slack)
    has_long_lines = 2 * slack > LONG_LINE_BYTES or text.find(b"\n", start, end - 1) < 0
    for mark in (b"\n\n", b"\n", *([b" "] if has_long_lines else [])):
        found = text.rfind(mark, low, target), text.find(mark, target, high)
        if places := [place + len(mark) for place in found if place >= 0]:
            return min(places, key=lambda place: abs(place - target))
    return end


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """A file's bytes, without loading them into memory."""
    with path.open("rb") as file:
        if not path.stat().st_size:  # an empty file cannot be mapped
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            yield text

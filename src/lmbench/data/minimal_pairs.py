"""Minimal pairs: two similar sentences, one grammatical and the other not."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import IO, NamedTuple

from lmbench.errors import UserError
from lmbench.files import reading, unreadable

LONGEST_LINE = 100_000
"""Characters of a line that are read; a pair is never that long."""


class Pair(NamedTuple):
    """Two sentences that differ only slightly."""

    good: str
    bad: str
    paradigm: str
    """What is contrasted."""
    phenomenon: str | None = None
    """What the paradigm belongs to."""
    field: str | None = None
    """What the phenomenon belongs to."""


@dataclass(frozen=True, eq=False)
class PairSet:
    """Pairs from one file, folder or archive.

    Args:
        name: Name of the folder, or of the file without its extension.
        pairs: All pairs, file by file in the order of their names.
    """

    name: str
    pairs: list[Pair]

    @property
    def sha256(self) -> str:
        """Hash of the pairs."""
        return hashlib.sha256(json.dumps(self.pairs).encode()).hexdigest()


def read_pairs(path: Path) -> PairSet:
    r"""Reads minimal pairs.

    Args:
        path: A file, or a folder or zip archive of such files. ``NAME.jsonl`` has one pair per
            line in the format of BLiMP (Warstadt et al. 2020): ``sentence_good`` and
            ``sentence_bad``, and optionally ``UID`` (the paradigm), ``linguistics_term`` (the
            phenomenon) and ``field``. A line of any other file has a good sentence, a tab and a bad
            one, optionally followed by the paradigm, the phenomenon and the field, each after a
            tab. An unnamed paradigm is called ``NAME``. In a folder or archive, files that end in
            ``.jsonl`` or ``.tsv`` are read.

    Raises:
        UserError: The path cannot be read, a line is not a pair, or there are no pairs.
    """
    pairs: list[Pair] = []
    place = str(path)
    try:
        for name, file in _files(path):
            inside = "" if name == str(path) else f", {name}"
            make = _from_json if name.endswith(".jsonl") else _from_tabs
            text = io.TextIOWrapper(file, "utf-8-sig", newline="\n")
            for number, line in enumerate(iter(partial(text.readline, LONGEST_LINE), ""), start=1):
                place = f"{path}{inside}, line {number}"
                if line.strip():
                    pairs.append(make(line.rstrip("\r\n"), Path(name).stem))
            place = str(path)
    except UserError:
        raise
    except Exception as error:  # a damaged archive can make zipfile raise anything
        raise unreadable(place, error) from error
    if not pairs:
        raise UserError(f"{path} holds no minimal pairs: no .jsonl or .tsv with text.")
    path = path.resolve()
    return PairSet(path.name if path.is_dir() else path.stem, pairs)


def _files(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file, in the order of the names.

    Raises:
        UserError: The path, or a file in the folder, is not a regular file.
        ValueError: A file in the folder is a link that leads out of it.
    """
    if path.is_dir():
        for place in sorted(file for file in path.rglob("*") if _has_pairs(file.name)):
            if not place.resolve().is_relative_to(path.resolve()):
                raise ValueError(f"{place.name} is a link that leads out of the folder")
            with reading(place), place.open("rb") as file:
                yield str(place.relative_to(path)), file
        return
    with reading(path), path.open("rb") as file:
        if path.suffix != ".zip":
            yield str(path), file
            return
        with zipfile.ZipFile(file) as archive:
            for name in sorted(filter(_has_pairs, archive.namelist())):
                with archive.open(name) as content:
                    yield name, content


def _has_pairs(path: str) -> bool:
    name = PurePath(path).name
    # An archive made on a Mac has a second file, of metadata, for each one.
    return name.endswith((".jsonl", ".tsv")) and not name.startswith("._")


def _from_json(line: str, paradigm: str) -> Pair:
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("it is not an object")
    phenomenon, field = values.get("linguistics_term"), values.get("field")
    if field == "syntax_semantics":  # BLiMP has both spellings
        field = "syntax/semantics"
    paradigm = values.get("UID") or paradigm
    return _checked(
        Pair(values["sentence_good"], values["sentence_bad"], paradigm, phenomenon, field)
    )


def _from_tabs(line: str, paradigm: str) -> Pair:
    fields = line.split("\t")
    if [name.lower().removeprefix("sentence_") for name in fields[:2]] == ["good", "bad"]:
        raise ValueError("it names the columns. Remove it")
    if not 2 <= len(fields) <= 5:
        raise ValueError(f"it has {len(fields) - 1} tabs, not one to four")
    good, bad, named, phenomenon, field = [*fields, "", "", ""][:5]
    return _checked(Pair(good, bad, named or paradigm, phenomenon or None, field or None))


def _checked(pair: Pair) -> Pair:
    kinds = (str, str, str, str | None, str | None)
    if not all(map(isinstance, pair, kinds)):
        raise ValueError("a value is not a string")
    if not (pair.good.strip() and pair.bad.strip()):
        raise ValueError("a sentence is empty")
    return pair

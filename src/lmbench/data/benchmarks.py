"""Benchmark corpora, from a folder or the Hugging Face hub, checked against published counts."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmbench.data._disk_cache import load_or_build
from lmbench.data._encoding import write_ids
from lmbench.data.corpus import FORMAT, Corpus, load_text, open_corpus, write_words
from lmbench.data.text_files import FILE_NAMES
from lmbench.data.tokenizer.words import WhiteSpace
from lmbench.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """What is known about a published corpus.

    Args:
        title: What error messages call it.
        folder: Its folder in ``$LMBENCH_DATA_DIR``.
        counts: Tokens of ``train``, ``valid`` and ``test``, ``<eos>`` included, and ``types``.
        about: What model cards say about it: source, content and licence.
        language: Code of its language.
        hub: Its repository and configuration on the Hugging Face hub, with a line of text in each
            row; None if it is not there.
    """

    title: str
    folder: str
    counts: Mapping[str, int]
    about: str
    language: str = "en"
    hub: tuple[str, str] | None = None

    @property
    def remedy(self) -> str:
        """What a user who does not have it can do."""
        names = ", ".join(name.format("*") for name in FILE_NAMES)
        return (
            "Set data.path=… to a folder that has it, or the environment variable LMBENCH_DATA_DIR "
            f"to a folder with {self.folder}/ in it (train, valid and test, named as in {names}); "
            "data=synthetic needs no files."
        )


_WIKIPEDIA = (
    "(Merity et al. 2016, arXiv 1609.07843): good and featured articles of the English Wikipedia, "
    "under the Creative Commons licence with share-alike (CC BY-SA)."
)

BENCHMARKS = {
    "wikitext2": Benchmark(
        "WikiText-2",
        folder="wikitext-2",
        counts={"train": 2_088_628, "valid": 217_646, "test": 245_569, "types": 33_278},
        about=f"WikiText-2 {_WIKIPEDIA}",
        hub=("Salesforce/wikitext", "wikitext-2-v1"),
    ),
    # Its valid and test are those of WikiText-2.
    "wikitext103": Benchmark(
        "WikiText-103",
        folder="wikitext-103",
        counts={"train": 103_227_021, "valid": 217_646, "test": 245_569, "types": 267_735},
        about=f"WikiText-103 {_WIKIPEDIA}",
        hub=("Salesforce/wikitext", "wikitext-103-v1"),
    ),
    "penn_treebank": Benchmark(
        "the Penn Treebank",
        folder="penn-treebank",
        counts={"train": 929_589, "valid": 73_760, "test": 82_430, "types": 10_000},
        about="The Penn Treebank as Mikolov et al. 2010 prepared it, without case and digits: Wall "
        "Street Journal text of 1989. Its text is licensed by the Linguistic Data Consortium, and "
        "not free.",
    ),
}
"""The corpora that :func:`load_benchmark` knows, by name."""


def load_benchmark(
    name: str, path: str | Path | None = None, *, cache_dir: str | Path | None = None
) -> Corpus:
    """Loads a corpus of ``BENCHMARKS``.

    Args:
        name: Its name there, and in results.
        path: Folder as for ``load_text``. If None: the corpus's folder in ``$LMBENCH_DATA_DIR`` if
            there is one, else the Hugging Face hub.
        cache_dir: See ``load_text``.

    Raises:
        ValueError: ``name`` is not one of :data:`BENCHMARKS`.
        UserError: As for ``load_text``; without a path, the hub lacks the corpus or cannot be
            reached; the corpus does not have the published numbers of tokens and types.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"name must be one of {', '.join(BENCHMARKS)}, not {name!r}")
    benchmark = BENCHMARKS[name]
    data_dir = os.environ.get("LMBENCH_DATA_DIR")
    if path is None and data_dir:
        root = Path(data_dir).expanduser()
        folder = root / benchmark.folder
        # If the variable names no folder, load_text says so.
        path = folder if folder.is_dir() or not root.is_dir() else None
    if path is not None:
        corpus = load_text(path, name=name, cache_dir=cache_dir, min_count=1)
        _check_counts(corpus, benchmark, str(path))
        return corpus
    if benchmark.hub is None:
        raise UserError(
            f"The text of {benchmark.title} is not free to download. {benchmark.remedy}"
        )
    repository, configuration = benchmark.hub
    source = f"{repository} ({configuration})"

    def build(folder: Path) -> None:
        text = _text_from_hub(benchmark, repository, configuration)
        vocabulary, _ = write_ids(folder, text, WhiteSpace(), source=source, min_count=1)
        corpus = write_words(folder, vocabulary)
        _check_counts(corpus, benchmark, source)

    # By name, not content: the counts have been checked, and the hub is not asked a second time.
    key = hashlib.sha256(f"{FORMAT} {source}".encode()).hexdigest()
    load = partial(open_corpus, name=name, tokenizer=WhiteSpace())
    return load_or_build(key, load=load, build=build, cache_dir=cache_dir)


def _text_from_hub(
    benchmark: Benchmark, repository: str, configuration: str
) -> dict[str, Iterator[bytes]]:
    """Text of each split, in blocks; from the library's cache if the hub does not answer."""
    from datasets import config, load_dataset
    from huggingface_hub import HfApi, constants

    was_offline, trouble = config.HF_HUB_OFFLINE, None
    try:
        # Left to itself, load_dataset tries for 23 seconds before it looks in its cache.
        HfApi().dataset_info(repository, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # those of three libraries, and of the network below them
        config.HF_HUB_OFFLINE, trouble = True, error
    try:
        splits = load_dataset(repository, configuration)
    except Exception as error:
        raise UserError(
            f"{benchmark.title} cannot be loaded from the Hugging Face hub ({repository}): "
            f"{trouble or error}. {benchmark.remedy}"
        ) from error
    finally:
        config.HF_HUB_OFFLINE = was_offline
    names = {"train": "train", "valid": "validation", "test": "test"}
    return {split: _blocks(splits[name].iter(2**15)) for split, name in names.items()}


def _blocks(batches: Iterable[Any]) -> Iterator[bytes]:
    for batch in batches:
        # A row is a line; some have lost their line feed.
        yield "".join(row.removesuffix("\n") + "\n" for row in batch["text"]).encode()


def _check_counts(corpus: Corpus, benchmark: Benchmark, source: str) -> None:
    def describe(counts: Mapping[str, int]) -> str:
        return "{train:,} / {valid:,} / {test:,} tokens and {types:,} types".format(**counts)

    counts = {**corpus.num_tokens, "types": len(corpus.vocabulary)}
    if counts != benchmark.counts:
        raise UserError(
            f"{source} is not {benchmark.title} as published (word-level, not raw): it has "
            f"{describe(counts)}, expected {describe(benchmark.counts)}. For another corpus use "
            "data=text with data.path=…"
        )

"""Measures what a corpus of WikiText-103's size costs: to tokenize, to open again, to train on.

The corpus is made here, in a temporary folder: words drawn from a Zipf distribution, in lines. Each
step runs in a process of its own, whose peak memory is measured by the operating system. The heads
compute loss and gradients of 1,400 tokens, 400 wide, untied.

    python scripts/bench_scale.py                 103 million tokens; some minutes, 1.5 GB of disk
    python scripts/bench_scale.py --tokens 1000000
"""

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lmbench.machine import set_up_allocator

VOCABULARY_SIZE = 267_735  # of WikiText-103 (Merity et al. 2016), and its number of tokens:
NUM_TOKENS = 103_227_021
BLOCK_TOKENS = 2**20
HELDOUT_TOKENS = 250_000
TOKENS_OF_LINE = 100
HEAD_TOKENS = 1400
WIDTH = 400


def main(args: argparse.Namespace) -> None:
    """Makes the corpus, takes the steps, prints the table."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        small, large, cache = (Path(folder, name) for name in ("small", "large", "cache"))
        print(f"making {args.tokens:,} tokens", file=sys.stderr)
        write_corpus(small, max(args.tokens // 100, 10_000), args.vocabulary_size)
        num_bytes = write_corpus(large, args.tokens, args.vocabulary_size)
        time.sleep(3)  # a file that has just changed is read again
        steps: dict[str, tuple[Any, ...]] = {
            "tokenize and number": (open_corpus, large, cache),
            "open again": (open_corpus, large, cache),
            "read all windows": (read_windows, large, cache),
            "tokenize a smaller one": (open_corpus, small, cache),
            "read all windows of that": (read_windows, small, cache),
            "full softmax": (head_step, "softmax", args.vocabulary_size),
            "adaptive softmax": (head_step, "adaptive_softmax", args.vocabulary_size),
        }
        for name, step in steps.items():
            print(name, file=sys.stderr)
            rows[name] = in_own_process(*step)
            if args.output:  # after each, as a later one may run out of memory
                args.output.write_text(json.dumps(rows, indent=2), "utf-8")
    num_tokens = rows["tokenize and number"]["num_tokens"]["train"]
    table = Table(title=f"{num_tokens:,} tokens, {num_bytes / 1e6:,.0f} MB of text")
    table.add_column("step")
    for column in ("seconds", "peak, GB", "before", "file pages"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        sizes = ("peak_memory_bytes", "memory_before_bytes", "file_pages_bytes")
        table.add_row(name, f"{row['seconds']:.3f}", *(f"{row[size] / 1e9:.2f}" for size in sizes))
    num_tokens = sum(rows["tokenize a smaller one"]["num_tokens"].values())
    table.caption = (
        "before: the process with its imports; file pages: part of the peak that needs no memory; "
        f"the smaller one has {num_tokens:,} tokens"
    )
    Console().print(table)


def write_corpus(folder: Path, num_tokens: int, vocabulary_size: int) -> int:
    """Writes train.txt, valid.txt and test.txt; returns the size of the first in bytes."""
    folder.mkdir()
    # The most frequent words are the shortest, as in a language.
    words = np.array([f"w{index:x}" for index in range(vocabulary_size)], dtype=object)
    lengths = {"train": num_tokens, "valid": HELDOUT_TOKENS, "test": HELDOUT_TOKENS}
    for split, length in lengths.items():
        with (folder / f"{split}.txt").open("w", encoding="utf-8") as file:
            num_words = length * TOKENS_OF_LINE // (TOKENS_OF_LINE + 1)  # a line end is a token too
            if split == "train":  # every word once, since held-out text may contain any
                write_lines(file, words)
                num_words -= vocabulary_size
            for start in range(0, num_words, BLOCK_TOKENS):
                size = min(BLOCK_TOKENS, num_words - start)
                write_lines(file, words[zipf_ids(size, vocabulary_size, seed=start)])
    return (folder / "train.txt").stat().st_size


def zipf_ids(size: int, vocabulary_size: int, seed: int) -> np.ndarray:
    """Ids whose frequency falls with 1 / (id + 1)."""
    cumulative = np.cumsum(1.0 / np.arange(1, vocabulary_size + 1))
    draws = np.random.default_rng(seed).random(size) * cumulative[-1]
    return np.searchsorted(cumulative, draws).clip(max=vocabulary_size - 1)


def write_lines(file: Any, words: np.ndarray) -> None:
    """Writes words in lines of equal length."""
    for start in range(0, len(words), TOKENS_OF_LINE):
        file.write(" ".join(words[start : start + TOKENS_OF_LINE]) + "\n")


def in_own_process(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What ``step`` measured, and the memory of its process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # raises if it is killed
        return pool.submit(measured, step, *arguments).result()


def measured(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Takes the step, in the process of its own."""
    set_up_allocator()

    import torch

    from lmbench.callbacks.throughput import peak_memory_bytes

    for module in ("lmbench.data.datamodule", "lmbench.model", "pyarrow.compute"):
        importlib.import_module(module)  # not part of the step

    cpu = torch.device("cpu")
    before = peak_memory_bytes(cpu)
    start = time.perf_counter()
    facts = step(*arguments)
    return {
        "seconds": time.perf_counter() - start,
        "memory_before_bytes": before,
        "peak_memory_bytes": peak_memory_bytes(cpu),
        **facts,
    }


def file_pages() -> dict[str, int]:
    """Memory of this process in pages of files, which the system reclaims when it needs to.

    0 if the system is not Linux.
    """
    status = Path("/proc/self/status")
    lines = status.read_text("utf-8").splitlines() if status.exists() else []
    sizes = [1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile")]
    return {"file_pages_bytes": sum(sizes)}


def open_corpus(source: Path, cache: Path) -> dict[str, Any]:
    """Opens a corpus as ``data=text`` does."""
    from lmbench.data.corpus import load_text

    corpus = load_text(source, cache_dir=cache)
    return {**file_pages(), "num_words": len(corpus.vocabulary), "num_tokens": corpus.num_tokens}


def read_windows(source: Path, cache: Path) -> dict[str, Any]:
    """One epoch of training windows, 80 columns by 70 steps."""
    from lmbench.data.columns import EvaluationSettings
    from lmbench.data.corpus import load_text
    from lmbench.data.datamodule import LanguageModelDataModule

    corpus = load_text(source, cache_dir=cache)
    datamodule = LanguageModelDataModule(
        corpus, batch_size=80, bptt=70, evaluation=EvaluationSettings()
    )
    num_scored = sum(batch.num_scored for batch in datamodule.train_dataloader())
    return {**file_pages(), "num_scored": num_scored}


def head_step(name: str, vocabulary_size: int) -> dict[str, Any]:
    """Loss and gradients of a head of ``conf/model/head``; the median of five steps."""
    import torch
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from lmbench.machine import set_matmul_precision
    from lmbench.run.targets import conf_dir

    set_matmul_precision("auto", "cpu")
    torch.manual_seed(0)
    node = OmegaConf.load(conf_dir() / "model" / "head" / f"{name}.yaml")
    arguments: dict[str, Any] = {"input_size": WIDTH, "vocabulary_size": vocabulary_size}
    if name == "adaptive_softmax":
        arguments["counts"] = NUM_TOKENS // np.arange(1, vocabulary_size + 1)
    head = instantiate(node, **arguments)
    output = torch.randn(HEAD_TOKENS, WIDTH, requires_grad=True)
    seconds = []
    for seed in range(6):
        targets = torch.from_numpy(zipf_ids(HEAD_TOKENS, vocabulary_size, seed))
        start = time.perf_counter()
        head.zero_grad()
        head.loss(output, targets).backward()
        seconds.append(time.perf_counter() - start)
    num_parameters = sum(weight.numel() for weight in head.parameters())
    seconds_of_step = statistics.median(seconds[1:])
    return {**file_pages(), "seconds": seconds_of_step, "num_parameters": num_parameters}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS, help="default %(default)s")
    parser.add_argument(
        "--vocabulary-size", type=int, default=VOCABULARY_SIZE, help="default %(default)s"
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    if args.output and not args.output.absolute().parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")
    main(args)

"""``lmbench-score``: surprisal and entropy, word by word."""

import argparse
import io
import math
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmbench
from lmbench.cli._command import VERSION, run_command
from lmbench.cli._score_table import writing
from lmbench.errors import UserError
from lmbench.files import exists, is_folder
from lmbench.machine import device_of, set_matmul_precision, set_up_allocator, set_up_threads
from lmbench.terminal.printing import printable, tell

if TYPE_CHECKING:
    import pandas as pd

    from lmbench.evaluation.progress import OnWindow


BLOCK_BYTES = 2**20
"""A text is scored in blocks of whole lines: tables take some seventy times its memory."""


def score(options: Namespace) -> None:
    """Writes a table of words or sentences, and reports on stderr what each model makes of them.

    Raises:
        UserError: A folder holds no model; two models split a text into different words; a text is
            empty, not UTF-8 or cannot be read; there are unknown words and no ``<unk>`` for them;
            the table cannot be written.
    """
    set_up_threads()
    set_up_allocator()
    from lmbench.evaluation.progress import progress_of

    device = device_of(options.device)
    set_matmul_precision("auto", device.type)  # as lmbench-evaluate does
    # All are read before anything is written, for the errors.
    texts = {printable(name): _blocks(name, whole=options.stream) for name in options.files}
    models = [_Model(folder, device, options.tokenizer) for folder in options.folders]
    is_read_live = options.output is None and sys.stdout is not None and sys.stdout.isatty()
    if is_read_live:  # a live line would stand between the rows
        progress: Any = nullcontext(lambda num_scored, nats: None)
    else:
        all_blocks = [block for blocks in texts.values() for block in blocks]
        num_words = sum(len(models[0].cut(block)) for block in all_blocks)
        progress = progress_of("scoring", num_words * len(models))
    with writing(options.output) as write, progress as on_window:
        for file, blocks in texts.items():
            num_sentences = 0
            for block in blocks:
                tables = [model.score(block, options.stream, on_window) for model in models]
                table = _mean_over(models, tables)
                table["sentid"] += num_sentences
                num_sentences = int(table["sentid"].max()) + 1  # each has an <eos> at least
                table.insert(0, "file", file)
                if not options.eos:
                    table = table.loc[table["word"] != "<eos>"]
                if options.sentences:
                    table = _sentences(table)
                write(table.drop(columns="file") if len(texts) == 1 else table)
    for model in models:
        model.tell()


class _Model:
    """A model, and what it has made of the texts so far."""

    def __init__(self, folder: Path, device: Any, tokenizer: str | None) -> None:
        from lmbench.data.tokenizer.choice import tokenizer_for

        self.folder = folder
        self._model, self._vocabulary = lmbench.load(folder, device=device)
        self._model.float()
        self._tokenizer = tokenizer_for(self._vocabulary, tokenizer)
        self._bits, self._num_tokens, self._unknown = 0.0, 0, Counter[str]()

    def cut(self, block: bytes) -> list[str]:
        from lmbench.evaluation.text import cut_lines

        return cut_lines(block.decode(), self._tokenizer)

    def score(self, block: bytes, stream: bool, on_window: "OnWindow") -> "pd.DataFrame":
        from lmbench.evaluation.text import score_words

        parts = self._model, self._vocabulary, self.cut(block), self._tokenizer
        table = score_words(*parts, stream=stream, on_window=on_window)
        self._bits += float(table["surp"].sum())
        self._num_tokens += len(table)
        self._unknown.update(table["word"][table["unknown"]])
        return table

    def tell(self) -> None:
        from lmbench.evaluation.text import shown
        from lmbench.perplexity import Score

        score = Score(self._bits * math.log(2), self._num_tokens)
        share = self._unknown.total() / self._num_tokens
        tell(
            f"{self.folder}, line ends included: {score.num_tokens:,} tokens, {score.nats:,.2f} "
            f"nats, perplexity {score.ppl:,.2f}, {share:.2%} unknown words"
        )
        if self._unknown:
            most = ", ".join(f"{shown(word)} ({n:,})" for word, n in self._unknown.most_common(10))
            tell(f"Read as <unk>: {most}")


def _blocks(name: str, *, whole: bool) -> list[bytes]:
    """The text of a file or stdin, in blocks of whole lines."""
    from lmbench.data.text_files import read_blocks

    file: Any = Path(name)
    if name == "-":
        file, name = (sys.stdin.buffer if sys.stdin else io.BytesIO()), "stdin"  # None: closed
    blocks = list(read_blocks(file, name, BLOCK_BYTES))
    if not any(blocks):
        raise UserError(f"{name} is empty: there is nothing to score.")
    return [b"".join(blocks)] if whole else blocks


def _mean_over(models: Sequence[_Model], tables: Sequence["pd.DataFrame"]) -> "pd.DataFrame":
    """The mean of several models' tables, with the surprisal that each gives."""
    mean = tables[0].copy()
    for number, (model, table) in enumerate(zip(models[1:], tables[1:], strict=True), start=2):
        if not table["word"].equals(mean["word"]):
            raise UserError(
                f"{model.folder} and {models[0].folder} split the text into different words. Set "
                "--tokenizer to one that suits both, or score them separately."
            )
        for column in ("surp", "entropy", "entred"):
            mean[column] += (table[column] - mean[column]) / number
        mean["unknown"] |= table["unknown"]
    if len(tables) > 1:
        names = _short_names([model.folder for model in models])
        of_each = zip(names, tables, strict=True)
        mean = mean.assign(**{f"surp_{name}": table["surp"] for name, table in of_each})
    return mean


def _short_names(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _sentences(table: "pd.DataFrame") -> "pd.DataFrame":
    """Sums over the words of each sentence."""
    sums = [name for name in table if name.startswith("surp") or name == "unknown"]
    columns = {"sentence": ("word", " ".join), "words": ("word", "size")}
    groups = table.groupby(["file", "sentid"], sort=False)
    return groups.agg(**columns, **{name: (name, "sum") for name in sums}).reset_index()


def parse_options(arguments: Sequence[str]) -> Namespace:
    """The options of a command line; ends the process if they are wrong, or for ``--help``."""
    parser = argparse.ArgumentParser(
        prog="lmbench-score",
        usage="%(prog)s [options] DIR [DIR …] FILE [FILE …]",
        description="Surprisal and entropy of each word of a text, in bits, as a table separated "
        "by tabs: word, sentid, sentpos, wlen, surp, entropy, entred, unknown. With several "
        "models, means over them, and the surprisal that each gives.",
        epilog="A text has a sentence on each line. Unknown words are read as <unk>, and marked. "
        "Each sentence is read by itself, after an <eos>, the word for a line end.",
    )
    parser.add_argument("--version", action="version", version=VERSION)
    add = parser.add_argument
    add("paths", metavar="DIR … FILE …", nargs="+", help="runs or exports, then texts; - for stdin")
    add("--stream", action="store_true", help="read each text as one stream, like a split")
    help_tokenizer = (
        "how words are separated: none, moses, moses-de, penn, …; auto: for raw text, as the "
        "vocabulary suggests (default: as lmbench separated the training text, if it did)"
    )
    add("--tokenizer", metavar="NAME", help=help_tokenizer)
    add("--eos", action="store_true", help="add a row for the end of each sentence")
    add("--sentences", action="store_true", help="one row per sentence, with its sums")
    add(
        "--output",
        metavar="PATH",
        type=Path,
        help="a file instead of stdout: Parquet if it ends in .parquet, else separated by tabs",
    )
    add("--device", default="auto", help="cpu, cuda, … (default: auto, cuda if there is one)")
    options = parser.parse_intermixed_args(arguments)
    options.folders = [Path(path) for path in options.paths if path != "-" and is_folder(path)]
    options.files = [path for path in options.paths if path == "-" or not is_folder(path)]
    if not options.folders:
        parser.error(f"{options.paths[0]} is not a folder: name a run or an export first")
    if not options.files:
        parser.error("name a text to score after the runs, or - for stdin")
    if options.tokenizer is not None:
        from lmbench.data.tokenizer.choice import make_tokenizer

        try:
            make_tokenizer(options.tokenizer)
        except ValueError as error:
            parser.error(f"--tokenizer: {error}")
    if (output := options.output) is not None:
        if output.suffix == ".csv":
            parser.error(f"--output {output}: the table is separated by tabs; name it .tsv")
        if not is_folder(output.parent):
            parser.error(f"--output {output}: there is no folder {output.parent}")
        if exists(output) and not output.is_file():
            parser.error(f"--output {output} is not a file; leave it out to write to stdout")
        if output.resolve() in [Path(file).resolve() for file in options.files]:
            parser.error(f"--output {output} is what is to be scored")
    return options


def main() -> None:
    """Entry point of the console script."""
    options = parse_options(sys.argv[1:])
    run_command(lambda: score(options))


if __name__ == "__main__":
    main()

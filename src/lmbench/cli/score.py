"""``lmbench-score``: surprisal and entropy, word by word."""

import argparse
import csv
import io
import math
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmbench
from lmbench.cli._command import VERSION, run_command
from lmbench.errors import UserError
from lmbench.files import exists, is_folder, replacing
from lmbench.machine import device_of, set_matmul_precision, set_up_allocator, set_up_threads
from lmbench.terminal.printing import printable, printing, tell

if TYPE_CHECKING:
    import pandas as pd


def score(options: Namespace) -> None:
    """Writes a table of words or sentences, and reports on stderr what each model makes of them.

    Raises:
        UserError: A folder holds no model; two models split a text into different words; a text is
            empty, not UTF-8 or cannot be read; there are unknown words and no ``<unk>`` for them;
            the table cannot be written.
    """
    set_up_threads()
    set_up_allocator()
    import pandas as pd

    device = device_of(options.device)
    set_matmul_precision("auto", device.type)  # as lmbench-evaluate does
    texts = {printable(name): _text(name) for name in options.files}
    how = {"stream": options.stream, "tokenizer": options.tokenizer}
    mean, surprisals = pd.DataFrame(), {}
    for folder, name in zip(options.folders, _short_names(options.folders), strict=True):
        loaded = lmbench.load(folder, device=device)
        loaded.model.float()
        parts = {file: loaded.score(text, **how) for file, text in texts.items()}
        table = pd.concat(parts, names=["file", "row"]).reset_index(level="file")
        _tell(folder, table)
        surprisals[f"surp_{name}"] = table["surp"]
        if mean.empty:
            mean = table
            continue
        if not table["word"].equals(mean["word"]):
            raise UserError(
                f"{folder} and {options.folders[0]} split the text into different words. Set "
                "--tokenizer to one that suits both, or score them separately."
            )
        for column in ("surp", "entropy", "entred"):
            # Not in place: that would also change the first column in pandas 2.
            mean[column] = mean[column] + (table[column] - mean[column]) / len(surprisals)
        mean["unknown"] |= table["unknown"]
    if len(surprisals) > 1:
        mean = mean.assign(**surprisals)
    if not options.eos:
        mean = mean.loc[mean["word"] != "<eos>"]
    if options.sentences:
        mean = _sentences(mean)
    if len(texts) == 1:
        mean = mean.drop(columns="file")
    _write(mean, options.output)


def _text(name: str) -> str:
    from lmbench.data.text_files import read_blocks

    file: Any = Path(name)
    if name == "-":
        file, name = (sys.stdin.buffer if sys.stdin else io.BytesIO()), "stdin"  # None: closed
    text = b"".join(read_blocks(file, name)).decode()
    if not text:
        raise UserError(f"{name} is empty: there is nothing to score.")
    return text


def _tell(folder: Path, table: "pd.DataFrame") -> None:
    from lmbench.evaluation.text import shown
    from lmbench.perplexity import Score

    unknown = Counter(table["word"][table["unknown"]])
    score = Score(float(table["surp"].sum()) * math.log(2), len(table))
    tell(
        f"{folder}, line ends included: {score.num_tokens:,} tokens, {score.nats:,.2f} nats, "
        f"perplexity {score.ppl:,.2f}, {unknown.total() / len(table):.2%} unknown words"
    )
    if unknown:
        most = ", ".join(f"{shown(word)} ({n:,})" for word, n in unknown.most_common(10))
        tell(f"Read as <unk>: {most}")


def _short_names(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _sentences(table: "pd.DataFrame") -> "pd.DataFrame":
    """Sums over the words of each sentence."""
    sums = [name for name in table if name.startswith("surp") or name == "unknown"]
    columns = {"sentence": ("word", " ".join), "words": ("word", "size")}
    groups = table.groupby(["file", "sentid"], sort=False)
    return groups.agg(**columns, **{name: (name, "sum") for name in sums}).reset_index()


def _write(table: "pd.DataFrame", output: Path | None) -> None:
    if output is not None and output.suffix == ".parquet":
        with replacing(output.resolve()) as temporary:
            table.to_parquet(temporary, index=False)
        return
    # Words may be quotation marks, and readers of the table split it at tabs.
    form = {"sep": "\t", "index": False, "quoting": csv.QUOTE_NONE, "float_format": "%.9g"}
    table = table.astype({"unknown": "int64"})
    if output is not None:
        with replacing(output.resolve()) as temporary:
            table.to_csv(temporary, encoding="utf-8", **form)
        return
    for name in {"word", "sentence", "file"} & set(table):
        table[name] = table[name].map(printable)
    with printing(encoding="utf-8"):
        table.to_csv(sys.stdout, **form)


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

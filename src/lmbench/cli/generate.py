"""``lmbench-generate``: has a model continue a text."""

import argparse
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path

import lmbench
from lmbench.cli._command import VERSION, run_command
from lmbench.machine import device_of, set_matmul_precision, set_up_threads
from lmbench.terminal.printing import printable, printing, tell


def generate(options: Namespace) -> None:
    """Writes the prompt and what the model draws to stdout, word by word.

    Raises:
        UserError: The folder holds no model; the prompt on stdin is not UTF-8; there are unknown
            words and no ``<unk>`` for them.
    """
    set_up_threads()
    import torch

    from lmbench.evaluation import text

    device = device_of(options.device)
    set_matmul_precision("auto", device.type)  # as lmbench-evaluate does
    model, vocabulary = lmbench.load(options.folder, device=device)
    ids, unknown = text.encode_text(_prompt(options), vocabulary)
    prompt = torch.from_numpy(ids).to(model.device)
    if unknown:
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        names = ", ".join(map(text.shown, islice(unknown, 20)))
        most = 2 * unknown.total() >= len(ids)
        known = f". Words that it knows: {vocabulary.examples}" if most else ""
        tell(f"Read as {vocabulary.tokenizer.unk}: {names}{more}{known}")
    generator = torch.Generator().manual_seed(options.seed)
    if options.temperature > 0:
        tell(f"--seed {options.seed}")
    names = ("temperature", "top_k", "top_p", "allow_unk")
    choices = {name: getattr(options, name) for name in names}
    with printing(encoding="utf-8"):
        for number in range(1, options.num_samples + 1):
            if options.num_samples > 1:
                print(f"--- {number} of {options.num_samples}")
            words = text.sample_words(model, vocabulary, prompt, generator, **choices)
            new = islice(words, options.num_tokens)
            for part in vocabulary.tokenizer.join(chain(vocabulary.decode(ids[1:]), new)):
                print("\n".join(map(printable, part.split("\n"))), end="", flush=True)


def _prompt(options: Namespace) -> str:
    """The prompt from the options, else the content of stdin if that is not a terminal."""
    if options.prompt is not None:
        return options.prompt
    if sys.stdin is None or sys.stdin.isatty():  # None: closed
        return ""
    from lmbench.data.text_files import read_blocks

    return b"".join(read_blocks(sys.stdin.buffer, "stdin")).decode()


def parse_options(arguments: Sequence[str]) -> Namespace:
    """The options of a command line; ends the process if they are wrong, or for ``--help``."""
    parser = argparse.ArgumentParser(
        prog="lmbench-generate",
        description="Continue a text: words that a model draws, one after the other, each from its "
        "distribution over the words of its vocabulary.",
        epilog="A text is read as the training text was: words are separated at white "
        "space, and punctuation from words if lmbench did so in the training text. A line end is "
        "the word <eos>; one also stands before the first word. Without --prompt, the prompt is "
        "read from stdin if that is not a terminal; the last line is continued unless a line end "
        "follows it.",
    )
    parser.add_argument("--version", action="version", version=VERSION)
    add = parser.add_argument
    add("folder", metavar="DIR", type=Path, help="directory of a run, or an export")
    add("--prompt", metavar="TEXT", help="what to continue")
    count, size = _number(int, 1), _number(int, 0)
    add("--num-tokens", metavar="N", type=count, default=100, help="words to draw (default: 100)")
    help_temperature = "below 1, likely words are drawn more often (default: 1)"
    add("--temperature", metavar="T", type=_number(float, 0), default=1.0, help=help_temperature)
    help_top_k = "draw from the K most probable words only (default: 0, from all)"
    add("--top-k", metavar="K", type=size, default=0, help=help_top_k)
    help_top_p = "draw from the fewest words whose probabilities sum to P or more (default: 1)"
    add("--top-p", metavar="P", type=probability, default=1.0, help=help_top_p)
    add("--seed", metavar="N", type=size, help="without it, one is chosen and printed")
    add("--num-samples", metavar="N", type=count, default=1, help="texts to draw (default: 1)")
    add("--allow-unk", action="store_true", help="let <unk> be drawn")
    add("--device", default="auto", help="cpu, cuda, … (default: auto, cuda if there is one)")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    return options


def probability(text: str) -> float:
    """The argparse type of a probability above 0."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most 1, not {text}")
    return number


def _number(kind: type[int] | type[float], least: float) -> Callable:
    """The argparse type of a number that must not be too small."""

    def convert(text: str) -> float:
        number = kind(text)
        if not least <= number < 2**63:  # a tensor's largest whole number
            limit = "smaller" if number >= 2**63 else f"at least {least:g}"
            raise argparse.ArgumentTypeError(f"must be {limit}, not {text}")
        return number

    convert.__name__ = kind.__name__  # what argparse calls it if the text is not a number
    return convert


def main() -> None:
    """Entry point of the console script."""
    options = parse_options(sys.argv[1:])
    run_command(lambda: generate(options))


if __name__ == "__main__":
    main()

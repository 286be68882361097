"""The options of ``lmbench-generate``, and which of them go together."""

import argparse
import math
import secrets
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEFAULTS: dict[str, Any] = {
    "num_tokens": 100,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "seed": None,
    "num_samples": 1,
    "allow_unk": False,
    "prompt": None,
}
"""Of what goes with generating alone. None: a seed is drawn, and a prompt read from stdin."""

OF_CHANCE = ("top_k", "top_p", "seed", "num_samples")
"""What does nothing where nothing is drawn."""


def parse_options(arguments: Sequence[str]) -> Namespace:
    """The options of a command line; ends the process where they are wrong, or with ``--help``."""
    parser = _parser()
    options = parser.parse_args(arguments)
    given = [name for name in DEFAULTS if getattr(options, name) is not None]
    if options.score is not None and given:
        parser.error(f"{_flag(given[0])} does not go with --score, which generates nothing")
    if options.temperature == 0:
        for name in (name for name in given if name in OF_CHANCE):
            parser.error(f"{_flag(name)} does not go with --temperature 0, which draws nothing")
    for name, value in DEFAULTS.items():
        if name not in given:
            setattr(options, name, value)
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lmbench-generate",
        description="Go on with a text: words that a model draws, one after the other, each from "
        "its distribution over the words of its vocabulary. Or score a text of your own.",
        epilog="A text is words separated by white space; a line end is the word <eos>, which "
        "also stands before the first word. Without --prompt, the prompt is read from stdin if "
        "that is not a terminal; it goes on the last line unless a line end follows that.",
    )
    add = parser.add_argument
    whole, share = _number(int), _number(float)
    add("folder", metavar="DIR", type=Path, help="directory of a run, or an export")
    add("--prompt", metavar="TEXT", help="what to go on after")
    add("--num-tokens", metavar="N", type=whole(1), help="words to draw (100)")
    add(
        "--temperature", metavar="T", type=share(0.0), help="below 1: likely words more often (1.0)"
    )
    add("--top-k", metavar="K", type=whole(0), help="only the K most probable words; 0: all (0)")
    add(
        "--top-p",
        metavar="P",
        type=share(0.0, 1.0),
        help="only the most probable words, which together have probability P (1.0)",
    )
    add("--seed", metavar="N", type=whole(0, 2**63 - 1), help="as a call before has named it")
    add("--num-samples", metavar="N", type=whole(1), help="how often to go on (1)")
    add("--allow-unk", action="store_true", default=None, help="let <unk> be drawn")
    add("--score", metavar="FILE", help="score this text instead; - for stdin")
    add(
        "--device",
        default="auto",
        help="cpu, cuda, …; auto: cuda if there is one (auto)",
    )
    return parser


def _number(kind: type) -> Callable[..., Callable[[str], Any]]:
    def between(least: float, most: float = math.inf) -> Callable[[str], Any]:
        def convert(text: str) -> Any:
            try:
                number = kind(text)
            except ValueError:
                raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__}") from None
            if not least <= number <= most or number == math.inf:
                limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
                raise argparse.ArgumentTypeError(f"must be {limits}, not {text}")
            return number

        return convert

    return between


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

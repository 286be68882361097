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
"""Defaults of what goes with generating alone. None: a seed is drawn, a prompt read from stdin."""

OF_CHANCE = ("top_k", "top_p", "seed", "num_samples")
"""What does nothing where nothing is drawn."""


def _checked(
    kind: type[int] | type[float], what: str, holds: Callable[[Any], bool]
) -> Callable[[str], int | float]:
    def convert(text: str) -> int | float:
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or not holds(number):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return number

    return convert


COUNT = _checked(int, "a whole number from 1 to 2**63 - 1", lambda number: 1 <= number < 2**63)
WHOLE = _checked(int, "a whole number from 0 on", lambda number: number >= 0)
SEED = _checked(int, "a whole number from 0 to 2**63 - 1", lambda number: 0 <= number < 2**63)
TEMPERATURE = _checked(float, "a number from 0 on", lambda number: 0 <= number < math.inf)
SHARE = _checked(float, "a number above 0 and up to 1", lambda number: 0 < number <= 1)


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
    add("folder", metavar="DIR", type=Path, help="directory of a run, or an export")
    add("--prompt", metavar="TEXT", help="what to go on after")
    add("--num-tokens", metavar="N", type=COUNT, help="words to draw (100)")
    add(
        "--temperature",
        metavar="T",
        type=TEMPERATURE,
        help="below 1: more of the likely words (1.0)",
    )
    add("--top-k", metavar="K", type=WHOLE, help="only the K most probable words; 0: all (0)")
    add(
        "--top-p",
        metavar="P",
        type=SHARE,
        help="only the most probable words, which together have probability P (1.0)",
    )
    add("--seed", metavar="N", type=SEED, help="as a call before has named it")
    add("--num-samples", metavar="N", type=COUNT, help="how often to go on (1)")
    add("--allow-unk", action="store_true", default=None, help="let <unk> be drawn")
    add("--score", metavar="FILE", help="score this text instead; - for stdin")
    add(
        "--device",
        default="auto",
        help="cpu, cuda, …; auto: cuda if there is one (auto)",
    )
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

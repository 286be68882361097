"""Runs commands as they are typed, in the tests' own process."""

import io
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest


class Ended(NamedTuple):
    """How a command ended."""

    code: Any
    out: str
    err: str

    @property
    def table(self) -> list[list[str]]:
        """The tab-separated fields of each line."""
        return [line.split("\t") for line in self.out.splitlines()]


def runner(
    main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., Ended]:
    """A function that runs an entry point with arguments; stdin is a terminal unless given."""

    def run(*arguments: object, stdin: bytes | None = None) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lmbench", *map(str, arguments)])
        terminal = SimpleNamespace(buffer=io.BytesIO(stdin or b""), isatty=lambda: stdin is None)
        monkeypatch.setattr(sys, "stdin", terminal)
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        return Ended(code, *capsys.readouterr())

    return run

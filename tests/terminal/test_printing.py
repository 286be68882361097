"""What happens to text that stdout, a terminal or rich cannot take."""

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import pytest

from lmbench.errors import UserError
from lmbench.terminal.printing import printable, printing, tell


def test_a_full_disk_is_shown_as_a_message(full_stdout: Callable):
    expected = r"^stdout cannot be written: No space left on device\. The rest is in a file\.$"
    with full_stdout():
        with pytest.raises(UserError, match=expected), printing(" The rest is in a file."):
            print("a line")
        print("another", flush=True)  # as Python flushes once more at the end


def test_with_no_reader_the_process_ends_as_if_by_sigpipe():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread, redirect_stdout(unread):
        with pytest.raises(SystemExit) as ended, printing():
            print("a line")
        print("another", flush=True)
    assert ended.value.code == 141


def test_a_letter_that_stdout_cannot_encode_is_replaced():
    written = io.BytesIO()
    with io.TextIOWrapper(written, "latin-1") as stdout, redirect_stdout(stdout):
        with printing():
            print("1 ± 2 — 3")
        assert written.getvalue() == b"1 \xb1 2 ? 3\n"
        with printing(encoding="utf-8"):
            print("猫")
        assert written.getvalue().endswith("猫\n".encode())


def test_a_message_does_not_go_to_stdout_if_stderr_is_closed(capsys: pytest.CaptureFixture[str]):
    tell("a line")
    with redirect_stderr(None):
        tell("another")
    assert capsys.readouterr() == ("", "a line\n")


def test_other_errors_are_left_as_they_are():
    with pytest.raises(UserError, match=r"^of something else$"), printing():
        raise UserError("of something else")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wörter 日本 ±… na\u200cme", "Wörter 日本 ±… na\u200cme"),
        ("\x1b[31m\n\r\t\x7f\x9b", "\\x1b[31m\\n\\r\\t\\x7f\\x9b"),
        ("\u2028\u202e\u2066\udcff", "\\u2028\\u202e\\u2066\\udcff"),
    ],
)
def test_what_could_control_a_terminal_is_made_visible(text: str, expected: str):
    assert printable(text) == expected

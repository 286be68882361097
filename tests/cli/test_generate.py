"""The command, as it is typed."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import runner
from small import change_words

import lmbench
from lmbench import machine
from lmbench.cli import generate

pytestmark = pytest.mark.usefixtures("matmul_precision")


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    return runner(generate.main, monkeypatch, capsys)


@pytest.fixture
def run_dir(make_run: Callable[..., Path]) -> Path:
    """The run of a model that has <unk> in place of its second word."""
    folder = make_run()
    change_words(folder, 1, "<unk>")
    return folder


@pytest.mark.slow
def test_all_words_except_unk_are_drawn(run_dir: Path, run_main: Callable):
    words = lmbench.load(run_dir).vocabulary.words
    ended = run_main(run_dir, "--num-tokens", 1000, "--temperature", 5, "--seed", 1)
    assert (ended.code, ended.err) == (0, "--seed 1\n")
    assert ended.out.endswith("\n")
    drawn = ended.out.replace("\n", " <eos> ").split()
    assert len(drawn) in (1000, 1001)  # a line end is added if the last word is not one
    assert set(drawn) == set(words) - {"<unk>"}
    more = ("--allow-unk", "--seed", 1)
    with_unk = run_main(run_dir, "--num-tokens", 500, "--temperature", 5, *more)
    assert "<unk>" in with_unk.out.split()


def test_the_seed_on_stderr_gives_the_text_again(run_dir: Path, run_main: Callable):
    first, other = run_main(run_dir, "--num-tokens", 50), run_main(run_dir, "--num-tokens", 50)
    assert first.out != other.out
    seed = re.fullmatch(r"--seed (\d+)\n", first.err)
    assert seed is not None
    assert run_main(run_dir, "--num-tokens", 50, "--seed", seed[1]).out == first.out


def test_the_prompt_matters_and_can_come_from_stdin(run_dir: Path, run_main: Callable):
    words = lmbench.load(run_dir).vocabulary.words
    options = ("--temperature", 0, "--num-tokens", 8)
    prompt = f"{words[5]} {words[9]}"
    given = run_main(run_dir, "--prompt", prompt, *options)
    assert (given.code, given.err) == (0, "")
    unprompted = run_main(run_dir, *options).out
    assert given.out.startswith(f"{prompt} ")
    assert not given.out.endswith(unprompted)
    assert len(given.out.split()) == len(unprompted.split()) + 2
    assert run_main(run_dir, *options, stdin=prompt.encode()) == given
    line = run_main(run_dir, *options, stdin=f"{prompt}\n".encode())
    assert line == run_main(run_dir, "--prompt", f"{prompt} <eos>", *options)
    assert run_main(run_dir, *options, stdin=b"") == run_main(run_dir, "--prompt", "", *options)


def test_unknown_words_of_the_prompt_are_listed(run_dir: Path, run_main: Callable):
    options = ("--temperature", 0, "--num-tokens", 5)
    ended = run_main(run_dir, "--prompt", "Dog cat Dog", *options)
    assert ended.code == 0
    assert ended.err.startswith("Read as <unk>: Dog, cat. Words that it knows: ")
    shown = ended.err.rstrip("\n").rpartition(": ")[2].split(", ")
    assert set(shown) <= set(lmbench.load(run_dir).vocabulary.words)
    of_few = run_main(run_dir, "--prompt", f"{shown[0]} {shown[1]} Dog", *options)
    assert of_few.err == "Read as <unk>: Dog\n"
    assert ended.out == run_main(run_dir, "--prompt", "<unk> <unk> <unk>", *options).out
    many = run_main(run_dir, "--prompt", " ".join(f"W{n}" for n in range(25)), *options)
    assert "W19 and 5 more. Words" in many.err


def test_no_word_can_control_the_terminal(run_dir: Path, run_main: Callable):
    ended = run_main(run_dir, "--prompt", "\x1b[31mred", "--temperature", 0)
    assert ended.err.startswith("Read as <unk>: \\x1b[31mred. ")
    change_words(run_dir, 2, "\x1b[2J")
    drawn = run_main(run_dir, "--num-tokens", 500, "--temperature", 5, "--seed", 1).out
    assert "\x1b" not in drawn
    assert "\\x1b[2J" in drawn


def test_several_samples(run_dir: Path, run_main: Callable):
    options = ("--num-tokens", 20, "--seed", 4)
    ended = run_main(run_dir, *options, "--num-samples", 3)
    samples = re.split(r"--- \d of 3\n", ended.out)
    assert samples[0] == ""
    assert len(set(samples)) == 4
    assert samples[1] == run_main(run_dir, *options).out


def test_a_prompt_that_is_not_utf8(run_dir: Path, run_main: Callable):
    ended = run_main(run_dir, stdin=b"abc\xff")
    assert ended.err.startswith("stdin is not UTF-8: byte 0xff at byte offset 3, in line 1 ")


def test_the_matmul_precision_is_that_of_evaluate(
    run_dir: Path, run_main: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "mkl_is_fast", lambda: False)
    monkeypatch.setattr(machine, "relative_error", lambda precision: 6e-7)
    torch.set_float32_matmul_precision("highest")
    assert run_main(run_dir, "--num-tokens=1", "--device=cpu").code == 0
    assert torch.get_float32_matmul_precision() == "medium"

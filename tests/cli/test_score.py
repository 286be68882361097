"""The command, as it is typed."""

import math
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import runner
from small import change_words, exact_log_probs

import lmbench
from lmbench.cli import generate, score
from lmbench.data.columns import EvaluationSettings
from lmbench.data.tokenizer.moses import Moses
from lmbench.errors import UserError
from lmbench.evaluation.reading import read_stream

pytestmark = pytest.mark.usefixtures("matmul_precision")


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    return runner(score.main, monkeypatch, capsys)


@pytest.fixture(scope="session")
def run_dirs(untrained_runs: Callable[..., Path]) -> list[Path]:
    """Two seeds; the 41 words are <eos> and words of letters, without <unk>."""
    return [untrained_runs("seed=1"), untrained_runs("seed=2")]


@pytest.fixture
def text(run_dirs: list[Path]) -> str:
    words = lmbench.load(run_dirs[0]).vocabulary.words
    return f"{words[3]} {words[5]} {words[9]}\n\n{words[7]} {words[5]}\n"


def test_a_closed_stdin_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", None)  # as Python does
    with pytest.raises(UserError, match=r"^stdin is empty"):
        score._blocks("-", whole=False)
    assert generate._prompt(Namespace(prompt=None)) == ""


COLUMNS = ["word", "sentid", "sentpos", "wlen", "surp", "entropy", "entred", "unknown"]


def test_one_row_per_word(run_dirs: list[Path], text: str, tmp_path: Path, run_main: Callable):
    path = tmp_path / "my.txt"
    path.write_text(text, "utf-8")
    ended = run_main(run_dirs[0], path)
    assert ended.code == 0
    header, *rows = ended.table
    assert header == COLUMNS
    assert [row[0] for row in rows] == text.split()
    assert [row[1:3] for row in rows] == [list(place) for place in ("00", "01", "02", "20", "21")]
    assert [int(row[3]) for row in rows] == [len(word) for word in text.split()]
    loaded = lmbench.load(run_dirs[0])
    eos = loaded.vocabulary.ids["<eos>"]
    expected: list[float] = []
    for line in text.splitlines():
        ids = np.array([eos, *(loaded.vocabulary.ids[word] for word in line.split())])
        if len(ids) > 1:
            expected += (-exact_log_probs(loaded.model, ids) / math.log(2)).tolist()
    np.testing.assert_allclose([float(row[4]) for row in rows], expected, rtol=1e-5)
    assert run_main(run_dirs[0], "-", stdin=text.encode()).out == ended.out
    with_ends = run_main(run_dirs[0], path, "--eos").table[1:]
    assert [row for row in with_ends if row[0] != "<eos>"] == rows
    assert [row[0] for row in with_ends].count("<eos>") == 3


def test_surprisals_sum_to_the_perplexity_of_the_standard_evaluation(
    run_dirs: list[Path], run_main: Callable
):
    model, vocabulary = lmbench.load(run_dirs[0])
    lines = [f"{' '.join(vocabulary.words[2 + n % 7 : 20])}\n" for n in range(60)]
    ids = vocabulary.encode(["<eos>", *"".join(lines).replace("\n", " <eos> ").split()])
    settings = EvaluationSettings()
    columns = settings.arrange(ids, "test")
    assert columns.num_columns > 1
    reading = read_stream(model, columns, window=settings.window)
    ended = run_main(run_dirs[0], "-", "--stream", "--eos", stdin="".join(lines).encode())
    bits = [float(row[4]) for row in ended.table[1:]]
    assert len(bits) == reading.score.num_tokens
    np.testing.assert_allclose(bits, -reading.log_probs / math.log(2), rtol=1e-5)
    assert sum(bits) * math.log(2) == pytest.approx(reading.score.nats, rel=1e-6)
    told = f"{len(bits):,} tokens, {reading.score.nats:,.2f} nats, perplexity "
    assert f"{told}{reading.score.ppl:,.2f}" in ended.err


def test_several_runs_have_a_column_each_and_their_mean(
    run_dirs: list[Path], untrained_runs: Callable[..., Path], text: str, run_main: Callable
):
    run_dirs = [*run_dirs, untrained_runs("seed=3")]
    alone = [run_main(folder, "-", stdin=text.encode()).table for folder in run_dirs]
    ended = run_main(*run_dirs, "-", stdin=text.encode())
    header, *rows = ended.table
    names = [name.removeprefix("surp_") for name in header[len(COLUMNS) :]]
    assert len(set(names)) == 3
    for row, *of_each in zip(rows, *(table[1:] for table in alone), strict=True):
        assert row[:4] == of_each[0][:4]
        assert row[8:] == [one[4] for one in of_each]
        for column in (4, 5, 6):
            mean = sum(float(one[column]) for one in of_each) / 3
            assert float(row[column]) == pytest.approx(mean, rel=1e-8)
    for folder in run_dirs:
        assert f"{folder}, line ends included: 8 tokens, " in ended.err


def test_one_row_per_sentence(run_dirs: list[Path], text: str, run_main: Callable):
    words = pd.DataFrame(run_main(run_dirs[0], "-", stdin=text.encode()).table[1:], columns=COLUMNS)
    header, *rows = run_main(run_dirs[0], "-", "--sentences", stdin=text.encode()).table
    assert header == ["sentid", "sentence", "words", "surp", "unknown"]
    assert [row[0] for row in rows] == ["0", "2"]
    assert [row[1] for row in rows] == [text.splitlines()[0], text.splitlines()[2]]
    assert [row[2] for row in rows] == ["3", "2"]
    sums = words.astype({"surp": float}).groupby("sentid")["surp"].sum()
    np.testing.assert_allclose([float(row[3]) for row in rows], sums, rtol=1e-7)


def test_unknown_words_are_counted_over_sentences_and_found_over_runs(
    run_dirs: list[Path], make_run: Callable[..., Path], run_main: Callable
):
    words = lmbench.load(run_dirs[0]).vocabulary.words
    text = f"{words[1]} {words[3]} {words[1]}\n"  # the second run does not know words[1]
    other = make_run("seed=2")
    change_words(other, 1, "<unk>")
    header, row = run_main(other, "-", "--sentences", stdin=text.encode()).table
    assert row[header.index("unknown")] == "2"
    header, *rows = run_main(run_dirs[0], other, "-", stdin=text.encode()).table
    assert [row[header.index("unknown")] for row in rows] == ["1", "0", "1"]
    header, row = run_main(run_dirs[0], other, "-", "--sentences", stdin=text.encode()).table
    assert row[header.index("unknown")] == "2"
    values = [float(value) for name, value in zip(header, row, strict=True) if "surp" in name]
    assert values[0] == pytest.approx(sum(values[1:]) / 2, rel=1e-7)
    assert len(values) == 3


def test_rows_of_several_texts_name_their_file(
    run_dirs: list[Path], text: str, tmp_path: Path, run_main: Callable
):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(text, "utf-8")
    header, *rows = run_main(run_dirs[0], tmp_path / "a.txt", tmp_path / "b.txt").table
    assert header == ["file", *COLUMNS]
    half = len(rows) // 2
    assert [row[1:] for row in rows[:half]] == [row[1:] for row in rows[half:]]
    assert {row[0] for row in rows[half:]} == {str(tmp_path / "b.txt")}
    by_sentence = run_main(run_dirs[0], tmp_path / "a.txt", tmp_path / "b.txt", "--sentences").table
    assert [row[1] for row in by_sentence] == ["sentid", "0", "2", "0", "2"]


def test_files(run_dirs: list[Path], text: str, tmp_path: Path, run_main: Callable):
    printed = run_main(run_dirs[0], "-", stdin=text.encode()).out
    for name in ("scores.tsv", "scores.parquet"):
        ended = run_main(run_dirs[0], "-", "--output", tmp_path / name, stdin=text.encode())
        assert (ended.code, ended.out) == (0, "")
    assert (tmp_path / "scores.tsv").read_text("utf-8") == printed
    (tmp_path / "scores.tsv").write_text("")
    (tmp_path / "link").symlink_to("scores.tsv")
    run_main(run_dirs[0], "-", "--output", tmp_path / "link", stdin=text.encode())
    assert (tmp_path / "scores.tsv").read_text("utf-8") == printed
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert list(table) == COLUMNS
    assert table["word"].tolist() == text.split()


@pytest.mark.parametrize("options", [(), ("--eos",), ("--sentences",), ("--stream",)])
def test_blocks_do_not_change_the_table(
    run_dirs: list[Path],
    tmp_path: Path,
    run_main: Callable,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
):
    words = lmbench.load(run_dirs[0]).vocabulary.words[1:]
    lines = [" ".join(words[n % 20 : n % 20 + n % 5]) for n in range(30)]  # some are empty
    text = "\n".join(lines).encode()
    tables, told = [], []
    for block_bytes in (2**20, 40):
        monkeypatch.setattr(score, "BLOCK_BYTES", block_bytes)
        path = tmp_path / f"{block_bytes}.parquet"
        told += [run_main(*run_dirs, "-", *options, "--output", path, stdin=text).err]
        tables.append(pd.read_parquet(path))
        printed = run_main(*run_dirs, "-", *options, stdin=text).table
        assert printed[0] == list(tables[-1])
        assert len(printed) == len(tables[-1]) + 1
    assert tables[0]["sentid"].nunique() == sum(bool(line) or "--eos" in options for line in lines)
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)
    assert len({tuple(re.findall("included: (.*) tokens, ", text)) for text in told}) == 1


def test_unknown_words_are_marked(make_run: Callable[..., Path], run_main: Callable):
    folder = make_run()
    word = lmbench.load(folder).vocabulary.words[3]
    ended = run_main(folder, "-", stdin=b"Dog\n")
    assert ended.code == 1
    assert ended.err.startswith("'Dog': not among the 41 words")
    change_words(folder, 1, "<unk>")
    ended = run_main(folder, "-", stdin=f"Dog {word} Dog \x1b[31mred <unk>\n".encode())
    assert [row[0] for row in ended.table[1:]] == ["Dog", word, "Dog", "\\x1b[31mred", "<unk>"]
    assert [row[-1] for row in ended.table[1:]] == ["1", "0", "1", "1", "0"]
    assert "Read as <unk>: Dog (2), \\x1b[31mred (1)\n" in ended.err
    assert "50.00% unknown words" in ended.err
    surprisals = [row[4] for row in ended.table[1:]]
    as_unk = run_main(folder, "-", stdin=f"<unk> {word} <unk> <unk> <unk>\n".encode())
    assert [row[4] for row in as_unk.table[1:]] == surprisals


def test_raw_text(make_run: Callable[..., Path], run_main: Callable):
    folder = make_run()
    for place, word in enumerate(("<unk>", "isn", "'t", "."), start=1):
        change_words(folder, place, word)
    ended = run_main(folder, "-", "--tokenizer=moses", stdin=b"Isn't isn't.\n")
    assert [row[0] for row in ended.table[1:]] == ["Isn", "'t", "isn", "'t", "."]
    assert ended.out == run_main(folder, "-", stdin=b"Isn 't isn 't .\n").out
    assert run_main(folder, "-", stdin=b"isn't.\n").table[1][0] == "isn't."
    # All words of this vocabulary are in lower case.
    in_lower_case = run_main(folder, "-", stdin=b"isn 't isn 't .\n").out
    assert run_main(folder, "-", "--tokenizer=auto", stdin=b"Isn't isn't.\n").out == in_lower_case


def test_what_cannot_be_scored_is_refused(run_dirs: list[Path], tmp_path: Path, run_main: Callable):
    (tmp_path / "empty").touch()
    (tmp_path / "latin1").write_bytes(b"a\nb\xe9\n")
    for name, message in (
        ("empty", "is empty: there is nothing to score."),
        ("latin1", "is not UTF-8: byte 0xe9 at byte offset 3, in line 2 "),
        ("nowhere", "cannot be read: No such file or directory."),
    ):
        ended = run_main(run_dirs[0], tmp_path / name)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith(f"{tmp_path / name} {message}")
        assert len(ended.err.splitlines()) == 1
    assert run_main(run_dirs[0], "-").err.startswith("stdin is empty")
    ended = run_main(tmp_path, "-", stdin=b"a")
    assert "neither the directory of a run" in ended.err


def test_models_that_split_a_text_differently_are_refused(
    run_dirs: list[Path], run_main: Callable, monkeypatch: pytest.MonkeyPatch
):
    load = lmbench.load

    def load_other(folder: Path, **options: Any) -> Any:
        model, vocabulary = load(folder, **options)
        if folder == run_dirs[1]:
            words = (*vocabulary.words[:-2], "a", ".")
            vocabulary = type(vocabulary)(words, Moses())
        else:
            vocabulary = type(vocabulary)((*vocabulary.words[:-1], "a."))
        return type(load(folder))(model, vocabulary)

    monkeypatch.setattr(lmbench, "load", load_other)
    ended = run_main(*run_dirs, "-", stdin=b"a.\n")
    assert (ended.code, ended.out) == (1, "")
    assert f"{run_dirs[1]} and {run_dirs[0]} split the text into different words" in ended.err


def test_a_model_in_bfloat16_is_read_in_float32(make_run: Callable[..., Path], run_main: Callable):
    folder = make_run("trainer.precision=bf16-true")
    loaded = lmbench.load(folder)
    word = loaded.vocabulary.words[5]
    loaded.model.float()
    expected = loaded.score(f"{word} {word}")["surp"][:2]
    rows = run_main(folder, "-", stdin=f"{word} {word}".encode()).table[1:]
    np.testing.assert_allclose([float(row[4]) for row in rows], expected, rtol=1e-7)


def test_options_may_stand_anywhere():
    options = score.parse_options([".", "--tokenizer", "auto", "a.txt", "--eos", "b.txt"])
    assert (options.tokenizer, options.eos) == ("auto", True)
    assert (options.folders, options.files) == ([Path()], ["a.txt", "b.txt"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "text.txt"], "nowhere is not a folder: name a run or an export first"),
        (["."], "name a text to score after the runs, or - for stdin"),
        ([".", "-", "--output=no/a.tsv"], "--output no/a.tsv: there is no folder no"),
        ([".", "-", "--output=a.csv"], "--output a.csv: the table is separated by tabs; name it"),
        ([".", "-", "--output=."], "--output . is not a file; leave it out"),
        ([".", "-", f"--output={os.devnull}"], f"--output {os.devnull} is not a file; leave it"),
        ([".", "a.txt", "--output=./a.txt"], "--output a.txt is what is to be scored"),
        ([".", "-", f"--output={'x' * 300}/a"], "there is no folder xxx"),
        (
            [".", "-", "--tokenizer=bert"],
            "--tokenizer: tokenizer must be one of auto, moses, none, penn",
        ),
        ([".", "-", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        score.parse_options(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err

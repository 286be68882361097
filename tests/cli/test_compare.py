"""The command, as it is typed."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmbench.cli.compare import main

FILES = {
    "index.html",
    "table.md",
    "table.csv",
    "table.tex",
    "comparison.json",
    "runs.csv",
    "significance.csv",
    *(
        f"{name}.{kind}"
        for name in ("curves_epochs", "curves_minutes", "test_perplexity")
        for kind in ("png", "svg")
    ),
}


@pytest.fixture
def sweep(tmp_path: Path, write_run: Callable[..., Path]) -> Path:
    for number in range(4):
        model, valid = ("lstm", 120.0) if number < 2 else ("awd_lstm", 110.0)
        write_run(
            tmp_path / f"sweep/{number}",
            model=model,
            seed=number % 2,
            valid=valid + number,
            test=valid - number,
        )
    return tmp_path / "sweep"


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the plots, which take seconds."""
    monkeypatch.setattr("lmbench.report.page.draw_plots", lambda *args: [])


def test_without_output_nothing_is_written(sweep: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(sweep.rglob("*"))
    main([str(sweep)])
    out = capsys.readouterr().out
    assert sorted(sweep.rglob("*")) == before
    assert "awd_lstm" in out
    assert "112.50 ± 6.35" in out
    assert "awd_lstm is better than lstm: " in out


def test_differences_are_tested_on_the_split_that_is_asked_for(
    sweep: Path, capsys: pytest.CaptureFixture[str]
):
    first, *others = sorted(map(str, sweep.iterdir()))
    main([first, "--split", "valid", *others])
    # 1 − sqrt(112 · 113 / (120 · 121)); on test it would be 10.0%
    assert "6.6% lower valid perplexity" in " ".join(capsys.readouterr().out.split())


def test_with_output_all_files_are_there(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "new/folder"
    main([str(sweep), "--output", str(output)])
    assert {path.name for path in output.iterdir()} == FILES
    lines = capsys.readouterr().out.splitlines()
    assert {line for line in lines if line.startswith(str(output))} == {
        str(output / name) for name in FILES
    }
    with (output / "table.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["awd_lstm", "lstm"]
    with (output / "significance.csv").open() as file:
        assert [row["test"] for row in csv.DictReader(file)] == ["Welch"]
    assert "\\toprule" in (output / "table.tex").read_text()
    assert "\\label{tab:perplexity_on_text}" in (output / "table.tex").read_text()
    written = json.loads((output / "comparison.json").read_text())
    with (output / "table.csv").open() as file:
        for row, group in zip(csv.DictReader(file), written["groups"], strict=True):
            assert (row["label"], int(row["num_seeds"])) == (group["label"], group["num_seeds"])
            assert float(row["test_ppl_mean"]) == group["test_ppl"]["mean"]
    assert [row["test"] for row in written["significance"]] == ["Welch"]
    assert len(written["runs"]) == sum(group["num_seeds"] for group in written["groups"])


def test_each_corpus_has_its_own_plots_and_rows(
    tmp_path: Path, write_run: Callable[..., Path], write_evaluation: Callable[..., Path]
):
    for name, ppl in (("wikitext2", 100.0), ("text", 50.0)):
        data = {"data": {"name": name, "sha256": name}}
        run_dir = write_run(tmp_path / f"runs/{name}", valid=ppl, test=ppl, results=data)
        write_evaluation(run_dir, "cache", ppl=ppl - 10, sha256=name)
    output = tmp_path / "compared"
    main([str(tmp_path / "runs"), "--output", str(output), "--published", "mos"])
    suffixes = ("_text_text", "_wikitext2_wikitext")
    names = {
        path.stem for path in output.iterdir() if path.suffix == ".svg" and path.stat().st_size > 0
    }
    kinds = ("curves_epochs", "curves_minutes", "test_perplexity")
    assert names == {f"{kind}{suffix}" for kind in kinds for suffix in suffixes}
    with (output / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["corpus"] for row in rows] == ["text", "wikitext2"]
    assert [float(row["cache_test_ppl_mean"]) for row in rows] == pytest.approx([40.0, 90.0])
    tex = (output / "table.tex").read_text()
    assert tex.count("\\toprule") == 3  # two corpora, and what was published
    assert "AWD-LSTM-MoS" in tex
    assert not (output / "significance.csv").exists()  # one group each


def test_names_can_neither_break_the_tables_nor_move_the_cursor(
    tmp_path: Path, write_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    write_run(tmp_path / "runs[b]/lstm[v2]", model="[/b]lstm[v2]\x1b[2J")
    write_run(tmp_path / "runs[b]/\x1b[2J", model="b", config={"optimizer.lr": "[/x]\x1b]0;"})
    write_run(tmp_path / "runs[b]/\x1b[3J").joinpath("results.json").unlink()
    main([str(tmp_path), "--output", str(tmp_path / "compared")])
    out = capsys.readouterr().out
    assert "[/b]lstm[v2]" in out
    assert "[3J: Did not finish" in " ".join(out.split())
    assert "## Left out" in (tmp_path / "compared/table.md").read_text("utf-8")
    files = [path for path in (tmp_path / "compared").iterdir() if path.suffix != ".png"]
    for text in (out, *(path.read_text("utf-8") for path in files if path.suffix != ".csv")):
        assert "\x1b" not in text


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1
    out, error = capsys.readouterr()
    assert len(error.splitlines()) == 1
    assert not out
    return error


@pytest.mark.usefixtures("without_plots")
def test_mistakes_are_reported_in_one_paragraph(tmp_path: Path, sweep: Path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for arguments, part in (
        ([str(tmp_path / "nowhere")], "nowhere is not a folder"),
        ([str(tmp_path / "empty")], "There is no finished run to compare."),
        ([str(sweep), "--published", "gpt"], "--published: there is no gpt"),
        ([str(sweep), "--published"], "--published: these results are on wikitext2, and no run is"),
        ([str(sweep), "--output", str(tmp_path / "file")], "cannot be written"),
        ([str(sweep), "--output", str(tmp_path / "file/below")], "cannot be written"),
    ):
        assert part in error_of(arguments, capsys)


def test_published_results_can_be_chosen(
    tmp_path: Path, write_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    write_run(tmp_path / "run", results={"data.name": "wikitext2"})
    main([str(tmp_path), "--published", "mos,doc"])
    out = capsys.readouterr().out
    assert "58.03" in out
    assert "86.68" not in out
    main([str(tmp_path), "--published"])
    assert "86.68" in capsys.readouterr().out


PROBE = """
import sys
from lmbench.cli.compare import main
main(sys.argv[1:])
slow = {"torch", "lightning", "hydra", "datasets", "pandas", "pyarrow"}
print("loaded:", sorted(slow & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    "options", [[], pytest.param(["--output", "compared"], marks=pytest.mark.slow)]
)
def test_neither_torch_nor_hydra_is_loaded(
    sweep: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    arguments = [str(sweep), *options]
    command = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for_latex = ["pandas", "pyarrow"] if options else []
    assert done.stdout.splitlines()[-1] == f"loaded: {for_latex}"
    assert not done.stderr


def test_help_loads_nothing_slow():
    probe = (
        "import sys; from lmbench.cli.compare import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'numpy', 'yaml', 'rich', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--ensemble" in done.stdout


def test_runs_can_be_named_and_grouped_by_a_key(
    sweep: Path, write_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    write_run(sweep / "x=1", model="gru")
    main([f"mine={sweep / '0'}", f"theirs={sweep / '1'}", str(sweep / "x=1")])
    out = capsys.readouterr().out
    for name in ("mine", "theirs", "gru"):
        assert f" {name} " in out
    main([str(sweep), "--group-by", "optimizer.lr"])
    assert "│ lr=30.0 │    5 │" in capsys.readouterr().out


def test_a_name_without_a_folder_is_refused(sweep: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:  # "" would be the current folder
        main(["mine=", str(sweep)])
    assert ended.value.code == 2
    assert "mine= names no folder" in capsys.readouterr().err


def test_an_ensemble_is_a_row(
    sweep: Path, write_evaluation: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    for number in (0, 1):
        for split in ("valid", "test"):
            nats = -np.random.default_rng(number).gamma(2, 2, 50)
            write_evaluation(sweep / str(number), split=split, log_probabilities=nats)
    main([str(sweep), "--ensemble", f"both={sweep / '0'}", str(sweep / "1")])
    out = capsys.readouterr().out
    assert "Members of both" in out
    assert "lstm, seed 1" in out
    assert error_of([str(sweep), "--ensemble", str(sweep / "3")], capsys).startswith("An ensemble")

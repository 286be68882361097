import os
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from lmbench.cli.sweep_table import _show

Write = Callable[..., Path]


@pytest.fixture
def job(tmp_path: Path, write_run: Write) -> Callable[..., Path]:
    """Writes a job of the sweep, finished or not."""

    def write(name: str, *, is_done: bool = True, **options) -> Path:
        run_dir = write_run(tmp_path / "sweep" / name, **options)
        if not is_done:
            (run_dir / "results.json").unlink()
        return run_dir

    return write


def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    _show(tmp_path / "sweep")
    return capsys.readouterr()


def test_means_over_seeds_and_what_comes_next(
    tmp_path: Path, job: Callable, capsys: pytest.CaptureFixture[str]
):
    for seed, valid in ((1, 120.0), (2, 121.0), (3, 125.0)):
        job(f"model-lstm+seed-{seed}", seed=seed, valid=valid, test=None)
    job("model-awd_lstm", model="awd_lstm", valid=99.5, test=90.0)
    job("model-gru", model="gru", is_done=False)
    job("model-qrnn", model="qrnn", is_done=False)
    (tmp_path / "sweep/model-qrnn/diverged.txt").write_text("The loss of step 3 is nan.")
    (tmp_path / "sweep/model-wrong").mkdir()  # failed before it began
    (tmp_path / "sweep/model-awd_lstm/awd_lstm_seed_1").mkdir()
    (tmp_path / "sweep/model-awd_lstm/awd_lstm_seed_1/events.out.tfevents.1").touch()
    (tmp_path / "sweep/notes").mkdir()
    out, err = shown(tmp_path, capsys)
    rows = [[x.strip() for x in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert rows == [["awd_lstm", "1", "99.50", "90.00"], ["lstm", "3", "122.00 ± 6.57", ""]]
    folder = tmp_path / "sweep"
    *_, diverged, unfinished, compare, curves = out.splitlines()
    assert diverged == "Diverged: model-qrnn"
    assert unfinished == (
        "Not finished: model-gru. To resume: the same command with "
        f"hydra.sweep.dir={folder} sweep_resume=true"
    )
    assert compare.endswith(f"lmbench-compare {folder} --output {folder}-compared")
    assert curves.endswith(f"tensorboard --logdir {folder}")
    assert not err


def test_without_curves_tensorboard_is_not_named(
    tmp_path: Path, job: Callable, capsys: pytest.CaptureFixture[str]
):
    job("a-1")
    assert "tensorboard" not in shown(tmp_path, capsys)[0]


def test_nothing_is_added_to_the_errors_if_all_jobs_of_a_sweep_failed(
    tmp_path: Path, job: Callable, capsys: pytest.CaptureFixture[str]
):
    job("a", is_done=False)
    assert shown(tmp_path, capsys) == ("", "")


def test_damage_is_named(tmp_path: Path, job: Callable, capsys: pytest.CaptureFixture[str]):
    (job("a-1") / "results.json").write_text('{"val": null}')
    out, err = shown(tmp_path, capsys)
    assert not out
    assert f"{tmp_path}/sweep/a-1/results.json is damaged: " in err
    assert len(err.splitlines()) == 1


def test_a_table_that_nobody_reads(
    tmp_path: Path, job: Callable, capsys: pytest.CaptureFixture[str]
):
    job("a-1")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread, redirect_stdout(unread):
        _show(tmp_path / "sweep")
    assert not capsys.readouterr().err

"""The directory of a run as a place."""

import os
from pathlib import Path

import pytest

from lmbench.errors import UserError
from lmbench.run.directory import alone_in, clear_run, is_run, time_of_change


def test_what_is_a_run_to_write_into(tmp_path: Path):
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    assert not is_run(run_dir)
    (run_dir / "config.yaml").touch()
    assert is_run(run_dir)
    assert is_run(str(run_dir))
    (run_dir / "checkpoints/link").symlink_to(tmp_path)
    assert not is_run(run_dir)
    assert not is_run(tmp_path / "nowhere")
    assert not is_run(tmp_path / ("x" * 300))  # no error, as of a folder that may not be read


def test_two_cannot_work_in_one_directory(tmp_path: Path):
    with alone_in(tmp_path), pytest.raises(UserError, match="Another process is at work"):
        alone_in(tmp_path).__enter__()
    with alone_in(tmp_path):
        pass


def test_when_a_file_has_changed(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    assert time_of_change(path) is None
    path.touch()
    os.utime(path, ns=(5, 7))
    assert time_of_change(path) == 7


def test_a_run_is_cleared_of_what_it_wrote_and_of_nothing_else(tmp_path: Path):
    kept = ("config.yaml", "overrides.jsonl", "train.log", "notes.txt", ".hydra/config.yaml")
    gone = ("metrics.csv", "timing.csv", "results.json")
    gone_folders = ("checkpoints/best.ckpt", "tensorboard/events")
    for name in (*kept, *gone, *gone_folders):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    clear_run(tmp_path)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == set(kept)
    clear_run(tmp_path)

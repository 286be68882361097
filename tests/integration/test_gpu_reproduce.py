"""``scripts/gpu_reproduce.sh`` without a GPU: its pieces give what an unbroken run gives."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmbench.files import read_json

SCRIPT = Path(__file__).parents[2] / "scripts/gpu_reproduce.sh"
TINY = (
    "data=synthetic",
    "model.embedding_size=16",
    "model.core.hidden_size=24",
    "batching.batch_size=10",
    "trainer.max_epochs=4",
)


def call(run: Path, minutes: float) -> int:
    """Runs one piece; returns its exit status."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(SCRIPT), str(run), str(minutes), *TINY]
    return subprocess.run(command, check=False, env=environment, capture_output=True).returncode


def test_a_resume_finds_the_prepared_corpus(tmp_path: Path):
    """Without the cache it would tokenize again, which needs pyarrow."""
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "build/gpu_check/wikitext-2").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nmkdir -p run\ntouch run/config.yaml\necho "$@"\n')
    python.chmod(0o755)
    places = "data.path=build/gpu_check/wikitext-2 data.cache_dir=build/gpu_check/cache"

    def piece(*overrides: str) -> str:
        command = ["bash", script, "run", "1", *overrides]
        environment = {**os.environ, "PYTHON": str(python)}
        return subprocess.run(
            command, check=True, env=environment, capture_output=True, text=True
        ).stdout

    assert f"hydra.run.dir='run' {places} seed=2\n" in piece("seed=2")
    assert f"resume='run' {places}\n" in piece("seed=2")
    assert "build/gpu_check" not in piece("data.path=mine")


@pytest.mark.slow
def test_pieces_give_what_an_unbroken_run_gives(tmp_path: Path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    begin = time.monotonic()
    assert call(whole, 10) == 0
    # A quarter of what it took, perhaps with files that the system had to read from the disk first.
    statuses, minutes = [], (time.monotonic() - begin) / 240
    while (not statuses or statuses[-1] == 75) and minutes < 10:
        statuses.append(call(pieces, minutes))
        minutes *= 1.5  # starting Python may take all of it
    assert statuses == [75] * (len(statuses) - 1) + [0]
    assert len(statuses) > 1
    assert (pieces / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    weights = [read_json(run / "results.json")["weights_sha256"] for run in (pieces, whole)]
    assert weights[0] == weights[1]

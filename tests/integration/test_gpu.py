"""``scripts/gpu.sh train`` without a GPU: its pieces give what an unbroken run gives."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import SMALL

from lmbench.files import read_json

SCRIPT = Path(__file__).parents[2] / "scripts/gpu.sh"


def piece(
    run: Path | str,
    minutes: float,
    *overrides: str,
    script: Path = SCRIPT,
    python: str = sys.executable,
) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(script), "train", str(run), str(minutes), *overrides]
    environment = {**os.environ, "PYTHON": python, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True)


def test_start_and_resume_read_the_prepared_corpus(tmp_path: Path):
    """Without the cache they would tokenize again, which needs pyarrow."""
    (tmp_path / "scripts").mkdir()
    script = Path(shutil.copy(SCRIPT, tmp_path / "scripts"))
    (tmp_path / "build/gpu/wikitext-2").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nmkdir -p run\ntouch run/config.yaml\necho "$@"\n')
    python.chmod(0o755)
    for first in ("hydra.run.dir='run'", "resume='run'"):
        said = piece("run", 1, "seed=2", script=script, python=str(python)).stdout
        assert f"{first} data.path=build/gpu/wikitext-2 data.cache_dir=build/gpu/cache" in said
    other = piece("run", 1, "data.path=mine", script=script, python=str(python)).stdout
    assert "build/gpu" not in other


@pytest.mark.slow
def test_pieces_give_what_an_unbroken_run_gives(tmp_path: Path):
    overrides = (*SMALL, "trainer.max_epochs=12")
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    begin = time.monotonic()
    assert piece(whole, 10, *overrides).returncode == 0
    # A quarter of what it took, perhaps with files that the system had to read from the disk first.
    statuses, minutes = [], (time.monotonic() - begin) / 240
    while (not statuses or statuses[-1] == 75) and minutes < 10:
        statuses.append(piece(pieces, minutes, *overrides).returncode)
        minutes *= 1.5  # starting Python may take all of it
    assert statuses == [75] * (len(statuses) - 1) + [0]
    assert len(statuses) > 1
    assert (pieces / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    weights = [read_json(run / "results.json")["weights_sha256"] for run in (pieces, whole)]
    assert weights[0] == weights[1]

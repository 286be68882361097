"""``scripts/gpu_check.py`` without a GPU: the part that a CPU can do works."""

import contextlib
import json
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import gpu_check
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts/gpu_check.py"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_all_checks_on_the_cpu(tmp_path: Path):
    output = tmp_path / "report.json"
    quick = ("--quick", "--steps", "2", "--epochs", "1")
    result = run("--device", "cpu", *quick, "--output", str(output))
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text("utf-8"))
    assert [row["part"] for row in report["parity"]] == ["forward", "gradients"]
    # float32 has 24 bits: a larger error means fewer bits, one of 0 no second computation
    assert all(2**-26 < row["relative error"] < 2**-18 for row in report["parity"])
    # Three layers 16 → 16 → 16 → 16 and 100 words; a window of 8 steps in 4 columns.
    flop = 3 * (3 * 2 * 4 * 16 * (16 + 16) + 2 * 16 * 100) * 8 * 4
    assert [row["precision"] for row in report["speed"]] == ["float32", "tf32", "bf16-mixed"]
    for row in report["speed"]:
        seconds = row["ms/step"] / 1e3
        assert row["tokens/s"] == pytest.approx(8 * 4 / seconds)
        assert row["TFLOP/s"] == pytest.approx(flop / seconds / 1e12)
        assert row["% of peak"] == pytest.approx(100 * row["TFLOP/s"] / row["peak TFLOP/s"])
    assert [(row["model"], row["epochs"]) for row in report["training"]] == [
        ("lstm", 1),
        ("awd_lstm", 1),
    ]
    assert all(math.isfinite(row["test ppl"]) for row in report["training"])
    assert "CUDA device only" in report["copies"][0]["left out"]


@pytest.mark.parametrize(("error", "is_right"), [(5e-6, True), (2e-5, False), (math.nan, False)])
def test_results_that_differ_from_the_cpus_fail(
    monkeypatch: pytest.MonkeyPatch, error: float, is_right: bool
):
    for name in ("parity", "copies", "speed", "cuda_graph", "training"):

        def check(*_: object) -> list[dict]:
            return [
                {"part": "forward", "relative error": 1e-7},
                {"part": "", "relative error": error},
            ]

        check.__name__ = check.__doc__ = name
        monkeypatch.setattr(gpu_check, name, check)
    refused = pytest.raises(SystemExit, match="differ from the CPU's")
    with contextlib.nullcontext() if is_right else refused:
        gpu_check.main(Namespace(device="cpu", output=None))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_machine_without_a_gpu():
    result = run()
    assert result.returncode == 1
    assert "no CUDA device" in result.stderr
    assert "Traceback" not in result.stderr

import csv
from pathlib import Path

import pytest

from lmbench.callbacks.metrics_csv import MetricsCSV


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_timing_has_a_file_of_its_own(tmp_path: Path):
    MetricsCSV(tmp_path).log_metrics(
        {
            "train/nll": 5.5,
            "train/tokens_per_second": 1234.5,
            "train/peak_memory_bytes": 2.0**30,
            "lr": 0.1,
            "train/seconds": 2.5,
            "epoch": 3,
        },
        step=49,
    )
    assert read(tmp_path / "metrics.csv") == [
        {"step": "49", "epoch": "3", "train/nll": "5.5", "lr": "0.1"}
    ]
    (timing,) = read(tmp_path / "timing.csv")
    assert timing == {
        "step": "49",
        "epoch": "3",
        "train/tokens_per_second": "1234.5",
        "train/peak_memory_bytes": "1073741824.0",
        "train/seconds": "2.5",
    }


def test_every_row_is_on_disk_at_once_with_all_its_digits(tmp_path: Path):
    logger = MetricsCSV(tmp_path)
    for step in range(5):
        logger.log_metrics({"val/nll": 1 / (step + 3), "epoch": step}, step)
        rows = read(tmp_path / "metrics.csv")
        assert [float(row["val/nll"]) for row in rows] == [1 / (k + 3) for k in range(step + 1)]
        assert [int(row["step"]) for row in rows] == list(range(step + 1))
    assert not (tmp_path / "timing.csv").exists()


def test_a_new_column_widens_the_header_and_keeps_the_rows(tmp_path: Path):
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"train/nll": 3.0, "epoch": 0}, 1)
    logger.log_metrics({"train/nll": 2.0, "epoch": 0}, 2)
    logger.log_metrics({"val/nll": 2.5, "epoch": 0}, 2)
    logger.log_metrics({"train/nll": 1.0, "epoch": 1}, 3)
    path = tmp_path / "metrics.csv"
    assert path.read_text("utf-8").splitlines() == [
        "step,epoch,train/nll,val/nll",
        "1,0,3.0,",
        "2,0,2.0,",
        "2,0,,2.5",
        "3,1,1.0,",
    ]
    assert len(read(path)) == 4


def test_an_epoch_alone_is_no_row(tmp_path: Path):
    MetricsCSV(tmp_path).log_metrics({"epoch": 1}, 7)
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_run_before_are_replaced(tmp_path: Path):
    for value in (1.0, 2.0):
        MetricsCSV(tmp_path).log_metrics({"lr": value}, 0)
    assert read(tmp_path / "metrics.csv") == [{"step": "0", "lr": "2.0"}]


def test_the_folder_is_made(tmp_path: Path):
    MetricsCSV(tmp_path / "runs" / "1").log_metrics({"lr": 1.0}, 0)
    assert read(tmp_path / "runs" / "1" / "metrics.csv") == [{"step": "0", "lr": "1.0"}]


@pytest.mark.parametrize("parameters", [{}, {"seed": 1}])
def test_hyperparameters_are_left_to_the_config(tmp_path: Path, parameters: dict):
    MetricsCSV(tmp_path).log_hyperparams(parameters)
    assert list(tmp_path.iterdir()) == []

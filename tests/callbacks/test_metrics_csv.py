import csv
import pickle
from pathlib import Path

import pytest

from lmbench.callbacks.metrics_csv import MetricsCSV
from lmbench.errors import UserError


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


def test_an_epoch_alone_makes_no_row(tmp_path: Path):
    MetricsCSV(tmp_path).log_metrics({"epoch": 1}, 7)
    assert list(tmp_path.iterdir()) == []


def test_hyperparameters_are_left_to_the_config(tmp_path: Path):
    MetricsCSV(tmp_path).log_hyperparams({"seed": 1})
    assert list(tmp_path.iterdir()) == []


def test_no_rows_are_kept_in_memory(tmp_path: Path):
    """A run of a million steps logs a million rows."""
    logger, sizes = MetricsCSV(tmp_path), []
    for step in range(200):
        logger.log_metrics({"train/nll": 1 / (step + 3)}, step)
        sizes.append(len(pickle.dumps(logger)))
    assert sizes[-1] < sizes[0] + 100


def log_steps(logger: MetricsCSV, steps: range) -> None:
    """Logs a row per step, and a second one, with other columns, at every third step."""
    for step in steps:
        logger.log_metrics({"train/nll": 1 / (step + 3), "epoch": step // 4}, step)
        if step % 3 == 2:
            logger.log_metrics({"val/nll": 1 / 7**step, "train/seconds": 0.1 * step}, step)


@pytest.mark.parametrize("saved_after", [0, 1, 3, 5, 6])
def test_resumed_files_are_those_of_an_unbroken_run(tmp_path: Path, saved_after: int):
    """Whatever was written after the checkpoint, including half a row and a temporary file."""
    log_steps(MetricsCSV(tmp_path / "whole"), range(8))
    folder = tmp_path / "resumed"
    first = MetricsCSV(folder)
    log_steps(first, range(saved_after))
    state = first.state_dict()
    log_steps(first, range(saved_after, 7))
    with (folder / "metrics.csv").open("a") as file:
        file.write("7,1,0.0")
    (folder / "metrics.csv.tmp").write_text("step,ep")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    second = MetricsCSV(folder)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    log_steps(second, range(saved_after, 8))
    for name in ("metrics.csv", "timing.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


ROWS = b"step,epoch,train/nll\n0,0,0.5\n1,0,0.25\n2,,2.0\n"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "cannot be read: "),
        (b"\xff\xfe" * 9, "cannot be read: "),
        (b"step,train/nll\n" + b"1" * 200_000 + b",2\n", "cannot be read: field larger"),
        (b"", "no longer has the 3 rows"),
        (ROWS[:-7], "no longer has the 3 rows"),
        (ROWS[:-5], "no longer has the 3 rows"),
        (
            ROWS.replace(b"2,,2.0", b"4,,2.0"),
            "no longer has the 3 rows that .* last of them differs",
        ),
    ],
    ids=["missing", "binary", "a long field", "empty", "a row less", "a cut row", "another row"],
)
def test_files_that_are_not_those_of_the_checkpoint_are_refused(
    tmp_path: Path, content: bytes | None, part: str
):
    logger = MetricsCSV(tmp_path)
    for step, row in enumerate(({"train/nll": 0.5, "epoch": 0}, {"train/nll": 0.25, "epoch": 0})):
        logger.log_metrics(row, step)
    logger.log_metrics({"train/nll": 2.0}, 2)
    state = logger.state_dict()
    path = tmp_path / "metrics.csv"
    assert path.read_bytes() == ROWS
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=rf"metrics\.csv {part}"):
        MetricsCSV(tmp_path).load_state_dict(state)
    assert (path.read_bytes() if content is not None else None) == content


def test_rows_are_on_the_disk_before_a_checkpoint_counts_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flushed = []
    monkeypatch.setattr("lmbench.callbacks.metrics_csv.flush_to_disk", flushed.append)
    logger = MetricsCSV(tmp_path)
    logger.state_dict()
    assert flushed == []
    logger.log_metrics({"lr": 1.0}, 0)
    logger.state_dict()
    assert flushed == [tmp_path / "metrics.csv"]

"""Accuracies on minimal pairs: means, tests against other formulas, and damaged files."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from lmbench.report.comparison import compare
from lmbench.report.groups import Section
from lmbench.report.minimal_pairs import accuracy_table, compare_accuracies, pair_results
from lmbench.report.page import write_report

Write = Callable[..., Path]
NUM_PAIRS = 600


def drawn(share: float, seed: int) -> np.ndarray:
    """Whether each pair is right; paradigms differ in how hard they are."""
    generator = np.random.default_rng(seed)
    hardness = np.repeat(np.random.default_rng(9).normal(0, 0.1, NUM_PAIRS // 20), 20)
    return (generator.random(NUM_PAIRS) < share + hardness).astype(float)


CORRECT = {("a", 1): drawn(0.7, 1), ("a", 2): drawn(0.7, 2), ("b", 1): drawn(0.6, 3)}
CORRECT["b", 2] = drawn(0.6, 4)


@pytest.fixture
def folder(tmp_path: Path, write_run: Write, write_pairs: Write) -> Path:
    """Two seeds of two models."""
    for (model, seed), correct in CORRECT.items():
        valid = {"a": 100.0, "b": 120.0}[model]
        run_dir = write_run(tmp_path / f"{model}{seed}", model=model, seed=seed, valid=valid)
        write_pairs(run_dir, correct, known=0.6 + seed / 100)
    return tmp_path


def test_means_over_seeds(folder: Path, section_of: Callable[[Path], Section]):
    (pairs,) = pair_results(section_of(folder))
    titles, rows, _ = accuracy_table(pairs).shown()
    assert titles == ["name", "seeds", "all", "known words", "syntax"]
    for (name, num_seeds, all_pairs, known, syntax), model in zip(rows, "ab", strict=True):
        values = [100 * CORRECT[model, seed].mean() for seed in (1, 2)]
        assert (name, num_seeds) == (model, "2")
        half_width = stats.sem(values) * stats.t.ppf(0.975, 1)
        assert all_pairs == syntax == f"{np.mean(values):.1f} ± {half_width:.1f}"
        assert known.startswith("61.5 ± 6.4")


def test_differences(folder: Path, section_of: Callable[[Path], Section]):
    (pairs,) = pair_results(section_of(folder))
    comparisons, skipped = compare_accuracies(pairs)
    assert skipped == []
    assert [one.unit for one in comparisons] == ["pair", "paradigm", "seed"]
    means = {model: (CORRECT[model, 1] + CORRECT[model, 2]) / 2 for model in "ab"}
    by_paradigm = {model: values.reshape(-1, 20).mean(1) for model, values in means.items()}
    seeds = {model: [CORRECT[model, seed].mean() for seed in (1, 2)] for model in "ab"}
    expected = [
        stats.ttest_rel(means["b"], means["a"]),
        stats.ttest_rel(by_paradigm["b"], by_paradigm["a"]),
        stats.ttest_ind(seeds["b"], seeds["a"], equal_var=False),
    ]
    for one, test in zip(comparisons, expected, strict=True):
        assert (one.first.name, one.second.name) == ("a", "b")
        assert one.test.difference == pytest.approx(means["b"].mean() - means["a"].mean())
        assert one.test.p == one.adjusted_p == pytest.approx(test.pvalue)
        low, high = test.confidence_interval()
        assert (one.test.low, one.test.high) == pytest.approx((low, high))
    assert [one.num_units for one in comparisons] == [600, 30, None]
    assert [one.num_seeds for one in comparisons] == [(2, 2)] * 3


def test_minimal_pairs_are_in_the_report(folder: Path):
    report = compare([(None, folder)])
    assert [table.title for table in report.chapters[0].tables[1:]] == [
        "Minimal pairs of set",
        "Differences on minimal pairs of set",
    ]
    files = {path.name: path for path in write_report(report, folder / "out")}
    assert {"minimal_pairs.csv", "minimal_pairs_set.png", "minimal_pairs_set.svg"} <= set(files)
    with files["minimal_pairs.csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 + 1 + 3 + 30)
    (row,) = (row for row in rows if (row["label"], row["part"]) == ("b", "p07"))
    expected = np.mean([CORRECT["b", seed][140:160].mean() for seed in (1, 2)])
    assert float(row["accuracy_mean"]) == pytest.approx(expected)
    with files["minimal_pairs_significance.csv"].open() as file:
        assert [row["drawn"] for row in csv.DictReader(file)] == ["pair", "paradigm", "seed"]
    page = files["index.html"].read_text("utf-8")
    assert "Minimal pairs of set: mean over seeds with 95% interval." in page


@pytest.mark.parametrize("changes", [{"sha256": "1" * 64}, {"drops_punctuation": True}])
def test_other_pairs_or_pairs_read_otherwise_are_left_out(
    folder: Path, write_pairs: Write, section_of: Callable[[Path], Section], changes: dict
):
    usual = json.loads((folder / "a2/minimal_pairs-set.json").read_text())["pairs"]
    other = usual | changes
    write_pairs(folder / "a1", CORRECT["a", 1], pairs=other)  # read first, but in fewer runs
    (pairs,) = pair_results(section_of(folder))
    assert [len(of) for of in pairs.accuracies.values()] == [1, 2]
    assert "1 of 2 seeds of a." in pairs.notes
    assert pairs.notes[-1].startswith("Runs that read other pairs under this name are left out")
    differences, _ = compare_accuracies(pairs)
    assert {one.num_seeds for one in differences} == {(1, 2)}  # too few to compare over seeds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy": None}, "float() argument must be a string or a real number"),
        ({"corpus_sha256": "other"}, "is for a different corpus from the run's"),
        ({"by": []}, "'list' object has no attribute 'items'"),
        ({"parts": {}}, "KeyError 'known'"),
        ({"accuracy": float("nan")}, "an accuracy is not between 0 and 1"),
        ({"parts": {"known": {"accuracy": 1.01}}}, "an accuracy is not between 0 and 1"),
    ],
)
def test_a_damaged_file_is_left_out(folder: Path, write_pairs: Write, changes: dict, message: str):
    path = write_pairs(folder / "a1", CORRECT["a", 1], **changes)
    (skipped,) = compare([(None, folder)]).skipped
    assert skipped.path == path
    assert message in skipped.reason


def test_sets_of_pairs_in_other_scripts_have_their_own_pictures(
    tmp_path: Path, write_run: Write, write_pairs: Write
):
    run_dir = write_run(tmp_path / "a")
    for name in ("日本語", "中国語"):
        write_pairs(run_dir, CORRECT["a", 1], name=name)
    names = {path.name for path in write_report(compare([(None, run_dir)]), tmp_path / "out")}
    assert {"minimal_pairs_日本語.png", "minimal_pairs_中国語.png"} <= names


def test_damaged_records_are_left_out(folder: Path):
    path = folder / "a2/minimal_pairs-set.json"
    records, accuracy = path.with_suffix(".parquet"), CORRECT["a", 2].mean()
    right = pq.read_table(records)
    for table, message in (
        (right[:-1], "it has 599 rows, not 600"),
        (
            right.append_column("x", right["correct"]).drop_columns("correct"),
            "Column correct does not exist",
        ),
        (right.set_column(1, "correct", pa.array(CORRECT["a", 2])), "'correct': 'double'"),
        (right[::-1], "Its paradigms are not those of the other runs."),
        (
            right.set_column(1, "correct", pa.array([True] * 600)),
            f"is 1.000000, not {accuracy:.6f}",
        ),
    ):
        pq.write_table(table, records)
        (skipped,) = compare([(None, folder)]).skipped
        assert skipped.path.name == records.name
        assert message in skipped.reason
    records.write_bytes(b"damaged")
    (skipped,) = compare([(None, folder)]).skipped
    assert re.search(r"is damaged: .*Make it again with lmbench-evaluate", skipped.reason)

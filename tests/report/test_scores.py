import json
from pathlib import Path
from typing import Any

import pytest

from lmbench.errors import UserError
from lmbench.report.scores import MeasuredScore, measured_scores, read_results


def score(ppl: float) -> dict[str, Any]:
    return {"nll": 4.0, "ppl": ppl, "num_tokens": 100}


def evaluation(name: str, split: str, ppl: float, sha256: str = "abc") -> dict[str, Any]:
    about = {"name": name, "protocol": "standard", "columns": 64}
    return {"split": split, "corpus_sha256": sha256, "evaluation": about, **score(ppl)}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    results = {"data": {"sha256": "abc"}, "val": score(70.5), "test": score(68.25)}
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_all_scores_of_a_run(run_dir: Path):
    for name, split, ppl in (("cache", "valid", 55.0), ("cache", "test", 54.0)):
        path = run_dir / f"evaluation-{name}-{split}.json"
        path.write_text(json.dumps(evaluation(name, split, ppl)))
    (run_dir / "evaluation-cache-test.parquet").touch()
    assert measured_scores(run_dir) == [
        MeasuredScore("valid", "", 70.5, 4.0, 100),
        MeasuredScore("test", "", 68.25, 4.0, 100),
        MeasuredScore("test", "cache", 54.0, 4.0, 100),
        MeasuredScore("valid", "cache", 55.0, 4.0, 100),
    ]


def test_a_run_without_a_test(run_dir: Path):
    results = read_results(run_dir) | {"test": None}
    (run_dir / "results.json").write_text(json.dumps(results))
    assert [row.split for row in measured_scores(run_dir)] == ["valid"]


def test_a_run_that_has_not_finished(tmp_path: Path):
    with pytest.raises(UserError, match=rf"no results\.json.*lmbench-train resume={tmp_path}$"):
        measured_scores(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 100_000, "{}", '{"data": {"sha256": "abc"}, "val": 3}']
)
@pytest.mark.parametrize("name", ["results.json", "evaluation-cache-test.json"])
def test_a_damaged_file_is_named(run_dir: Path, name: str, content: str):
    (run_dir / name).write_text(content)
    with pytest.raises(UserError) as error:
        measured_scores(run_dir)
    assert str(error.value).startswith(f"{run_dir / name} ")
    assert "\n" not in str(error.value)


def test_an_evaluation_of_another_corpus(run_dir: Path):
    path = run_dir / "evaluation-cache-test.json"
    path.write_text(json.dumps(evaluation("cache", "test", 5.0, "another")))
    with pytest.raises(UserError, match=r"evaluation-cache-test\.json is of another corpus"):
        measured_scores(run_dir)

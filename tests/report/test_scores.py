import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lmbench.errors import UserError
from lmbench.report.scores import (
    MeasuredScore,
    Score,
    measured_scores,
    read_evaluation,
    read_results,
)


def score(ppl: float) -> dict[str, Any]:
    return {"nll": 4.0, "ppl": ppl, "num_tokens": 100}


def write_evaluation(
    run_dir: Path, name: str, split: str, ppl: float, changes: dict[str, Any] | None = None
) -> Path:
    about = {"name": name, "protocol": "standard", "columns": 64}
    values = {"split": split, "corpus_sha256": "abc", "evaluation": about, **score(ppl)}
    path = run_dir / f"evaluation-{name}-{split}.json"
    path.write_text(json.dumps(values | (changes or {})))
    return path


def measured(run_dir: Path) -> list[MeasuredScore]:
    return measured_scores(run_dir, read_results(run_dir))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    results = {"data": {"sha256": "abc"}, "val": score(70.5), "test": score(68.25)}
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_all_scores_of_a_run(run_dir: Path):
    for split, ppl in (("valid", 55.0), ("test", 54.0)):
        write_evaluation(run_dir, "cache", split, ppl, {"tuned": None})
        write_evaluation(run_dir, "tuned", split, ppl - 1, {"tuned": {"num_tokens": None}})
    (run_dir / "evaluation-cache-test.parquet").touch()
    (run_dir / "evaluation-notes.json").touch()
    assert measured(run_dir) == [
        ("valid", "", Score(4.0, 70.5, 100), False),
        ("test", "", Score(4.0, 68.25, 100), False),
        ("test", "cache", Score(4.0, 54.0, 100), False),
        ("valid", "cache", Score(4.0, 55.0, 100), False),
        ("test", "tuned", Score(4.0, 53.0, 100), True),
        ("valid", "tuned", Score(4.0, 54.0, 100), True),
    ]


def test_a_run_without_a_test(run_dir: Path):
    results = read_results(run_dir) | {"test": None}
    assert [row.split for row in measured_scores(run_dir, results)] == ["valid"]


def test_a_run_that_has_not_finished(tmp_path: Path):
    with pytest.raises(UserError, match=rf"no results\.json.*lmbench-train resume={tmp_path}$"):
        measured(tmp_path)
    with pytest.raises(UserError) as raised:
        measured(tmp_path / "My Drive")
    _, override = shlex.split(str(raised.value).partition("To go on: ")[2])
    assert OverridesParser.create().parse_override(override).value() == f"{tmp_path}/My Drive"


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 100_000, "{}", '{"data": {"sha256": "abc"}, "val": 3}']
)
@pytest.mark.parametrize("name", ["results.json", "evaluation-cache-test.json"])
def test_a_damaged_file_is_named(run_dir: Path, name: str, content: str):
    (run_dir / name).write_text(content)
    with pytest.raises(UserError) as error:
        measured(run_dir)
    assert str(error.value).startswith(f"{run_dir / name} ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("evaluation", "run", "message"),
    [
        ({}, {}, None),
        ({"corpus_sha256": "b"}, {}, "of another corpus"),
        ({"corpus_sha256": None}, {}, "of another corpus"),
        ({"weights_sha256": "1"}, {"weights_sha256": "1"}, None),
        ({"weights_sha256": "1"}, {}, None),  # a run of an older lmbench
        ({"weights_sha256": "1"}, {"weights_sha256": "2"}, "of other weights"),
        ({"weights_sha256": []}, {"weights_sha256": "2"}, "damaged: weights_sha256 is not a text"),
        ({"split": "valid"}, {}, "of another split"),
        ({"ppl": 0.5}, {}, "damaged: no perplexity is below 1"),
    ],
)
def test_an_evaluation_belongs_to_its_name_and_the_weights_of_the_results(
    run_dir: Path, evaluation: dict[str, Any], run: dict[str, Any], message: str | None
):
    results = read_results(run_dir) | run
    path = write_evaluation(run_dir, "cache", "test", 54.0, evaluation)
    if message is None:
        assert read_evaluation(path, "test", results).score.ppl == 54
        assert len(measured_scores(run_dir, results)) == 3
        return
    with pytest.raises(UserError, match=rf"^{path} is {message}"):
        read_evaluation(path, "test", results)

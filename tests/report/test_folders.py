from collections.abc import Callable
from pathlib import Path

import pytest

from lmbench.errors import UserError
from lmbench.report.folders import field, find_run_dirs, optional_field


def test_runs_are_found_at_any_depth_in_numerical_order(
    tmp_path: Path, write_run: Callable[..., Path]
):
    jobs = [write_run(tmp_path / f"multirun/2026-01-02/03-04-05/{n}") for n in (10, 9, 0)]
    single = write_run(tmp_path / "outputs/2026-01-01/00-00-00")
    (single / "checkpoints").mkdir()
    (single / ".hydra").mkdir()
    (single / ".hydra/config.yaml").write_text("")
    found, left_out = find_run_dirs([tmp_path])
    assert found == [*reversed(jobs), single]
    assert left_out == []


def test_a_run_named_twice_counts_once(tmp_path: Path, write_run: Callable[..., Path]):
    run = write_run(tmp_path / "sweep/0")
    link = tmp_path / "link"
    link.symlink_to(run)
    assert find_run_dirs([run, tmp_path / "sweep", link, tmp_path])[0] == [run]


def test_a_link_that_is_not_followed_is_named(tmp_path: Path, write_run: Callable[..., Path]):
    run = write_run(tmp_path / "elsewhere/run")
    other = write_run(tmp_path / "folder/run")
    for name, target in (("link", run), ("latest", other), (".hidden", run)):
        (tmp_path / "folder" / name).symlink_to(target)
    found, left_out = find_run_dirs([tmp_path / "folder"])
    assert found == [other]
    assert [(item.path, item.reason) for item in left_out] == [
        (tmp_path / "folder/link", "Is a link, and is not followed: name it itself.")
    ]


@pytest.mark.parametrize("target", ["elsewhere", "elsewhere/run"])
def test_a_link_that_is_named_itself_is_followed(
    tmp_path: Path, write_run: Callable[..., Path], target: str
):
    run = write_run(tmp_path / "elsewhere/run")
    link = tmp_path / "folder/link"
    link.parent.mkdir()
    link.symlink_to(tmp_path / target)
    found, left_out = find_run_dirs([link, tmp_path / "folder"])
    assert [path.resolve() for path in found] == [run]
    assert [item.reason for item in left_out] == ["Holds no run."]  # but for the link


def test_a_job_that_failed_before_it_began_is_found(tmp_path: Path):
    (tmp_path / "3/.hydra").mkdir(parents=True)
    assert find_run_dirs([tmp_path])[0] == [tmp_path / "3"]


def test_runs_in_the_folder_of_a_run_are_found(tmp_path: Path, write_run: Callable[..., Path]):
    outer = write_run(tmp_path / "exp")
    jobs = [write_run(outer / str(number)) for number in range(2)]
    write_run(outer / "checkpoints/copy")
    (tmp_path / "failed/.hydra").mkdir(parents=True)
    inner = write_run(tmp_path / "failed/run")
    assert find_run_dirs([tmp_path])[0] == [outer, *jobs, tmp_path / "failed", inner]


def test_hidden_folders_are_not_looked_into(tmp_path: Path, write_run: Callable[..., Path]):
    run = write_run(tmp_path / "run")
    write_run(tmp_path / ".trash/run")
    assert find_run_dirs([tmp_path])[0] == [run]


def test_results_alone_are_a_run(tmp_path: Path):
    (tmp_path / "results.json").write_text("{}")
    assert find_run_dirs([tmp_path])[0] == [tmp_path]


def test_a_folder_without_a_run_is_named(tmp_path: Path, write_run: Callable[..., Path]):
    empty = tmp_path / "empty"
    empty.mkdir()
    run = write_run(tmp_path / "run")
    found, left_out = find_run_dirs([empty, run])
    assert found == [run]
    assert [(item.path, item.reason) for item in left_out] == [(empty, "Holds no run.")]


def test_what_is_no_folder_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere is no folder\. Name run directories"):
        find_run_dirs([tmp_path / "nowhere"])


def test_what_cannot_be_looked_at_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"xxx cannot be read: File name too long\.$"):
        find_run_dirs([tmp_path / ("x" * 300)])


VALUES = {
    "a": {"text": "x", "int": 3, "float": 2.5, "true": True, "null": None, "nan": float("nan")},
    "large": 10**400,
}


@pytest.mark.parametrize(
    ("key", "kind", "expected"),
    [
        ("a.text", str, "x"),
        ("a.int", int, 3),
        ("a.int", float, 3.0),
        ("a.float", float, 2.5),
        ("a", dict, VALUES["a"]),
    ],
)
def test_fields_of_the_right_kind(key: str, kind: type, expected: object):
    found = field(VALUES, key, kind, Path("results.json"))
    assert found == expected
    assert type(found) is kind


@pytest.mark.parametrize(
    ("key", "kind", "part"),
    [
        ("a.text", float, "a.text is not a finite number"),
        ("a.text", int, "a.text is not a whole number"),
        ("a.float", int, "a.float is not a whole number"),
        ("a.true", int, "a.true is not a whole number"),
        ("a.true", float, "a.true is not a finite number"),
        ("a.nan", float, "a.nan is not a finite number"),
        ("large", float, "large is not a finite number"),
        ("a.int", str, "a.int is not a text"),
        ("a.int", dict, "a.int is not an object"),
        ("a.null", str, "a.null is missing"),
        ("a.other", str, "a.other is missing"),
        ("a.text.other", str, "a.text.other is missing"),
    ],
)
def test_fields_of_a_wrong_kind(key: str, kind: type, part: str):
    with pytest.raises(UserError, match=rf"^results\.json is damaged: {part}"):
        field(VALUES, key, kind, Path("results.json"))


def test_an_optional_field_may_be_missing_and_nothing_else():
    assert optional_field(VALUES, "a.null", int, Path("x")) is None
    assert optional_field(VALUES, "b.c", int, Path("x")) is None
    with pytest.raises(UserError, match="not a whole number"):
        optional_field(VALUES, "a.text", int, Path("x"))

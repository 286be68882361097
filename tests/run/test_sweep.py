import json
from pathlib import Path

import pytest

from lmbench.errors import UserError
from lmbench.run.sweep import job_folder, own_overrides, record_job, recorded_job


def record(folder: Path, *overrides: str) -> None:
    folder.mkdir()
    record_job(folder, overrides)


def test_a_new_sweep_numbers_its_jobs(tmp_path: Path):
    record(tmp_path / "0", "seed=1")
    assert job_folder(tmp_path, 0, ["seed=2"], resume=False) == "0"
    assert job_folder(tmp_path / "none", 7, ["seed=2"], resume=True) == "7"


def test_a_job_is_found_by_its_overrides_whatever_its_number(tmp_path: Path):
    record(tmp_path / "0", "model=lstm", "seed=1")
    record(tmp_path / "1", "model=lstm", "seed=2")
    assert job_folder(tmp_path, 0, ["seed=2", "model=lstm"], resume=True) == "1"
    assert job_folder(tmp_path, 1, ["seed=2", "model=lstm"], resume=True) == "1"


def test_where_the_cache_lies_and_the_wish_to_resume_are_not_of_the_job(tmp_path: Path):
    record(tmp_path / "3", "seed=1", "+data.cache_dir=there")
    given = ["data.cache_dir=elsewhere", "++sweep_resume=true", "seed=1"]
    assert job_folder(tmp_path, 0, given, resume=True) == "3"
    assert own_overrides(given) == ["seed=1"]


def test_jobs_on_two_corpora_are_two(tmp_path: Path):
    record(tmp_path / "0", "data=text", "data.path=one")
    assert job_folder(tmp_path, 1, ["data=text", "data.path=two"], resume=True) == "1"
    assert job_folder(tmp_path, 0, ["data=text", "data.path=two"], resume=True) != "0"


def test_a_new_job_takes_its_number_or_a_folder_of_its_own(tmp_path: Path):
    record(tmp_path / "0", "seed=1")
    assert job_folder(tmp_path, 1, ["seed=2"], resume=True) == "1"
    (tmp_path / "1").mkdir()  # as a job leaves it that was killed while it began
    assert job_folder(tmp_path, 1, ["seed=2"], resume=True) == "1"
    (tmp_path / "1/config.yaml").touch()  # a run that no sweep began, as it has no record
    assert job_folder(tmp_path, 1, ["seed=2"], resume=True).startswith("1_")
    names = {job_folder(tmp_path, 0, [f"seed={seed}"], resume=True) for seed in (2, 3)}
    assert len(names) == 2
    assert all(name.startswith("0_") for name in names)
    name = job_folder(tmp_path, 0, ["seed=2"], resume=True)
    record(tmp_path / name, "seed=2")
    assert job_folder(tmp_path, 0, ["seed=2"], resume=True) == name
    assert job_folder(tmp_path, 5, ["seed=2"], resume=True) == name


def test_a_folder_keeps_its_job(tmp_path: Path):
    record_job(tmp_path, ["seed=1", "model=lstm"])
    before = (tmp_path / "job.json").read_bytes()
    assert json.loads(before) == {"overrides": ["model=lstm", "seed=1"]}
    record_job(tmp_path, ["model=lstm", "seed=1", "sweep_resume=true"])
    assert (tmp_path / "job.json").read_bytes() == before
    with pytest.raises(UserError, match=r"another job, with seed=1\. .*sweep_resume=true"):
        record_job(tmp_path, ["model=lstm", "seed=2"])
    with pytest.raises(UserError, match="fewer overrides"):
        record_job(tmp_path, ["model=lstm", "seed=1", "loss.ar_alpha=1"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"overrides": 3}', '{"overrides": null}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str):
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(UserError, match=r"job\.json cannot be read"):
        recorded_job(tmp_path)


def test_a_damaged_record_ends_its_own_job_alone(tmp_path: Path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0/job.json").write_text("")
    record(tmp_path / "1", "seed=2")
    assert job_folder(tmp_path, 0, ["seed=2"], resume=True) == "1"
    assert job_folder(tmp_path, 0, ["seed=1"], resume=True) == "0"
    with pytest.raises(UserError, match=r"0/job\.json cannot be read"):
        record_job(tmp_path / "0", ["seed=1"])

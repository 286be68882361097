from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lmbench.command.resolvers import as_typed, register_resolvers
from lmbench.run.sweep import record_job

register_resolvers()


def folder_of(resume: Any) -> str:
    """Where Hydra writes, as conf/train.yaml has it."""
    directory = '${lmbench.run_dir:${oc.select:resume,""},new}'
    return OmegaConf.create({"resume": resume, "directory": directory}).directory


def test_a_resumed_run_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert [folder_of(resume) for resume in ("run", 0, 1)] == ["run", "0", "1"]  # as Hydra reads it
    no_run = ("???", "", None, "no run", 2, "x" * 300)
    assert [folder_of(resume) for resume in no_run] == ["new"] * len(no_run)


def test_overrides_refer_to_nothing_in_the_composed_config():
    config = OmegaConf.create({"seed": 1, "overrides": ["data.seed=${seed}", "seed=2"]})
    assert list(config.overrides) == ["data.seed=1", "seed=2"]
    assert as_typed(config.overrides) == ["data.seed=${seed}", "seed=2"]


@pytest.mark.parametrize("overrides", [["seed=2"], ["data.seed=${resume}"]])
def test_a_job_of_a_resumed_sweep_has_the_folder_that_it_had(tmp_path: Path, overrides: list[str]):
    (tmp_path / "3").mkdir()
    record_job(tmp_path / "3", overrides)
    folder = "${lmbench.job_folder:${sweep_dir},0,${overrides},${resume}}"

    def folder_of_job(resume: bool) -> str:
        values = {"sweep_dir": str(tmp_path), "overrides": overrides, "resume": resume}
        return OmegaConf.create({**values, "folder": folder}).folder

    assert folder_of_job(resume=True) == "3"
    assert folder_of_job(resume=False) == "0"

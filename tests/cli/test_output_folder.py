"""What Hydra may find where its folder is to be."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from omegaconf import DictConfig, OmegaConf

from lmbench.cli.output_folder import OutputFolder, register, unresolved

register()


def config_of(folder: Path) -> DictConfig:
    return OmegaConf.create({"hydra": {kind: {"dir": str(folder)} for kind in ("run", "sweep")}})


@pytest.fixture(params=["run", "multirun"])
def look(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    start = getattr(OutputFolder(), f"on_{request.param}_start")
    return lambda folder: start(config=config_of(folder), config_name="train")


def test_a_folder_is_made_once(tmp_path: Path, look: Callable[[Path], None]):
    for _ in range(2):
        look(tmp_path / "new/folder")
    assert not list((tmp_path / "new/folder").iterdir())


def test_a_folder_that_only_hydra_can_resolve_is_left_to_it(look: Callable[[Path], None]):
    look(Path("outputs/${hydra:runtime.choices.model}"))


@pytest.mark.parametrize(
    ("name", "problem"), [("file/below", "Not a directory"), ("full", "No space left")]
)
def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable, name: str, problem: str
):
    (tmp_path / "file").write_text("of the user's")
    monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=OSError(28, "No space left")))
    with pytest.raises(SystemExit) as ended:
        look(tmp_path / name)
    message = str(ended.value.code)
    assert f"{tmp_path / name} cannot be written to: {problem}" in message
    assert (tmp_path / "file").read_text() == "of the user's"


@pytest.mark.parametrize("name", ["train.log", "a/b/metrics.csv"])
@pytest.mark.parametrize("target", ["bashrc", "not there"])
def test_a_link_that_leads_out_is_refused(
    tmp_path: Path, look: Callable[[Path], None], name: str, target: str
):
    (tmp_path / "bashrc").touch()
    link = tmp_path / "folder" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / target)
    with pytest.raises(SystemExit) as ended:
        look(tmp_path / "folder")
    assert str(link) in str(ended.value.code)


def test_another_folder_is_offered_unless_a_run_is_resumed(tmp_path: Path):
    (tmp_path / "link").symlink_to("/")
    for resume, is_offered in ((None, True), (str(tmp_path), False)):
        config = OmegaConf.merge(config_of(tmp_path), {"resume": resume})
        with pytest.raises(SystemExit) as ended:
            OutputFolder().on_run_start(config=config, config_name="train")
        assert ("For another folder: hydra.run.dir=DIR" in str(ended.value.code)) == is_offered


def test_what_hydra_noted_of_another_run_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    for name in ranks:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config.yaml").touch()
    start = OutputFolder().on_run_start
    with pytest.raises(SystemExit) as ended:
        start(config=config_of(tmp_path), config_name="train")
    assert f"lmbench-train resume={tmp_path}. For another" in str(ended.value.code)
    for resume in (str(tmp_path), f"{tmp_path}/"):  # as a shell completes it
        start(config=OmegaConf.merge(config_of(tmp_path), {"resume": resume}))
    OutputFolder().on_multirun_start(config=config_of(tmp_path), config_name="train")
    for name in ranks:  # a process that is not the run's first one
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            start(config=config_of(tmp_path))
    other = OmegaConf.merge(config_of(tmp_path), {"resume": str(tmp_path / "other")})
    with pytest.raises(SystemExit):
        start(config=other)


def test_a_link_that_stays_inside_is_as_good_as_a_file(tmp_path: Path, look: Callable):
    (tmp_path / "folder/0").mkdir(parents=True)
    (tmp_path / "folder/best").symlink_to("0")
    (tmp_path / "link").symlink_to("folder")
    for name in ("folder", "link"):
        look(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["hydra.run.dir={folder}"],
        ["-m", "seed=1,2", "hydra.sweep.dir={folder}"],
        ["resume={folder}"],
    ],
    ids=["run", "sweep", "resume"],
)
def test_hydra_writes_nothing_through_a_link(tmp_path: Path, arguments: list[str]):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    outside.mkdir()
    folder.mkdir()
    (folder / "config.yaml").touch()
    for name in ("train.log", "multirun.yaml"):
        (folder / name).symlink_to(outside / name)
    command = [sys.executable, "-m", "lmbench.cli.train"]
    command += [argument.format(folder=folder) for argument in arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path
    )
    assert result.returncode == 1
    assert "is a link that leads out of" in result.stderr
    assert list(outside.iterdir()) == []


def folder_of(resume: Any) -> str:
    """Where Hydra writes, as set in conf/train.yaml."""
    directory = "${lmbench.run_dir:${resume},new}"
    return OmegaConf.create({"resume": resume, "directory": directory}).directory


def test_a_resumed_run_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert [folder_of(resume) for resume in ("run", 0, 1)] == ["run", "0", "1"]  # as Hydra reads it
    others = ("", None, "no run", 2, "x" * 300)
    assert [folder_of(resume) for resume in others] == ["new"] * len(others)


def test_overrides_are_not_resolved_against_the_composed_config():
    config = OmegaConf.create({"seed": 1, "overrides": ["data.seed=${seed}", "seed=2"]})
    assert list(config.overrides) == ["data.seed=1", "seed=2"]
    assert unresolved(config.overrides) == ["data.seed=${seed}", "seed=2"]


def test_a_jobs_folder_does_not_depend_on_the_order_of_its_overrides():
    def folder_of_job(overrides: list[str]) -> str:
        values = {"seed": 7, "overrides": overrides, "folder": "${lmbench.job_folder:${overrides}}"}
        return OmegaConf.create(values).folder

    assert folder_of_job(["seed=1", "model=lstm"]) == "model-lstm+seed-1"
    assert folder_of_job(["model=lstm", "seed=1", "sweep_resume=true"]) == "model-lstm+seed-1"
    assert folder_of_job(["data.seed=${seed}"]) != folder_of_job(["data.seed=7"])

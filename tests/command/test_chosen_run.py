import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lmbench.command.chosen_run import chosen_job, chosen_run
from lmbench.config import conf_dir, write_run_config
from lmbench.errors import UserError
from lmbench.run.config import read_run_config

SWEEP = ["hydra.sweep.dir=DIR"]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("train", list(overrides))


def begun(run_dir: Path, *overrides: str) -> DictConfig:
    """A run of these overrides, as a training leaves it that was stopped before its first step."""
    run_dir.mkdir()
    config = composed("resume=null", *overrides)
    write_run_config(config, run_dir)
    return config


def test_a_new_run_has_the_config_of_the_command(tmp_path: Path):
    config = composed("model=lstm")
    run = chosen_run(config, tmp_path, ["model=lstm"])
    assert (run.config, run.resumed_with, run.perplexity) == (config, None, None)


def test_a_run_goes_on_with_its_own_config(tmp_path: Path):
    begun(tmp_path / "run", "model=awd_lstm", "seed=7")
    overrides = [f"resume={tmp_path / 'run'}", "trainer.max_epochs=9"]
    run = chosen_run(composed(*overrides), tmp_path / "run", overrides)
    assert (run.config.model.name, run.config.seed) == ("awd_lstm", 7)
    assert run.config.trainer.max_epochs == 9
    assert run.resumed_with == ["trainer.max_epochs=9"]
    with pytest.raises(UserError, match=r"leave out hydra\.run\.dir"):
        chosen_run(composed(*overrides), tmp_path, overrides)


def test_a_run_that_is_named_by_a_number_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the jobs of a sweep are; 0 is no missing name."""
    monkeypatch.chdir(tmp_path)
    for name in ("0", "1"):
        begun(tmp_path / name, f"seed=7{name}")
        run = chosen_run(composed(f"resume={name}"), tmp_path / name, [f"resume={name}"])
        assert (run.config.seed, run.resumed_with) == (int(f"7{name}"), [])
    with pytest.raises(UserError, match=r"^2 is not the directory of a run"):
        chosen_run(composed("resume=2"), tmp_path, ["resume=2"])


def test_a_job_is_new_then_goes_on_then_is_done(tmp_path: Path):
    job, overrides = tmp_path / "0", ["model=lstm", "seed=5", "data.path=here"]
    job.mkdir()
    run = chosen_job(composed(*overrides), job, overrides, [])
    assert (run.config.seed, run.resumed_with, run.perplexity) == (5, None, None)
    write_run_config(run.config, job)

    again = [*overrides, "sweep_resume=true", "data.cache_dir=elsewhere"]
    run = chosen_job(composed(*again), job, again, SWEEP)
    assert (run.config.seed, run.resumed_with, run.perplexity) == (5, [], None)
    assert (run.config.data.path, run.config.data.cache_dir) == ("here", "elsewhere")
    assert run.config.model == read_run_config(job).model

    (job / "results.json").write_text(json.dumps({"val": {"ppl": 12.5}}))
    assert chosen_job(composed(*again), job, again, SWEEP).perplexity == 12.5
    with pytest.raises(UserError, match=r"holds a run already.*sweep_resume=true"):
        chosen_job(composed(*overrides), job, overrides, [])
    (job / "results.json").write_text(json.dumps({"val": None}))
    with pytest.raises(UserError, match=r"results\.json"):
        chosen_job(composed(*again), job, again, SWEEP)


def test_a_job_has_one_device_unless_slurm_starts_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for number in ("auto", "-1", "2"):  # auto and -1 are as many as there are
        overrides = [f"trainer.devices={number}"]
        message = rf"trainer\.devices={number}: jobs of a sweep have one device"
        with pytest.raises(UserError, match=message):
            chosen_job(composed(*overrides), tmp_path, overrides, [])
    assert not list(tmp_path.iterdir())
    for number, one in enumerate(("1", "[3]")):
        job = tmp_path / str(number)
        job.mkdir()
        named = [f"trainer.devices={one}"]
        assert chosen_job(composed(*named), job, named, []).resumed_with is None
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # a shell within an allocation
    with pytest.raises(UserError, match="jobs of a sweep have one device"):
        chosen_job(composed(*overrides), tmp_path, overrides, [])
    monkeypatch.setenv("SLURM_JOB_NAME", "sweep")
    (tmp_path / "slurm").mkdir()
    run = chosen_job(composed(*overrides), tmp_path / "slurm", overrides, [])
    assert run.config.trainer.devices == 2


def test_a_later_process_of_a_job_may_find_what_the_first_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    overrides = ["model=lstm", "trainer.devices=2"]
    config = composed(*overrides)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "sweep")
    monkeypatch.setenv("SLURM_PROCID", "0")
    write_run_config(chosen_job(config, tmp_path, overrides, []).config, tmp_path)
    with pytest.raises(UserError, match="holds a run already"):
        chosen_job(config, tmp_path, overrides, [])
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setenv("SLURM_PROCID", "1")
    run = chosen_job(config, tmp_path, overrides, [])
    assert (run.config, run.resumed_with, run.perplexity) == (config, None, None)
    assert {path.name for path in tmp_path.iterdir()} == before
    (tmp_path / "checkpoints").mkdir()  # there once all processes train
    with pytest.raises(UserError, match="holds a run already"):
        chosen_job(config, tmp_path, overrides, [])


@pytest.mark.parametrize(
    ("choose", "overrides", "message"),
    [
        (chosen_run, ["sweep_resume=true"], r"sweep_resume goes on with a sweep \(-m\)"),
        (chosen_run, ["sweep_resume=perhaps"], "sweep_resume must be true or false, not perhaps"),
        (chosen_run, ["resume="], "Set resume=RUN_DIR"),
        (chosen_run, ["resume=null"], "Set resume=RUN_DIR"),
        (chosen_job, ["sweep_resume=1"], "sweep_resume must be true or false, not 1"),
        (chosen_job, ["sweep_resume=true"], r"needs hydra\.sweep\.dir=DIR"),
        (chosen_job, ["resume=run"], "leave out -m"),
    ],
)
def test_a_command_about_no_run(tmp_path: Path, choose: Any, overrides: list[str], message: str):
    more = [[]] if choose is chosen_job else []
    with pytest.raises(UserError, match=message):
        choose(composed(*overrides), tmp_path, overrides, *more)
    assert not list(tmp_path.iterdir())


def test_a_sweep_with_folders_of_its_own_cannot_go_on(tmp_path: Path):
    config = composed("sweep_resume=true")
    of_hydra = ["hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.override_dirname}"]
    with pytest.raises(UserError, match=r"Leave out hydra\.sweep\.subdir"):
        chosen_job(config, tmp_path, [], of_hydra)

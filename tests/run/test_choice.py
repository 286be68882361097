"""Which run a command line is about, and which folder a job of a sweep has."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from small import composed, config_of

from lmbench.errors import UserError
from lmbench.run.choice import LONGEST_NAME, ChosenRun, choose_job, choose_run, job_folder
from lmbench.run.config import read_run_config, write_run_config

SWEEP = ["hydra.sweep.dir=DIR"]


def job(folder: Path, *overrides: str, hydra: list[str] | None = None) -> ChosenRun:
    folder.mkdir(exist_ok=True)
    return choose_job(composed(*overrides), folder, list(overrides), hydra or [])


def test_a_new_run_has_the_config_of_the_command(tmp_path: Path):
    run = choose_run(composed("model=lstm"), tmp_path, ["model=lstm"])
    assert run == ChosenRun(config_of("model=lstm"), ["model=lstm"])
    assert not run.resumes


def test_a_run_continues_with_its_own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "0"):  # a number is a name too
        (tmp_path / name).mkdir()
        write_run_config(config_of("model=awd_lstm", "seed=7"), tmp_path / name)
        overrides = [f"resume={name}", "trainer.max_epochs=9"]
        run = choose_run(composed(*overrides), tmp_path / name, overrides)
        assert (run.config["model"]["name"], run.config["seed"]) == ("awd_lstm", 7)
        assert run.config["trainer"]["max_epochs"] == 9
        assert (run.resumes, run.changed) == (True, run.config)
        with pytest.raises(UserError, match=r"leave out hydra\.run\.dir"):
            choose_run(composed(*overrides), tmp_path, overrides)


def test_a_job_is_new_then_continues_then_is_done(tmp_path: Path):
    folder, overrides = tmp_path / "job", ["model=lstm", "seed=5", "data.path=here"]
    run = job(folder, *overrides)
    assert (run.config["seed"], run.resumes, run.perplexity) == (5, False, None)
    write_run_config(run.config, folder)

    again = [*overrides, "sweep_resume=true", "data.cache_dir=elsewhere"]
    run = job(folder, *again, hydra=SWEEP)
    assert (run.config["seed"], run.resumes, run.changed, run.perplexity) == (5, True, None, None)
    assert run.config["data"]["cache_dir"] == "elsewhere"
    assert run.config["model"] == read_run_config(folder)["model"]

    (folder / "results.json").write_text(json.dumps({"val": {"ppl": 12.5}}))
    assert job(folder, *again, hydra=SWEEP).perplexity == 12.5
    with pytest.raises(UserError, match=r"holds a run already.*sweep_resume=true"):
        job(folder, *overrides, hydra=SWEEP)
    assert job(folder, *overrides).perplexity == 12.5  # as when a search tries a value twice
    (folder / "results.json").write_text(json.dumps({"val": None}))
    assert job(folder, *again, hydra=SWEEP).resumes  # it is tested again


def test_a_job_has_one_device_unless_slurm_starts_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for number in ("auto", "-1", "2"):  # auto and -1 are as many as there are
        with pytest.raises(UserError, match=rf"trainer\.devices={number}: jobs of a sweep"):
            job(tmp_path, f"trainer.devices={number}")
    for one in ("1", "[3]"):
        assert not job(tmp_path / one, f"trainer.devices={one}").resumes
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # a shell within an allocation
    with pytest.raises(UserError, match="jobs of a sweep have one device"):
        job(tmp_path, "trainer.devices=2")
    monkeypatch.setenv("SLURM_JOB_NAME", "sweep")
    assert job(tmp_path / "slurm", "trainer.devices=2").config["trainer"]["devices"] == 2


def test_a_later_process_of_a_job_may_find_what_the_first_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    overrides = ["model=lstm", "trainer.devices=2"]
    for name, value in {"NTASKS": "2", "JOB_NAME": "sweep", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    first = job(tmp_path, *overrides)
    write_run_config(first.config, tmp_path)
    with pytest.raises(UserError, match="holds a run already"):
        job(tmp_path, *overrides, hydra=SWEEP)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert job(tmp_path, *overrides, hydra=SWEEP) == first
    (tmp_path / "checkpoints").mkdir()  # there once all processes train
    with pytest.raises(UserError, match="holds a run already"):
        job(tmp_path, *overrides, hydra=SWEEP)


@pytest.mark.parametrize(
    ("choose", "overrides", "message"),
    [
        (choose_run, ["sweep_resume=true"], r"sweep_resume continues a sweep \(-m\)"),
        (choose_run, ["resume="], "not the directory of a run"),
        (choose_run, ["resume=nowhere"], "nowhere is not the directory of a run"),
        (choose_job, ["sweep_resume=true"], r"needs hydra\.sweep\.dir=DIR"),
        (choose_job, ["resume=run"], "leave out -m"),
    ],
)
def test_a_command_without_a_run(tmp_path: Path, choose: Any, overrides: list[str], message: str):
    more = [[]] if choose is choose_job else []
    with pytest.raises(UserError, match=message):
        choose(composed(*overrides), tmp_path, overrides, *more)
    assert not list(tmp_path.iterdir())


def test_a_sweep_with_custom_folders_cannot_be_continued(tmp_path: Path):
    of_hydra = [*SWEEP, "hydra.sweep.subdir=${hydra.job.num}"]
    with pytest.raises(UserError, match=r"Leave out hydra\.sweep\.subdir"):
        job(tmp_path, "sweep_resume=true", hydra=of_hydra)


def test_a_jobs_folder_names_its_overrides():
    assert job_folder(["model=awd_lstm", "seed=1"]) == "model-awd_lstm+seed-1"
    same = ["seed=1", "+model=awd_lstm", "sweep_resume=true", "++data.cache_dir=x"]
    assert job_folder(same) == "model-awd_lstm+seed-1"
    assert job_folder(["optimizer.lr=1e-3", "loss.ar_alpha=-1"]) == (
        "loss.ar_alpha--1+optimizer.lr-1e-3"
    )


def test_a_long_name_begins_with_the_groups_and_the_short_overrides():
    long, experiment = "data.path=" + "x" * LONGEST_NAME, "experiment=" + "y" * 20
    assert job_folder([long, "model.core.size=5", experiment, "seed=1"]).startswith(
        f"seed-1+experiment-{'y' * 20}+model.core.size-5+data.path-xx"
    )


def test_no_two_jobs_share_a_folder_and_each_can_be_named_to_hydra():
    jobs = [
        [],
        ["a=1", "b=2"],
        ["a=1+b-2"],
        ["a=1+b=2"],
        ["a=x/y"],
        ["a=x-y"],
        ["a='x y'"],
        ["a=[1,2]"],
        ["a=[1,3]"],
        ["~a"],
        ["a=ü"],
        *(["a=" + "x" * length] for length in (LONGEST_NAME, LONGEST_NAME + 1, 300)),
    ]
    names = [job_folder(overrides) for overrides in jobs]
    assert len({*names}) == len(jobs)
    for name in names:
        assert 0 < len(name) <= LONGEST_NAME + 9
        assert OverridesParser.create().parse_override(f"resume={name}").value() == name

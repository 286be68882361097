"""What a schedule over the run needs from the trainer, and settings that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small import config_of, small_config

from lmbench.callbacks.time_limit import TimeLimit
from lmbench.errors import UserError
from lmbench.instantiate import training as build
from lmbench.instantiate.arguments import factory
from lmbench.instantiate.model import build_model

ENDLESS = {"trainer__max_epochs": -1, "trainer__max_steps": -1, "trainer__max_time": None}


def module_with(schedule: str, **limits: Any) -> object:
    config = small_config(
        "optimizer=adam",
        f"scheduler={schedule}",
        **ENDLESS | {f"trainer__{name}": value for name, value in limits.items()},
    )
    return build.module(config, build_model(config["model"], 41))


@pytest.mark.parametrize(
    ("limits", "part"),
    [
        ({}, r"Set trainer\.max_epochs, max_steps or max_time"),
        ({"max_epochs": None}, r"Set trainer\.max_epochs, max_steps or max_time"),
        ({"max_time": "00:01:00:00"}, "phases_awd_lstm"),
        ({"max_time": "00:01:00:00", "max_epochs": 4}, "phases_awd_lstm"),
    ],
)
def test_a_schedule_over_the_run_needs_its_end(limits: dict[str, Any], part: str):
    with pytest.raises(UserError, match=part):
        module_with("one_cycle", **limits)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"trainer__accumulate_grad_batches": 2}, r"^trainer\.accumulate_grad_batches=2 does not"),
        ({"trainer__val_check_interval": 0.5}, r"^trainer\.val_check_interval=0\.5 does not work"),
        ({"trainer__val_check_interval": 1}, r"^trainer\.val_check_interval=1 does not work"),
        ({"trainer__check_val_every_n_epoch": None}, r"^trainer\.check_val_every_n_epoch=None: "),
        ({"trainer__max_epochs": 10**6}, r"^trainer\.max_epochs=1000000 is more .*set it to -1"),
        ({"trainer__precision": "16-true"}, r"^trainer\.precision=16-true: .*bf16-true"),
        ({"trainer__limit_val_batches": 0}, r"^trainer\.limit_val_batches=0: "),
        ({"callbacks__checkpoints": None}, r"^callbacks\.checkpoints is missing"),
    ],
)
def test_what_would_not_train_as_it_should_is_refused(
    tmp_path: Path, options: dict[str, Any], part: str
):
    with pytest.raises(UserError, match=part):
        build.trainer(small_config(**options), tmp_path)


def test_what_lightning_does_anyway_may_be_said(tmp_path: Path):
    same = {"trainer__accumulate_grad_batches": 1, "trainer__val_check_interval": 1.0}
    assert build.trainer(small_config(**same), tmp_path).accumulate_grad_batches == 1


def test_a_first_phase_of_one_step_is_refused_with_its_reason():
    make = factory(small_config("scheduler=one_cycle")["scheduler"], "scheduler")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(UserError, match=r"^scheduler: ZeroDivisionError"):
        make(optimizer, total_steps=20)
    make(optimizer, total_steps=21)


@pytest.mark.parametrize("mode", ["cache", "minimal_pairs"])
def test_an_evaluation_for_later_is_refused_with_its_command(mode: str):
    config = config_of("data=synthetic", f"evaluation={mode}")
    with pytest.raises(UserError, match=r"is not for training.*lmbench-evaluate RUN_DIR"):
        build.datamodule(config, factory(config["data"], "data")())


def test_a_limit_of_time_is_given_to_the_trainer(tmp_path: Path):
    config = small_config(**ENDLESS | {"trainer__max_time": "00:01:00:00"}, scheduler=None)
    trainer = build.trainer(config, tmp_path)
    assert sum(isinstance(one, TimeLimit) for one in trainer.callbacks) == 1


@pytest.mark.parametrize("limits", [{"max_epochs": 1}, {"max_steps": 5}, {"max_time": "0"}])
def test_phases_accept_any_end(limits: dict[str, Any]):
    module_with("phases_awd_lstm", **limits)


def test_other_nodes_are_refused_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("SLURM_NTASKS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"^trainer\.num_nodes=2: "):
        build.trainer(small_config(trainer__num_nodes=2), tmp_path)

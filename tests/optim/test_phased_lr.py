import io
import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from lmbench.optim import PhasedLR
from lmbench.run.targets import conf_dir

PHASE = {"share": 1, "lr_factor": [1.0, 0.5]}


def published_phases() -> list[dict[str, Any]]:
    node = OmegaConf.load(conf_dir() / "scheduler/phases_awd_lstm.yaml")
    return OmegaConf.to_container(node)["phases"]


def adam(lr: float = 0.005, beta1: float = 0.9) -> Adam:
    return Adam([nn.Parameter(torch.zeros(2))], lr, betas=(beta1, 0.99))


def walk(optimizer: Optimizer, scheduler: PhasedLR, num_steps: int) -> list[dict[str, Any]]:
    """The options of the first group that each step is taken with."""
    options = []
    for _ in range(num_steps):
        options.append({**optimizer.param_groups[0]})
        optimizer.step()
        scheduler.step()
    return options


def published_lr_and_beta1(epoch: float) -> tuple[float, float]:
    """Rate and beta1 of the 90 epochs of sgugger/Adam-experiments at 5e-3."""
    if epoch <= 7.5:
        return 5e-4 + 4.5e-3 * epoch / 7.5, 0.8 - 0.1 * epoch / 7.5
    if epoch <= 45:
        return 5e-3, 0.7
    if epoch <= 82.5:
        return 5e-3 - 4.5e-3 * (epoch - 45) / 37.5, 0.7 + 0.1 * (epoch - 45) / 37.5
    if epoch <= 90:
        return 5e-4 * math.cos(math.pi / 2 * (epoch - 82.5) / 7.5) ** 2, 0.8
    return 0.0, 0.8


@pytest.mark.parametrize("num_steps", [7, 240, 1001])
def test_a_run_of_any_length_goes_through_the_published_phases(num_steps: int) -> None:
    optimizer = adam()
    scheduler = PhasedLR(optimizer, num_steps, published_phases())
    options = walk(optimizer, scheduler, num_steps + 3)
    expected = [published_lr_and_beta1(90 * step / num_steps) for step in range(num_steps + 3)]
    # 1e-16: the cosine's end, which is not quite zero in float64.
    assert [o["lr"] for o in options] == pytest.approx([lr for lr, _ in expected], 1e-12, 1e-16)
    assert [o["betas"][0] for o in options] == pytest.approx([b for _, b in expected], 1e-12)
    assert {o["betas"][1] for o in options} == {0.99}


def test_saved_in_the_middle_it_continues_bit_for_bit() -> None:
    optimizer = adam()
    scheduler = PhasedLR(optimizer, 240, published_phases())
    walk(optimizer, scheduler, 150)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    expected = walk(optimizer, scheduler, 95)

    file.seek(0)
    optimizer_state, scheduler_state = torch.load(file, weights_only=True)
    optimizer = adam(lr=99.0)
    scheduler = PhasedLR(optimizer, 240, published_phases())
    optimizer.load_state_dict(optimizer_state)
    scheduler.load_state_dict(scheduler_state)
    for ours, theirs in zip(walk(optimizer, scheduler, 95), expected, strict=True):
        assert (ours["lr"], tuple(ours["betas"])) == (theirs["lr"], tuple(theirs["betas"]))


def test_a_phase_without_beta1_leaves_it_where_the_previous_phase_left_it() -> None:
    optimizer = adam(beta1=0.6)
    phases = [PHASE, {**PHASE, "beta1": [0.75, 0.5]}, PHASE]
    scheduler = PhasedLR(optimizer, 6, phases)
    options = walk(optimizer, scheduler, 6)
    assert [o["betas"] for o in options] == [(b, 0.99) for b in (0.6, 0.6, 0.75, 0.625, 0.5, 0.5)]
    optimizer = adam(beta1=0.6)
    scheduler = PhasedLR(optimizer, None, phases)
    scheduler.progress = 0.9  # past the phase that has one, in a single step
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.99)


def test_dropouts_follow_the_phases_and_stay_where_a_phase_has_none() -> None:
    optimizer = adam()
    ranges = [None, (0.2, 0.4), None, (0.4, 0.8), None]
    phases = [PHASE | ({} if r is None else {"dropout_factor": r}) for r in ranges]
    scheduler = PhasedLR(optimizer, 20, phases)
    found = []
    for _ in range(22):
        found.append(scheduler.dropout_factor)
        optimizer.step()
        scheduler.step()
    expected = [1] * 4 + [0.2, 0.25, 0.3, 0.35] + [0.4] * 5 + [0.5, 0.6, 0.7] + [0.8] * 6
    assert found == pytest.approx(expected, rel=1e-12)
    falling = PhasedLR(adam(), None, [{**PHASE, "dropout_factor": [1.0, 0.5]}])
    assert falling.dropout_factor == 1.0
    falling.progress = 0.25
    assert falling.dropout_factor == 0.875
    assert PhasedLR(adam(), 20, [PHASE]).dropout_factor == 1.0


@pytest.mark.parametrize("shares", [(0.2, 0.5, 0.3), (57, 42, 1)])
def test_rounding_at_a_border_gives_no_negative_factor(shares: tuple[float, ...]) -> None:
    """Dropout does not take a p of -1e-17."""
    phases = [{"share": n, "lr_factor": [0, 1], "dropout_factor": [0, 1]} for n in shares]
    optimizer = adam()
    scheduler = PhasedLR(optimizer, 100, phases)
    for _ in range(100):
        assert scheduler.dropout_factor >= 0
        assert optimizer.param_groups[0]["lr"] >= 0
        optimizer.step()
        scheduler.step()


def test_each_group_of_any_optimizer_keeps_its_own_base_rate() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (30.0, 8.0)]
    optimizer = SGD(groups, momentum=0.5)
    scheduler = PhasedLR(optimizer, 2, [PHASE])
    for factor in (1.0, 0.75, 0.5):
        assert [group["lr"] for group in optimizer.param_groups] == [30 * factor, 8 * factor]
        assert [group["momentum"] for group in optimizer.param_groups] == [0.5, 0.5]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("share", value) for value in (0, math.nan, math.inf, "10", True)),
        *(("lr_factor", value) for value in ([1.0], [1.0, None], [1.0, True], "10", [-0.1, 1.0])),
        ("lr_factor", [1.0, math.inf]),
        *(("beta1", value) for value in ([0.9, 0.8, 0.7], [1.0, 0.9], [0.9, -0.1])),
        *(("dropout_factor", value) for value in (0.5, [0.5, -0.1], [1.0, math.nan], [0.5, 1.01])),
        *(("anneal", value) for value in ("step", ["linear"])),
        ("beta2", [0.9, 0.99]),  # is not a key
    ],
)
def test_a_wrong_phase_is_named_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^phases\[1\].*{key}"):
        PhasedLR(adam(), 10, [PHASE, PHASE | {key: value}])


@pytest.mark.parametrize("key", ["share", "lr_factor"])
def test_a_phase_that_lacks_a_key_is_named(key: str) -> None:
    lacking = {name: value for name, value in PHASE.items() if name != key}
    with pytest.raises(ValueError, match=rf"^phases\[0\].*{key}"):
        PhasedLR(adam(), 10, [lacking, PHASE])


def test_other_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="total_steps"):
        PhasedLR(adam(), 0, [PHASE])
    PhasedLR(adam(), 1, [PHASE])
    with pytest.raises(ValueError, match="phases"):
        PhasedLR(adam(), 10, [])
    without_betas = SGD([nn.Parameter(torch.zeros(1))], 0.1)
    with pytest.raises(ValueError, match=r"^phases\[1\]\.beta1 .*SGD"):
        PhasedLR(without_betas, 10, [PHASE, {**PHASE, "beta1": [0.8, 0.7]}])


def test_the_share_of_the_time_counts_if_it_is_larger() -> None:
    optimizer = adam(lr=1.0)
    scheduler = PhasedLR(optimizer, 10, [{"share": 1, "lr_factor": [1.0, 0.0]}])
    lrs = []
    for progress in (0.0, 0.05, 0.5, 0.5, 0.5, 0.5, 0.9, 1.5):
        scheduler.progress = progress
        optimizer.step()
        scheduler.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    assert lrs == pytest.approx([0.9, 0.8, 0.5, 0.5, 0.5, 0.4, 0.1, 0.0])

"""What a schedule over the run needs of the trainer; test_build.py has the refused values."""

from typing import Any

import pytest

from lmbench.errors import UserError
from lmbench.from_config.trainer import require_end


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_epochs": -1, "max_time": None}, r"Set trainer\.max_epochs, max_steps or max_time"),
        ({"max_epochs": None}, r"Set trainer\.max_epochs, max_steps or max_time"),
        ({"max_time": "00:01:00:00"}, r"OneCycleLR counts steps.*phases_awd_lstm"),
        ({"max_time": "00:01:00:00", "max_epochs": 4}, r"OneCycleLR counts steps"),
    ],
)
def test_a_schedule_over_the_run_needs_its_end(limits: dict[str, Any], message: str):
    endless = {"max_epochs": -1, "max_steps": -1}
    with pytest.raises(UserError, match=message):
        require_end(endless | limits, "torch.optim.lr_scheduler.OneCycleLR")


@pytest.mark.parametrize("limits", [{"max_epochs": 1}, {"max_steps": 5}, {"max_time": "0"}])
def test_phases_follow_any_end(limits: dict[str, Any]):
    require_end({"max_epochs": -1, "max_steps": -1} | limits, "lmbench.optim.PhasedLR")

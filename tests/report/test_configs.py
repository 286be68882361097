from collections.abc import Callable
from pathlib import Path

import pytest
from small import config_of

from lmbench.conf import flatten
from lmbench.errors import UserError
from lmbench.report.configs import read_config
from lmbench.run.config import write_run_config


def without_lists(flat: dict) -> dict:
    return {key: value for key, value in flat.items() if not isinstance(value, list)}


def test_a_config_is_read_as_omegaconf_reads_it(tmp_path: Path):
    config = config_of("experiment=quickstart_awd_lstm")
    write_run_config(config, tmp_path)
    expected = flatten(config)
    found = read_config(tmp_path)
    assert {key: value for key, value in found.items() if "[" not in key} == without_lists(expected)
    assert len(found) > 60


def test_items_of_lists_have_keys(tmp_path: Path, write_run: Callable[..., Path]):
    found = read_config(write_run(tmp_path / "run"))
    assert (found["optimizer.betas[0]"], found["optimizer.betas[1]"]) == (0.9, 0.99)
    assert found["optimizer.weight_decay"] == 1.2e-6


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [1", "a: &a [x]\nb: *a\n"])
def test_damaged_configs_are_named(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is damaged: "):
        read_config(tmp_path)


def test_a_config_that_is_missing(tmp_path: Path):
    with pytest.raises(UserError, match=r"Has no config\.yaml: it failed before it began"):
        read_config(tmp_path)

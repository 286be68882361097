from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from small import config_of

from lmbench.errors import UserError
from lmbench.run.config import write_run_config
from lmbench.run.directory import clear_run, quoted


def test_a_run_that_starts_over_is_recorded_anew(tmp_path: Path):
    for name in ("wandb/run-1", "lightning_logs/version_0", "lstm_seed_1", "checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    kept = {"config.yaml", "mine.txt", "notes_seed_1.txt"}
    for name in ("metrics.csv", "mlflow_run_id", *kept):
        (tmp_path / name).touch()
    clear_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("name", ["checkpoints", "wandb", "metrics.csv", "lstm_seed_2"])
def test_a_new_run_does_not_take_a_folder_with_what_could_be_its_own(tmp_path: Path, name: str):
    """It would be removed with the run if that is refused later."""
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=name):
        write_run_config(config_of(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name}


@pytest.mark.parametrize(
    "name",
    [
        "2026_12_01",
        "1e5",
        "-3",
        ".5",
        "null",
        "True",
        "nan",
        "a b",
        "it's",
        "a=b",
        "[1]",
        "1/2",
        ".",
    ],
)
def test_a_name_reaches_a_config_as_it_is(name: str):
    override = OverridesParser.create().parse_override(f"resume={quoted(name)}")
    value = override.value()
    assert isinstance(value, (str, QuotedString))
    assert (value.text if isinstance(value, QuotedString) else value) == name
    assert ("'" in quoted(name)) == (name not in ("1/2", "."))

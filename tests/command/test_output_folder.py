"""What Hydra is to find in the place of its folder."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from lmbench.command.output_folder import OutputFolder


def config_of(folder: Path) -> DictConfig:
    return OmegaConf.create({"hydra": {kind: {"dir": str(folder)} for kind in ("run", "sweep")}})


@pytest.fixture(params=["run", "multirun"])
def look(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    start = getattr(OutputFolder(), f"on_{request.param}_start")
    return lambda folder: start(config=config_of(folder), config_name="train")


def test_a_folder_is_made_once(tmp_path: Path, look: Callable[[Path], None]):
    for _ in range(2):
        look(tmp_path / "new/folder")
    assert (tmp_path / "new/folder").is_dir()


def test_a_folder_that_only_hydra_can_tell_is_left_to_it(look: Callable[[Path], None]):
    look(Path("outputs/${hydra:runtime.choices.model}"))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("file", "File exists"),
        ("file/below", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("of others", "it may not be written"),
    ],
)
def test_what_is_no_folder_to_write_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable, name: str, problem: str
):
    (tmp_path / "file").write_text("of the user's")
    # Root, who may run the tests, may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("of others"))
    with pytest.raises(SystemExit) as ended:
        look(tmp_path / name)
    message = str(ended.value.code)
    assert message.startswith(f"{tmp_path / name} cannot be the folder to write into: {problem}. ")
    assert (tmp_path / "file").read_text() == "of the user's"

"""The table of results says what the folders beside it hold."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from build_results import PICTURES, PICTURES_OF_SEVERAL_SEEDS, RESULTS, draw, page
from small import composed

from lmbench.errors import UserError
from lmbench.files import read_yaml
from lmbench.report.literature import PUBLISHED
from lmbench.run.config import plain_config
from lmbench.run.targets import flatten

FIGURE = r"\d+\.\d+(?: ± \d+\.\d+)?"


def test_the_committed_page_matches_the_committed_results():
    assert (RESULTS / "README.md").read_text("utf-8") == page(RESULTS)


def test_all_pictures_are_drawn_and_shown():
    named = [*PICTURES.values(), *PICTURES_OF_SEVERAL_SEEDS.values()]
    pictures = draw(RESULTS)
    assert pictures.keys() == {name for of_corpus in named for name in of_corpus.values()}
    for name, content in pictures.items():
        assert content.startswith(b"\x89PNG")
        assert f"]({name})" in page(RESULTS)
        assert (RESULTS / name).exists()


@pytest.mark.parametrize("lost", ["results.json", "evaluation-cache-test.json", ""])
def test_results_that_cannot_be_read_are_named(tmp_path: Path, lost: str):
    shutil.copytree(RESULTS / "cpu_hour", tmp_path / "kept")
    shutil.copytree(RESULTS / "cpu_hour", tmp_path / "damaged")
    entry = "{folder: FOLDER, command: x, hardware: y}"
    text = "\n".join(f"{x}: {entry.replace('FOLDER', x)}" for x in ("kept", "damaged"))
    (tmp_path / "recipes.yaml").write_text(text)
    if lost:
        (tmp_path / "damaged" / lost).write_text("{")
    else:  # its seed is there twice
        shutil.copytree(RESULTS / "cpu_hour", tmp_path / "damaged/again")
    with pytest.raises(UserError, match="damaged"):
        page(tmp_path)


def config_of(command: str) -> dict[str, Any]:
    """The values that a command gives, except the seed and the corpus folder."""
    _, _, arguments = command.partition("lmbench-train ")
    overrides = [word for word in shlex.split(arguments) if not word.startswith(("-m", "seed="))]
    return without_the_runs_own(plain_config(composed(*overrides)))


def without_the_runs_own(config: Any) -> dict[str, Any]:
    values = flatten(config)
    own = {"name", "seed", "data.path", "data._target_"}
    if values["trainer.precision"] == "32-true":
        own.add("model.head.autocast")  # it has nothing to cast
    return {key: values[key] for key in values if key not in own}


CHANGED_SINCE = {
    "awd_lstm_6_epochs": {
        "batching.partial_shuffle",
        "batching.shuffle_articles",
        "callbacks.checkpoints.dirpath",
        "callbacks.checkpoints.monitor",
        "logger.csv.save_dir",
        "logger.tensorboard.name",
        "logger.tensorboard.save_dir",
        "logger.tensorboard.version",
        "model.core.locked_dropout",
        "model.head.autocast",
        "model.head.unigram_bias",
        "optimizer.fused",
        "trainer.check_val_every_n_epoch",
        "trainer.max_time",
    }
}
"""Options that have come or gone since a run that is kept."""


@pytest.mark.parametrize(
    "entry", read_yaml(RESULTS / "recipes.yaml").values(), ids=lambda entry: entry["folder"]
)
def test_a_command_still_gives_the_config_of_its_runs(entry: dict[str, str]):
    changed = CHANGED_SINCE.get(entry["folder"], set())
    now = config_of(entry["command"])
    now = {key: value for key, value in now.items() if key not in changed}
    configs = [*(RESULTS / entry["folder"]).glob("**/config.yaml")]
    assert configs
    for path in configs:
        then = without_the_runs_own(read_yaml(path))
        assert {key: value for key, value in then.items() if key not in changed} == now


def pairs(text: str) -> set[str]:
    """Valid / test, also in neighbouring cells of a table."""
    return {" / ".join(pair) for pair in re.findall(rf"({FIGURE}) [/|] ({FIGURE})", text)}


@pytest.mark.parametrize("name", ["README.md", "docs/training.md"])
def test_other_pages_quote_only_figures_from_the_results_or_publications(name: str):
    kinds = ("standard", "cache", "dynamic")
    known = {" / ".join(getattr(one, kind)) for one in PUBLISHED.values() for kind in kinds}
    known |= pairs(page(RESULTS)) | {"61.2 / 58.8"}  # AWD-LSTM on the Penn Treebank
    found = pairs((RESULTS.parent / name).read_text("utf-8"))
    assert found
    assert not found - known

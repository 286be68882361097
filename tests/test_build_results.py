"""The table of results says what the folders beside it hold."""

import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from build_results import RESULTS, main, page, read_rows
from small import composed

from lmbench.errors import UserError
from lmbench.report.groups import Section, group_runs
from lmbench.report.literature import PUBLISHED, Published
from lmbench.report.plots import Plot, draw_plots
from lmbench.report.runs import read_runs
from lmbench.report.tables import group_table
from lmbench.run.config import plain_config
from lmbench.run.targets import flatten

FIGURE = r"\d+\.\d+(?: ± \d+\.\d+)?"
RECIPES = """
- {folder: many, recipe: mine, command: lmbench-train many, hardware: fast, published: awd_lstm}
- {folder: one, recipe: yours, command: lmbench-train one, hardware: another}
"""


def write(
    run_dir: Path,
    valid: float,
    test: float,
    name: str = "wikitext2",
    **more: object,
) -> None:
    run_dir.mkdir(parents=True)
    results = {
        "model": "x",
        "seed": int(run_dir.name) if run_dir.name.isdecimal() else 1,
        "evaluation": {},
        "num_parameters": 1234,
        "data": {"name": name, "sha256": "0", "num_tokens": {"train": 1000}, **more},
        "val": {"nll": math.log(valid), "ppl": valid, "num_tokens": 9},
        "test": {"nll": math.log(test), "ppl": test, "num_tokens": 9},
        "train": {"epochs": 2.3, "seconds": 90.0},
    }
    (run_dir / "results.json").write_text(json.dumps(results))
    (run_dir / "config.yaml").write_text("name: x\n")


def write_evaluation(
    run_dir: Path, name: str, split: str, ppl: float, without_cache: float | None = None
) -> None:
    values = {
        "split": split,
        "corpus_sha256": "0",
        "evaluation": {"protocol": "standard"},
        "nll": math.log(ppl),
        "ppl": ppl,
        "num_tokens": 9,
    }
    if without_cache is not None:
        values["without_cache"] = {"nll": 1.0, "ppl": without_cache, "num_tokens": 9}
    (run_dir / f"evaluation-{name}-{split}.json").write_text(json.dumps(values))


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_committed_page_matches_the_committed_results():
    assert (RESULTS / "README.md").read_text("utf-8") == page(read_rows(RESULTS))


def config_of(command: str) -> dict[str, Any]:
    """The values that a row's command gives, except the seed and the corpus folder."""
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
    "row", yaml.safe_load((RESULTS / "recipes.yaml").read_text()), ids=lambda row: row["folder"]
)
def test_a_rows_command_still_gives_the_config_of_its_runs(row: dict[str, str]):
    changed = CHANGED_SINCE.get(row["folder"], set())
    now = config_of(row["command"])
    now = {key: value for key, value in now.items() if key not in changed}
    configs = [*(RESULTS / row["folder"]).glob("**/config.yaml")]
    assert configs
    for path in configs:
        then = without_the_runs_own(yaml.safe_load(path.read_text("utf-8")))
        assert {key: value for key, value in then.items() if key not in changed} == now


def pairs(text: str) -> set[str]:
    """Valid / test, also in neighbouring cells of a table."""
    return {" / ".join(pair) for pair in re.findall(rf"({FIGURE}) [/|] ({FIGURE})", text)}


@pytest.mark.parametrize("name", ["README.md", "docs/training.md"])
def test_other_pages_quote_only_figures_from_the_results_or_publications(name: str):
    kinds = ("standard", "cache", "dynamic")
    known = {" / ".join(getattr(one, kind)) for one in PUBLISHED.values() for kind in kinds}
    known |= pairs(page(read_rows(RESULTS))) | {"61.2 / 58.8"}  # AWD-LSTM on the Penn Treebank
    found = pairs((RESULTS.parent / name).read_text("utf-8"))
    assert found
    assert not found - known


@pytest.mark.parametrize("corpus", [path.name for path in (RESULTS / "cores").iterdir()])
def test_the_page_of_the_cores_has_the_figures_of_the_runs_that_are_kept(corpus: str):
    ((section,), _) = group_runs(read_runs([(None, RESULTS / "cores" / corpus)])[0])
    titles, kept, _ = group_table(section).shown()
    kept = {row[0]: dict(zip(titles, row, strict=True)) for row in kept}
    page = (RESULTS.parent / "docs/cores.md").read_text("utf-8")
    (part,) = [part for part in page.split("\n## ") if "](" + f"cores_{corpus}.png" in part]
    titles, _, *rows = rows_of(part)[: len(kept) + 2]
    for row in (dict(zip(titles, row, strict=True)) for row in rows):
        of_run = kept[row["core"]]
        assert (row["valid"], row["test"]) == (of_run["valid"], of_run["test"])
        assert row["test with cache"] == of_run["cache, test"]
        assert row["training, GiB"] == of_run["GiB"]
    assert {row[0] for row in rows} == kept.keys()


def test_seeds_evaluations_and_published_figures(tmp_path: Path):
    (tmp_path / "recipes.yaml").write_text(RECIPES)
    for seed, (valid, test) in enumerate([(100.0, 90.0), (104.0, 91.0), (108.0, 92.0)]):
        write(tmp_path / f"many/{seed}", valid, test)
    write(tmp_path / "one", 50.0, 40.0)
    write_evaluation(tmp_path / "one", "cache", "test", 33.0, without_cache=40.0)
    write_evaluation(tmp_path / "one", "dynamic_cache", "test", 30.0, without_cache=35.0)
    text = page(read_rows(tmp_path))
    head, _, many, head_of_single, _, one = rows_of(text)
    assert head[:4] == ["recipe", "seeds", "perplexity", "parameters"]
    assert head_of_single[2:6] == ["perplexity", "cache", "dynamic", "dynamic and cache"]
    # Student's t with 2 degrees of freedom is 4.3027; it multiplies 4 / sqrt(3) and 1 / sqrt(3).
    assert many == [
        *("mine", "3", "104.00 ± 9.94 / 91.00 ± 2.48", "1,234", "2.3", "1.5", "fast"),
        "68.6 / 65.8 (AWD-LSTM)",
    ]
    assert one[1:4] == ["1", "50.00 / 40.00", "— / 33.00"]
    assert one[4:6] == ["— / 35.00", "— / 30.00"]
    assert len(one) == len(head_of_single) == len(head) + 2  # nothing was published for it
    assert text.index("| mine |") < text.index("### Single runs") < text.index("| yours |")
    write_evaluation(tmp_path / "one", "dynamic", "test", 36.0)
    assert rows_of(page(read_rows(tmp_path)))[5][4] == "— / 36.00"
    write_evaluation(tmp_path / "many/1", "cache", "valid", 60.0)
    assert rows_of(page(read_rows(tmp_path)))[2][3] == "60.00 / — (1 of 3 seeds)"
    write_evaluation(tmp_path / "many/1", "cache", "test", 55.0)
    write_evaluation(tmp_path / "many/2", "cache", "test", 57.0)
    with pytest.raises(UserError, match=r"many: not as many seeds on valid as on test \(cache\)"):
        page(read_rows(tmp_path))
    assert "`lmbench-train many`" in text
    assert "Merity et al. 2017" in text


def test_a_recipe_with_several_seeds_is_drawn_by_epoch_and_by_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "recipes.yaml").write_text(RECIPES)
    for folder in ("many/1", "many/2", "one"):
        write(tmp_path / folder, 100.0, 90.0)
        curve = "step,epoch,val/ppl\n1,0,130.0\n2,1,110.0\n3,2,100.0\n"
        (tmp_path / folder / "metrics.csv").write_text(curve)
    for seed in (1, 2):
        timing = "step,train/seconds\n1,60.0\n2,120.0\n3,180.0\n"
        (tmp_path / f"many/{seed}/timing.csv").write_text(timing)
    drawn: dict[str, list[str]] = {}

    def draw(section: Section, published: Sequence[Published]) -> list[Plot]:
        plots = draw_plots(section, published)
        drawn.update({plot.name: [plot.alt, *(one.model for one in published)] for plot in plots})
        return plots

    monkeypatch.setattr("build_results.RESULTS", tmp_path)
    monkeypatch.setattr("build_results.draw_plots", draw)
    main()
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "wikitext2.png",
        "wikitext2_epochs.png",
        "wikitext2_minutes.png",
    }
    assert drawn["curves_minutes"][1:] == ["goal for AWD-LSTM", "goal for the LSTM"]
    assert "mine" in drawn["curves_minutes"][0]
    assert "yours" not in drawn["curves_minutes"][0]


def test_accuracies_on_minimal_pairs(tmp_path: Path):
    (tmp_path / "recipes.yaml").write_text(RECIPES)
    for seed, accuracy in ((1, 0.61), (2, 0.63)):
        write(tmp_path / f"many/{seed}", 100.0, 90.0)
        counts = {"num_pairs": 67_000, "accuracy": accuracy}
        results = {
            "corpus_sha256": "0",
            "pairs": {
                "sha256": "0",
                "tokenizer": "moses",
                "lowercase": False,
                "drops_punctuation": False,
            },
            **counts,
            "parts": {"known": {"accuracy": accuracy + 0.05}},
            "by": {},
        }
        (tmp_path / f"many/{seed}/minimal_pairs-BLiMP.json").write_text(json.dumps(results))
    write(tmp_path / "one", 50.0, 40.0)
    head, _, many, head_of_single, *_ = rows_of(page(read_rows(tmp_path)))
    found = dict(zip(head, many, strict=True))
    # Student's t with one degree of freedom, 12.7062, times 1
    assert found["BLiMP, all"] == "62.0 ± 12.7"
    assert found["BLiMP, known words"] == "67.0 ± 12.7"
    assert not any("BLiMP" in title for title in head_of_single)


def test_an_evaluation_of_other_weights_is_refused(tmp_path: Path):
    """It could not be in a comparison either."""
    (tmp_path / "recipes.yaml").write_text(RECIPES)
    write(tmp_path / "many/1", 100.0, 90.0)
    write(tmp_path / "one", 50.0, 40.0)
    write_evaluation(tmp_path / "one", "dynamic_cache", "test", 30.0, without_cache=35.0)
    path = tmp_path / "one/evaluation-dynamic_cache-test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"corpus_sha256": "1"}))
    with pytest.raises(UserError, match=r"dynamic_cache-test\.json is for a different corpus"):
        read_rows(tmp_path)


def test_a_seed_counts_once(tmp_path: Path):
    (tmp_path / "recipes.yaml").write_text(RECIPES)
    write(tmp_path / "many/1", 100.0, 90.0)
    write(tmp_path / "many/01", 101.0, 91.0)
    with pytest.raises(UserError, match=r"many has a seed twice\."):
        read_rows(tmp_path)


def test_a_recipe_without_results_is_named(tmp_path: Path):
    (tmp_path / "recipes.yaml").write_text(RECIPES)
    (tmp_path / "many/1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no results\.json"):
        read_rows(tmp_path)

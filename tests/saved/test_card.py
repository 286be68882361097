"""Model cards, read with the Hugging Face hub's own library."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from lmbench.errors import UserError
from lmbench.run.config import read_run_config
from lmbench.saved.card import model_card


@pytest.fixture
def run_dir(make_run: Callable[..., Path]) -> Path:
    return make_run()


def results_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "results.json").read_text("utf-8"))


def card(run_dir: Path, config: Any = None) -> str:
    config = config or read_run_config(run_dir, ())
    return model_card(run_dir, config, results_of(run_dir)["weights_sha256"])[1]


def change_results(run_dir: Path, **changes: Any) -> None:
    """Replaces values; those of a dict one by one."""
    results = results_of(run_dir)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(results.get(key), dict)
        results[key] = results[key] | value if both else value
    (run_dir / "results.json").write_text(json.dumps(results), "utf-8")


def scores_of(text: str) -> list[tuple[str, str, float]]:
    results = ModelCard(text).data.eval_results
    return [(r.dataset_type, r.dataset_split, r.metric_value) for r in results or []]


@pytest.fixture
def evaluate(run_dir: Path, write_evaluation: Callable[..., Path]) -> Callable[..., Path]:
    """Writes evaluations of the run with a perplexity of 40."""
    sha256 = results_of(run_dir)["data"]["sha256"]
    return lambda split, **options: write_evaluation(
        run_dir, "cache", split, ppl=40.0, sha256=sha256, **options
    )


def test_the_hub_reads_the_scores(run_dir: Path, evaluate: Callable[..., Path]):
    own = [("synthetic", "validation", 54.6), ("synthetic", "test", 33.12)]
    assert scores_of(card(run_dir)) == own
    evaluate("test")
    text = card(run_dir)
    assert scores_of(text) == [*own, ("synthetic", "test", 40.0)]
    assert "| test | cache | 40.00 | 3.6889 | 99 |" in text
    assert "| valid | of the training run | 54.60 | 4.0000 | 199 |" in text
    change_results(run_dir, best_epoch=23)  # counted from 0
    assert "that of epoch 24." in card(run_dir)


@pytest.mark.parametrize("number", [2, 103])
def test_wikitext_comes_with_its_name_on_the_hub_and_its_licence(run_dir: Path, number: int):
    change_results(run_dir, data={"name": f"wikitext{number}", "perplexity_floor": None})
    text = card(run_dir)
    data = ModelCard(text).data
    assert (data.datasets, data.language) == (["Salesforce/wikitext"], ["en"])
    assert data.library_name == "lmbench"
    for result in data.eval_results or []:
        assert result.dataset_type == "Salesforce/wikitext"
        assert result.dataset_config == f"wikitext-{number}-v1"
    assert f"\nWikiText-{number} (Merity et al. 2016" in text
    assert "(CC BY-SA)" in text
    assert "true distribution" not in text


def test_the_recipe_is_the_runs_config_without_private_paths(run_dir: Path):
    config = read_run_config(run_dir, ())
    config["data"] |= {"path": "/secret/corpus", "cache_dir": "/secret/cache"}
    text = card(run_dir, config)
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["model"] == config["model"]
    assert recipe["optimizer"] == config["optimizer"]
    assert recipe["trainer"] == config["trainer"]
    assert recipe["data"] == read_run_config(run_dir, ())["data"]
    assert "/secret" not in text
    change_results(run_dir, init_from="/secret/run", train={"epochs": 41.130434782608695})
    text = card(run_dir)
    assert "from the weights of another run" in text
    assert "\n41.1 epochs, " in text
    assert "/secret" not in text


def test_how_it_was_scored(run_dir: Path):
    change_results(run_dir, evaluation={"columns": {"valid": 64, "test": 1}, "burn_in": 512})
    assert "protocol standard, columns 64 (valid) and 1 (test), burn-in 512." in card(run_dir)


def test_results_of_other_weights_are_refused(run_dir: Path):
    with pytest.raises(UserError, match=r"results\.json is for weights other"):
        model_card(run_dir, read_run_config(run_dir, ()), "0")


@pytest.mark.parametrize("key", ["weights_sha256", "corpus_sha256"])
def test_an_evaluation_of_former_weights_or_another_corpus_is_named(
    run_dir: Path, evaluate: Callable[..., Path], key: str
):
    """As after a resume that found better weights."""
    path = evaluate("test")
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: "another"}), "utf-8")
    with pytest.raises(UserError, match=rf"^{path} is .*Evaluate again, or remove it\.$"):
        card(run_dir)


@pytest.mark.parametrize(
    ("split", "tuned", "noted"),
    [("valid", {"num_tokens": None}, True), ("valid", None, False), ("test", {}, False)],
)
def test_settings_tuned_on_valid_are_reported_with_valid_figures(
    run_dir: Path, evaluate: Callable[..., Path], split: str, tuned: dict | None, noted: bool
):
    evaluate(split, tuned=tuned)
    note = "The settings of cache were tuned on valid: of these, only the test figures are fair."
    assert (note in card(run_dir)) == noted


@pytest.mark.parametrize(("known", "text"), [(0.648, "64.8%"), (None, "—")])
def test_accuracies_on_minimal_pairs(
    run_dir: Path, write_pairs: Callable[..., Path], known: float | None, text: str
):
    assert "minimal pairs" not in card(run_dir)
    sha256, correct = results_of(run_dir)["data"]["sha256"], np.arange(200) < 121
    write_pairs(run_dir, correct, name="BLiMP", known=known, corpus_sha256=sha256)
    assert f"\n| BLiMP | 60.5% | {text} | 200 |\n" in card(run_dir)


def test_a_third_party_core_is_named(run_dir: Path):
    assert "LMBENCH_ALLOWED_TARGETS" not in card(run_dir)
    config = read_run_config(run_dir, ())
    config["model"]["core"]["_target_"] = "my_cores.Recurrence"
    assert "`LMBENCH_ALLOWED_TARGETS=my_cores.Recurrence`" in card(run_dir, config)


@pytest.mark.parametrize("key", ["data", "train", "environment", "num_parameters"])
@pytest.mark.parametrize("value", [None, "x", {}])
def test_damaged_results(run_dir: Path, key: str, value: Any):
    change_results(run_dir, **{key: None})
    change_results(run_dir, **{key: value})
    with pytest.raises(UserError, match=rf"^{run_dir}/results\.json is damaged: "):
        card(run_dir)

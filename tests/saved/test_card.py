"""Model cards, read with the Hugging Face hub's own library."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from lmbench.errors import UserError
from lmbench.run.config import read_run_config
from lmbench.saved.card import model_card


def values_of(run_dir: Path) -> dict[str, Any]:
    return read_run_config(run_dir, ())


def card(run_dir: Path, config: Any = None) -> str:
    sha256 = json.loads((run_dir / "results.json").read_text("utf-8")).get("weights_sha256")
    return model_card(run_dir, config or values_of(run_dir), sha256)[1]


def change_results(run_dir: Path, **changes: Any) -> None:
    path = run_dir / "results.json"
    results = json.loads(path.read_text("utf-8"))
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(results.get(key), dict):
            results[key] |= value
        else:
            results[key] = value
    path.write_text(json.dumps(results), "utf-8")


def scores_of(text: str) -> list[tuple[str, str, float]]:
    results = ModelCard(text).data.eval_results
    return [(r.dataset_type, r.dataset_split, r.metric_value) for r in results or []]


def test_the_hub_reads_the_scores(make_run: Callable[..., Path]):
    run_dir = make_run()
    assert scores_of(card(run_dir)) == [
        ("synthetic", "validation", 54.6),
        ("synthetic", "test", 33.12),
    ]
    sha256 = json.loads((run_dir / "results.json").read_text("utf-8"))["data"]["sha256"]
    about = {"name": "cache", "protocol": "standard", "columns": 64}
    evaluation = {"split": "test", "corpus_sha256": sha256, "evaluation": about}
    evaluation |= {"nll": 3.25, "ppl": 25.790339917193062, "num_tokens": 199}
    (run_dir / "evaluation-cache-test.json").write_text(json.dumps(evaluation))
    text = card(run_dir)
    assert scores_of(text)[2] == ("synthetic", "test", 25.79)
    assert "| test | cache | 25.79 | 3.2500 | 199 |" in text
    assert "| valid | of the training run | 54.60 | 4.0000 | 199 |" in text
    change_results(run_dir, best_epoch=23)  # counted from 0
    assert "that of epoch 24." in card(run_dir)


@pytest.mark.parametrize("number", [2, 103])
def test_wikitext_comes_with_its_name_on_the_hub_and_its_licence(
    make_run: Callable[..., Path], number: int
):
    run_dir = make_run()
    change_results(run_dir, data={"name": f"wikitext{number}", "perplexity_floor": None})
    text = card(run_dir)
    data = ModelCard(text).data
    assert (data.datasets, data.language, data.library_name) == (
        ["Salesforce/wikitext"],
        ["en"],
        "lmbench",
    )
    assert {(r.dataset_type, r.dataset_config) for r in data.eval_results or []} == {
        ("Salesforce/wikitext", f"wikitext-{number}-v1")
    }
    assert f"\nWikiText-{number} (Merity et al. 2016" in text
    assert "(CC BY-SA)" in text
    assert "true distribution" not in text


def test_the_recipe_is_the_runs_config_without_private_paths(make_run: Callable[..., Path]):
    run_dir = make_run()
    config = values_of(run_dir)
    config["data"] |= {"path": "/secret/corpus", "cache_dir": "/secret/cache"}
    text = card(run_dir, config)
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["model"] == config["model"]
    assert recipe["optimizer"] == config["optimizer"]
    assert recipe["trainer"] == config["trainer"]
    assert recipe["data"] == values_of(run_dir)["data"]
    assert "/secret" not in text
    change_results(run_dir, init_from="/secret/run", train={"epochs": 41.130434782608695})
    text = card(run_dir)
    assert "from the weights of another run" in text
    assert "\n41.1 epochs, " in text
    assert "/secret" not in text


def test_how_it_was_scored(make_run: Callable[..., Path]):
    run_dir = make_run()
    change_results(run_dir, evaluation={"columns": {"valid": 64, "test": 1}, "burn_in": 512})
    assert "protocol standard, columns 64 (valid) and 1 (test), burn-in 512." in card(run_dir)


def test_results_of_other_weights_are_refused(make_run: Callable[..., Path]):
    run_dir = make_run()
    with pytest.raises(UserError, match=r"results\.json is for weights other"):
        model_card(run_dir, values_of(run_dir), "0")


@pytest.mark.parametrize("key", ["weights_sha256", "corpus_sha256"])
def test_an_evaluation_of_former_weights_or_another_corpus_is_named(
    make_run: Callable[..., Path], write_evaluation: Callable[..., Path], key: str
):
    """As after a resume that found better weights."""
    run_dir = make_run()
    corpus = json.loads((run_dir / "results.json").read_text("utf-8"))["data"]["sha256"]
    path = write_evaluation(run_dir, "cache", "test", ppl=40.0, sha256=corpus)
    card(run_dir)
    evaluation = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(evaluation | {key: "another"}), "utf-8")
    with pytest.raises(UserError, match=rf"^{path} is .*Evaluate again, or remove it\.$"):
        card(run_dir)


@pytest.mark.parametrize(
    ("split", "tuned", "told"),
    [("valid", {"num_tokens": None}, True), ("valid", None, False), ("test", {}, False)],
)
def test_settings_tuned_on_valid_are_reported_with_valid_figures(
    make_run: Callable[..., Path],
    write_evaluation: Callable[..., Path],
    split: str,
    tuned: dict | None,
    told: bool,
):
    run_dir = make_run()
    sha256 = json.loads((run_dir / "results.json").read_text("utf-8"))["data"]["sha256"]
    write_evaluation(run_dir, "cache", split, ppl=40.0, tuned=tuned, sha256=sha256)
    note = "The settings of cache were tuned on valid: of these, only the test figures are fair."
    assert (note in card(run_dir)) == told


@pytest.mark.parametrize(("known", "shown"), [(0.648, "64.8%"), (None, "—")])
def test_accuracies_on_minimal_pairs(
    make_run: Callable[..., Path], known: float | None, shown: str
):
    run_dir = make_run()
    assert "minimal pairs" not in card(run_dir)
    results = json.loads((run_dir / "results.json").read_text("utf-8"))
    pairs = {
        "corpus_sha256": results["data"]["sha256"],
        "pairs": {
            "sha256": "0",
            "tokenizer": "moses",
            "lowercase": False,
            "drops_punctuation": False,
        },
        "num_pairs": 67_000,
        "accuracy": 0.605,
        "parts": {"known": {"accuracy": known}},
        "by": {},
    }
    (run_dir / "minimal_pairs-BLiMP.json").write_text(json.dumps(pairs))
    assert f"\n| BLiMP | 60.5% | {shown} | 67,000 |\n" in card(run_dir)


def test_a_third_party_core_is_named(make_run: Callable[..., Path]):
    run_dir = make_run()
    assert "LMBENCH_ALLOWED_TARGETS" not in card(run_dir)
    config = values_of(run_dir)
    config["model"]["core"]["_target_"] = "my_cores.Recurrence"
    assert "`LMBENCH_ALLOWED_TARGETS=my_cores.Recurrence`" in card(run_dir, config)


@pytest.mark.parametrize("key", ["data", "train", "environment", "num_parameters"])
@pytest.mark.parametrize("value", [None, "x", {}])
def test_damaged_results(make_run: Callable[..., Path], key: str, value: Any):
    run_dir = make_run()
    change_results(run_dir, **{key: None})
    change_results(run_dir, **{key: value})
    with pytest.raises(UserError, match=rf"^{run_dir}/results\.json is damaged: "):
        card(run_dir)

"""A run that is trained, then evaluated: both give the same weights the same scores."""

import json
from pathlib import Path

import pytest
from small import composed, config_of, small_config

from lmbench.cli.evaluate import evaluate
from lmbench.cli.train import train
from lmbench.run.choice import ChosenRun


@pytest.mark.slow
@pytest.mark.usefixtures("matmul_precision")
@pytest.mark.parametrize("protocol", ["standard", "awd_lstm_lm"])
def test_evaluation_repeats_the_scores_of_training(tmp_path: Path, protocol: str) -> None:
    # Averaged SGD from the start, so that the weights to evaluate are not the last iterate.
    start = ("optimizer.lr=2", "callbacks.nt_asgd.average_from_start=true", "trainer.max_epochs=3")
    lengths = ("data.num_valid_tokens=900", "data.num_test_tokens=900", "batching.bptt=20")
    start += ("trainer.log_every_n_steps=5",)
    columns = ("evaluation.columns=3", "evaluation.burn_in=100")
    reading = (f"evaluation={protocol}", *(columns if protocol == "standard" else ()))
    config = small_config(*start, *lengths, model="awd_lstm")
    config["evaluation"] = config_of(*reading)["evaluation"]
    train(ChosenRun(config), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    for split, stage in (("valid", "val"), ("test", "test")):
        overrides = (f"run={tmp_path}", f"split={split}", *reading)
        evaluate(composed(*overrides, name="evaluate"), protocol)
        path = tmp_path / f"evaluation-{protocol}-{split}.json"
        evaluated = json.loads(path.read_text("utf-8"))
        assert evaluated["nll"] == pytest.approx(results[stage]["nll"], rel=1e-6)
        assert evaluated["weights_sha256"] == results["weights_sha256"]
        assert evaluated["num_tokens"] == results[stage]["num_tokens"]

"""A run trained and then evaluated: both say the same of the same weights."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lmbench.config import conf_dir
from lmbench.errors import UserError
from lmbench.evaluate import evaluate
from lmbench.train import train

SMALL = (
    "data=synthetic",
    "data.num_words=40",
    "data.num_train_tokens=2000",
    "data.num_valid_tokens=900",
    "data.num_test_tokens=900",
    "model.embedding_size=8",
    "model.core.hidden_size=12",
    "batching.batch_size=4",
    "batching.bptt=20",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=5",
)


@pytest.mark.slow
@pytest.mark.usefixtures("matmul_precision")
@pytest.mark.parametrize("protocol", ["standard", "published"])
def test_evaluation_repeats_the_scores_of_training(tmp_path: Path, protocol: str) -> None:
    # Averaged SGD from the start, so that the weights to evaluate are not the last iterate.
    model = ("model=awd_lstm", "optimizer.lr=2", "callbacks.nt_asgd.average_from_start=true")
    columns = () if protocol == "published" else ("evaluation.columns=3", "evaluation.burn_in=100")
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("train", [*model, *SMALL, f"evaluation={protocol}", *columns])
        evaluations = {
            split: compose(
                "evaluate",
                [f"run={tmp_path}", f"split={split}", f"evaluation={protocol}", *columns],
            )
            for split in ("valid", "test")
        }
    train(config, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    for split, stage in (("valid", "val"), ("test", "test")):
        evaluate(evaluations[split], protocol)
        path = tmp_path / f"evaluation-{protocol}-{split}.json"
        evaluated = json.loads(path.read_text("utf-8"))
        assert evaluated["nll"] == pytest.approx(results[stage]["nll"], rel=1e-6)
        assert evaluated["weights_sha256"] == results["weights_sha256"]
        assert evaluated["num_tokens"] == results[stage]["num_tokens"]


@pytest.mark.usefixtures("matmul_precision")
def test_training_refuses_the_evaluations_of_trained_models(tmp_path: Path) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("train", ["model=lstm", *SMALL, "evaluation=dynamic_cache"])
    with pytest.raises(UserError, match=r"^evaluation.cache is for lmbench-evaluate"):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())

"""Every core that ``conf/`` has, as a user meets it: trained, resumed, exported, evaluated."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import SMALL, composed
from trainings import command

import lmbench
from lmbench.build.model import build_saved
from lmbench.conf import conf_dir
from lmbench.data.synthetic import make_corpus
from lmbench.evaluate import evaluate
from lmbench.files import read_json
from lmbench.saved.checkpoint import read_run_model
from lmbench.saved.export import writing_export

NAMES = sorted(path.stem for path in (conf_dir() / "model/core").glob("*.yaml"))
every_core = pytest.mark.parametrize("name", [name for name in NAMES if name != "lstm"])


def overrides(name: str) -> tuple[str, ...]:
    sizes = ("model.core.hidden_size=16", "model.core.num_layers=2")
    return "model=awd_lstm", f"model/core={name}", *sizes


@every_core
@pytest.mark.usefixtures("matmul_precision")
def test_exports_and_evaluations(make_run: Callable[..., Path], tmp_path: Path, name: str) -> None:
    run = make_run(*overrides(name))
    saved = read_run_model(run)
    model = build_saved(saved)
    with writing_export(tmp_path / "export", saved, model, corpus_name="x", overwrite=False):
        pass
    for path in (run, tmp_path / "export"):
        twin = lmbench.load(path).model.state_dict()
        assert all(torch.equal(twin[key], value) for key, value in model.state_dict().items())

    sizes = {f"num_{split}_tokens": 200 for split in ("train", "valid", "test")}
    corpus = make_corpus(num_words=40, **sizes)
    tokens = torch.from_numpy(corpus.test).long()
    with torch.no_grad():
        log_probs = model.head.log_probs(model(tokens[:-1, None]).output)[:, 0]
    expected = -log_probs.gather(1, tokens[1:, None]).mean().item()
    for mode, *options in (
        ("standard", "evaluation.columns=1"),
        (
            "dynamic_cache",
            "evaluation.window=20",
            "evaluation.dynamic.statistics.columns=4",
            "evaluation.dynamic.lr=1e-6",
        ),
    ):
        own = (f"run={run}", "device=cpu", f"evaluation={mode}", *options)
        config = composed(*own, name="evaluate")
        evaluate(config, mode)
        result = read_json(run / f"evaluation-{mode}-test.json")
        if mode == "standard":
            assert result["nll"] == pytest.approx(expected, rel=1e-5)
        assert math.isfinite(result["nll"])


@pytest.mark.slow
@every_core
def test_a_resumed_run_has_the_weights_of_an_unbroken_one(tmp_path: Path, name: str) -> None:
    own = ("callbacks=default", "optimizer=adam", "trainer.max_epochs=2", "batching.bptt=20")
    done = command(tmp_path, *SMALL, *overrides(name), *own, "hydra.run.dir=whole")
    assert done.returncode == 0, done.stderr
    own = (*own[:2], "trainer.max_epochs=1", *own[3:])
    for arguments in (
        (*SMALL, *overrides(name), *own, "hydra.run.dir=parts"),
        ("resume=parts", "trainer.max_epochs=2"),
    ):
        done = command(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
    whole, parts = (read_json(tmp_path / run / "results.json") for run in ("whole", "parts"))
    for key in ("weights_sha256", "val", "test", "best_epoch"):
        assert whole[key] == parts[key]

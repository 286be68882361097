"""Every core and head that ``conf/`` has, as a user meets it: exported and evaluated."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import composed

import lmbench
from lmbench.cli.evaluate import evaluate
from lmbench.data.synthetic import make_corpus
from lmbench.errors import UserError
from lmbench.files import read_json
from lmbench.instantiate.model import build_saved
from lmbench.run.targets import conf_dir
from lmbench.saved.checkpoint import read_run_model
from lmbench.saved.export import write_export

PARTS = [
    f"{part}={path.stem}"
    for part in ("core", "head")
    for path in sorted((conf_dir() / "model" / part).glob("*.yaml"))
    if path.stem != "lstm"  # has no hidden_dropout: the other tests are about it
]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.usefixtures("matmul_precision")
def test_exports_and_evaluations(make_run: Callable[..., Path], tmp_path: Path, part: str) -> None:
    sizes = ("model.core.hidden_size=16", "model.core.num_layers=2")
    overrides = ["model=awd_lstm", f"model/{part}", *sizes]
    try:
        run = make_run(*overrides)
    except UserError as error:  # a head may refuse to share a weight
        if not str(error).startswith("model.tied"):
            raise
        run = make_run(*overrides, "model.tied=false")
    saved = read_run_model(run)
    model = build_saved(saved)
    write_export(tmp_path / "export", saved, model, corpus_name="x", card="")
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
            "evaluation.dynamic.lr=1e-4",
        ),
    ):
        own = (f"run={run}", "device=cpu", f"evaluation={mode}", *options)
        config = composed(*own, name="evaluate")
        evaluate(config, mode)
        result = read_json(run / f"evaluation-{mode}-test.json")
        if mode == "standard":
            assert result["nll"] == pytest.approx(expected, rel=1e-5)
        else:  # learns a little
            assert 1e-4 < abs(result["without_cache"]["nll"] / expected - 1) < 0.05

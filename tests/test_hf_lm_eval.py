"""lmbench's models in lm-evaluation-harness (`make extras`), against lmbench's own scores."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lmbench
from lmbench.data.minimal_pairs import read_pairs
from lmbench.data.tokenizer.choice import tokenizer_for
from lmbench.evaluation.minimal_pairs import score_pairs

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # its packages warn


@pytest.fixture
def run_dir(make_run: Callable[..., Path]) -> Path:
    return make_run()


def test_texts_with_and_without_a_context(run_dir: Path):
    from lmbench.hf.lm_eval import LMBench

    loaded, harness = lmbench.load(run_dir), LMBench(run_dir, device="cpu")
    words = loaded.vocabulary.words
    requests = [("", f"{words[5]} {words[9]}"), (words[7], f" {words[5]} {words[30]} {words[3]}")]
    found = harness.loglikelihood([SimpleNamespace(args=args) for args in requests])
    whole = [SimpleNamespace(args=("".join(args),)) for args in requests]
    rolling = harness.loglikelihood_rolling(whole)
    for (context, continuation), (nats, _), of_whole in zip(requests, found, rolling, strict=True):
        surprisals = loaded.score(context + continuation)["surp"][:-1] * np.log(2)
        assert nats == pytest.approx(-surprisals[len(context.split()) :].sum(), rel=1e-5)
        assert of_whole == pytest.approx(-surprisals.sum(), rel=1e-5)
    ((_, is_greedy),) = harness.loglikelihood([SimpleNamespace(args=("", words[9]))])
    likeliest = loaded.model.head.log_probs(loaded.model(torch.zeros(1, 1, dtype=int)).output)
    assert is_greedy == (int(likeliest.argmax()) == 9)
    best = loaded.generate("", num_tokens=3, temperature=0)
    greedy = harness.loglikelihood([SimpleNamespace(args=("", best))])
    assert greedy[0][1]


def test_a_task_of_minimal_pairs_has_the_accuracy_of_evaluate(run_dir: Path, tmp_path: Path):
    import lm_eval

    from lmbench.hf.lm_eval import LMBench

    loaded = lmbench.load(run_dir)
    words = loaded.vocabulary.words
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "sentence_good": f"{words[n]} {words[n + 1]}",
            "sentence_bad": f"{words[n + 1]} {words[n]}",
        }
        for n in range(2, 38)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    task = {
        "task": "pairs",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": str(path)}, "cache_dir": str(tmp_path)},
        "validation_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "metric_list": [{"metric": "acc"}],
    }
    found = lm_eval.simple_evaluate(LMBench(run_dir, device="cpu"), tasks=[task])
    tokenizer = tokenizer_for(loaded.vocabulary, "auto")
    expected = score_pairs(*loaded, tokenizer, read_pairs(path)).is_correct.mean()
    assert found["results"]["pairs"]["acc,none"] == expected

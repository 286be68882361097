"""The study of cores: equal sizes, equal tuning, and the tables of what is kept."""

import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import study_cores
import torch
from scipy import stats
from small import composed, config_of
from study_cores import PLAN, Setting, Study, against_awd_lstm, final_table, overrides_of, typed

from lmbench.errors import UserError
from lmbench.instantiate import training as build
from lmbench.instantiate.model import build_model
from lmbench.run.directory import DIVERGED
from lmbench.run.targets import flatten

CORPORA = PLAN["corpora"]
ROOT = Path(__file__).parents[1]


def config(corpus: str, core: str, **changes: float) -> dict:
    setting = Setting(core, "whole", 0.003, 0.5)._replace(**changes)
    return config_of(*typed(overrides_of(CORPORA[corpus], setting)))


class Commands:
    """Stands for the commands of lmbench: runs end at once, at a perplexity that lr decides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, diverging: tuple[str, ...] = ()) -> None:
        self.trained: list[dict[str, str]] = []
        self.evaluated: list[str] = []
        self.diverging = diverging
        monkeypatch.setattr(Study, "_start", lambda _, *arguments: self.start(*arguments))

    def start(self, command: str, *arguments: str) -> None:
        given = dict(text.split("=", 1) for text in arguments if "=" in text)
        if command == "evaluate":
            self.evaluated.append(arguments[0])
            Path(arguments[0], "evaluation-cache-test.json").touch()
            return
        self.trained.append(given)
        lr, single = given["optimizer.lr"], given.get("hydra.run.dir")
        ppl = 100 * (1 + abs(math.log(float(lr) / 0.006)))
        ppl -= float(given["model.core.input_dropout"])
        train = {"tokens_per_second": 1000.0}
        for seed in given.get("seed", "1").split(","):
            run_dir = Path(single or f"{given['hydra.sweep.dir']}/{seed}")
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / "checkpoints").mkdir()
            if lr in self.diverging:
                (run_dir / DIVERGED).touch()
            else:
                results = {"val": {"ppl": ppl}, "train": train}
                (run_dir / "results.json").write_text(json.dumps(results))


@pytest.mark.slow
@pytest.mark.parametrize("corpus", CORPORA)
def test_all_cores_have_about_the_same_number_of_parameters(corpus: str):
    sizes = {}
    for core in CORPORA[corpus]["cores"]:
        made = config(corpus, core)
        build.require_known_keys(made)
        with torch.device("meta"):
            model = build_model(made["model"], vocabulary_size=33_278)
        sizes[core] = sum(parameter.numel() for parameter in model.core.parameters())
    for core, size in sizes.items():
        assert size == pytest.approx(sizes["awd_lstm"], rel=0.02), core


def test_a_factor_multiplies_the_dropouts_of_the_experiment():
    for corpus in CORPORA.values():
        values = flatten(config_of(f"experiment={corpus['experiment']}"))
        assert {key: values[key] for key in PLAN["dropouts"]} == PLAN["dropouts"]


def test_the_studys_lstm_has_nothing_that_awd_adds():
    awd, plain = (flatten(config("synthetic", core)) for core in ("awd_lstm", "lstm"))
    assert {key: value for key, value in plain.items() if awd[key] != value} == {
        "name": "lstm",
        **{key: value for key, value in PLAN["plain_lstm"].items() if key != "model/core"},
    }


def test_the_cache_is_tuned_on_a_grid_of_the_config():
    grid = composed("run=x", *typed(PLAN["cache"]), name="evaluate").evaluation.cache.grid
    assert (list(grid.windows), len(grid.thetas)) == ([3785], 10)


def test_rate_then_dropout_then_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = Commands(monkeypatch, diverging=("0.024",))
    for core in ("gru", "qrnn"):
        Study(tmp_path, CORPORA["wikitext2"]).run_core(core)
    tuning = [x for x in commands.trained if x["seed"] == "1"]
    assert len(tuning) == 2 * (5 + 3 + 1)
    assert all(x["trainer.limit_test_batches"] == "0" for x in tuning)
    gru = [x for x in tuning if x["name"] == "gru"]
    # Five rates on a part of the text; the best three, then a smaller factor, on all of it.
    assert ["trainer.limit_train_batches" in x for x in gru] == [True] * 5 + [False] * 4
    assert [x["optimizer.lr"] for x in gru[5:]] == ["0.006", "0.003", "0.012", "0.006"]
    final = [x for x in commands.trained if x["seed"] != "1"]
    assert [(x["optimizer.lr"], x["seed"]) for x in final] == [("0.006", "2,3,4")] * 2
    assert {x["model.core.input_dropout"] for x in final} == {"0.075"}
    assert not [key for x in final for key in x if key.startswith("trainer.limit")]
    assert len(commands.evaluated) == 6
    checkpoints = {path.parts[-4] for path in tmp_path.rglob("checkpoints")}
    assert checkpoints == {tmp_path.name}  # those of the tuning, one level deeper, are gone

    Study(tmp_path, CORPORA["wikitext2"]).run_core("gru")  # has nothing left to do
    assert len(commands.trained) == len(tuning) + 2
    assert len(commands.evaluated) == 6
    row, _ = study_cores.tuning_table(tmp_path, CORPORA["wikitext2"])
    assert row["part, lr 0.024"] == "diverged"
    assert row["whole, by lr"].startswith("0.003: 169.24, 0.006: 99.92")


def test_a_core_that_always_diverges_is_trained_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands = Commands(monkeypatch, tuple(map(str, PLAN["lrs"])))
    Study(tmp_path, CORPORA["synthetic"]).run_core("gru")
    assert len(commands.trained) == 5
    assert commands.evaluated == []


def test_cores_take_turns_when_speed_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = Commands(monkeypatch)
    monkeypatch.setattr(study_cores, "seconds_per_word", lambda _: 0.002)
    for _ in range(2):  # the second time, there is nothing left to do
        Study(tmp_path, CORPORA["synthetic"]).measure_speed(["gru", "qrnn"])
    assert [x["name"] for x in commands.trained] == ["gru", "qrnn"] * 3


def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Study, "_start", lambda *_: None)
    with pytest.raises(UserError, match=r"gru_whole_0\.0015.* is not finished"):
        Study(tmp_path, CORPORA["synthetic"]).run_core("gru")


def test_a_stop_reaches_each_run_once_and_no_other_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of two signals, the second would end a run unsaved; so Ctrl-C must not reach it, too."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\ntrap 'echo saved; exit' TERM\necho begun\nsleep 20 & wait\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    study = Study(tmp_path, CORPORA["synthetic"])
    log, sessions = tmp_path / "study.log", []
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(study.run_core, "gru")
        while not log.exists() or not log.read_text():
            time.sleep(0.05)
        sessions = [os.getsid(process.pid) for process in study._processes]
        study.stop()
        assert isinstance(ended.exception(timeout=30), UserError)
    assert log.read_text() == "begun\nsaved\n"
    assert os.getsid(0) not in sessions


def test_each_core_is_compared_with_awd_lstm():
    nats = {
        "awd_lstm": [4.50, 4.52, 4.51],
        "gru": [4.53, 4.56, 4.55],
        "qrnn": [4.49, 4.52, 4.53],
        "hgrn2": [4.6],  # one seed
    }
    texts = against_awd_lstm(nats)
    assert set(texts) == {"gru", "qrnn"}
    test = stats.ttest_ind(nats["gru"], nats["awd_lstm"], equal_var=False)
    low, high = test.confidence_interval()
    percent = [100 * (math.exp(value) - 1) for value in (0.11 / 3, low, high)]
    start = "{:+.1f}% ({:+.1f} to {:+.1f}), p ".format(*percent)
    assert texts["gru"] == f"{start}{2 * test.pvalue:.3f}"  # Holm: the smaller of two
    other = stats.ttest_ind(nats["qrnn"], nats["awd_lstm"], equal_var=False)
    assert texts["qrnn"].endswith(f"p {other.pvalue:.3f}")


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_page_has_the_figures_of_the_runs_that_are_kept(corpus: str):
    page = (ROOT / "docs/cores.md").read_text("utf-8")
    table = study_cores.markdown(final_table(ROOT / "results/cores" / corpus, CORPORA[corpus]))
    rows = table.splitlines()[2:]
    assert len(rows) == len(CORPORA[corpus]["cores"])
    for row in rows:
        assert row in page

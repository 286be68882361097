from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmbench.errors import UserError
from lmbench.report.groups import Section, group_runs
from lmbench.report.runs import Skipped, read_runs

Write = Callable[..., Path]


def grouped(folder: Path) -> tuple[list[Section], list[Skipped]]:
    runs, _ = read_runs([(None, folder)])
    return group_runs(runs)


def labels(folder: Path) -> list[str]:
    (section,), _ = grouped(folder)
    return [group.name for group in section.groups]


def test_seeds_and_paths_make_no_difference(tmp_path: Path, write_run: Write):
    for seed in (2, 1, 3):
        config = {"data.path": f"/home/{seed}", "data.cache_dir": f"/tmp/{seed}"}
        config |= {"logger.wandb.project": f"of {seed}"}
        write_run(tmp_path / str(seed), seed=seed, config=config)
    (section,), left_out = grouped(tmp_path)
    (group,) = section.groups
    assert [run.seed for run in group.runs] == [1, 2, 3]
    assert group.name == "lstm"
    assert not left_out
    assert not section.differences


def test_what_a_resume_on_another_machine_changes_makes_no_difference(
    tmp_path: Path, write_run: Write
):
    changed = {"trainer.devices": 2, "trainer.strategy": "ddp", "trainer.accelerator": "gpu"}
    changed |= {"trainer.log_every_n_steps": 10, "callbacks.checkpoints.interval_minutes": 5}
    changed |= {"trainer.num_nodes": 2, "evaluation.window": 16}
    write_run(tmp_path / "1", seed=1)
    write_run(tmp_path / "2", seed=2, config=changed)
    write_run(tmp_path / "4", seed=4, config=changed | {"trainer.devices": [0]})
    assert labels(tmp_path) == ["lstm"]
    write_run(tmp_path / "3", seed=3, config=changed | {"trainer.precision": "bf16-mixed"})
    assert len(labels(tmp_path)) == 2


def test_runs_are_grouped_by_a_list(tmp_path: Path, write_run: Write):
    """A config has each item of a list under a key of its own."""
    configs: list[dict[str, Any]] = [
        {"h.cutoffs": [10], "s.phases": [{"share": 10, "lr_factor": [0.1]}]},
        {"h.cutoffs": [10, 20], "s.phases": [{"share": 20}]},
        {"h.cutoffs": None, "s.phases": [{"share": 10, "lr_factor": [0.1]}]},
    ]
    for seed in (1, 2):
        for number, config in enumerate(configs):
            folder = tmp_path / f"{number}_{seed}"
            write_run(folder, seed=seed, valid=100 + number + seed / 9, config=config)
    runs, _ = read_runs([(None, tmp_path)])
    names = {}
    for key in ("h.cutoffs", "s.phases"):
        (section,), _ = group_runs(runs, [key])
        names[key] = {group.name: len(group.runs) for group in section.groups}
    assert names["h.cutoffs"] == {"cutoffs=[10]": 2, "cutoffs=[10,20]": 2, "cutoffs=null": 2}
    assert names["s.phases"] == {"phases=[share=10,0.1]": 4, "phases=[share=20]": 2}
    with pytest.raises(UserError, match=r"--group-by h\.cutoff: no run"):
        group_runs(runs, ["h.cutoff"])


def test_groups_of_a_model_are_told_apart_by_as_few_keys_as_possible(
    tmp_path: Path, write_run: Write
):
    """Both lr and dropout differ, but dropout alone tells all three apart."""
    for number, (lr, dropout) in enumerate([(30.0, 0.2), (30.0, 0.4), (1.0, 0.5)]):
        config = {"optimizer.lr": lr, "model.core.dropout": dropout}
        write_run(tmp_path / str(number), valid=100 + number, config=config)
    write_run(tmp_path / "other", model="awd_lstm", valid=90)
    assert labels(tmp_path) == [
        "awd_lstm",
        "lstm, dropout=0.2",
        "lstm, dropout=0.4",
        "lstm, dropout=0.5",
    ]
    (section,), _ = grouped(tmp_path)
    assert section.differences["optimizer.lr"] == ("30.0", "30.0", "30.0", "1.0")


def test_a_grid_needs_both_keys(tmp_path: Path, write_run: Write):
    for number in range(4):
        config = {"optimizer.lr": 1 + number // 2, "model.core.hidden_size": 200 + number % 2}
        write_run(tmp_path / str(number), valid=100 + number, config=config)
    assert labels(tmp_path) == [
        f"lstm, lr={lr}, hidden_size={size}" for lr in (1, 2) for size in (200, 201)
    ]


def test_cores_and_heads_are_told_apart_by_their_classes(tmp_path: Path, write_run: Write):
    for number in range(4):
        core, head = ("GRU", "QRNN")[number // 2], ("Softmax", "MixtureOfSoftmaxes")[number % 2]
        config = {
            "model.core._target_": f"lmbench.model.core.{core}",
            "model.core.hidden_size": 200 + number // 2,
            "model.head._target_": f"lmbench.model.head.{head}",
        }
        write_run(tmp_path / str(number), valid=100 + number, config=config)
    assert labels(tmp_path) == [
        f"lstm, core={core}, head={head}"
        for core in ("GRU", "QRNN")
        for head in ("Softmax", "MixtureOfSoftmaxes")
    ]


def test_a_key_that_one_config_lacks(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", valid=100)
    write_run(tmp_path / "1", valid=101, config={"model.core.new": None})
    assert labels(tmp_path) == ["lstm, new=(not set)", "lstm, new=null"]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([30.0, 1.0], ["30.0", "1.0"]),
        ([0.1 + 0.2, 0.25], ["0.3", "0.25"]),
        ([1.2e-6, 5], ["1.2e-06", "5"]),
        ([0.12345678, 0.12345679], ["0.12345678", "0.12345679"]),
        ([True, None], ["true", "null"]),
    ],
)
def test_values_are_shown_as_they_are(
    tmp_path: Path, write_run: Write, values: list, texts: list[str]
):
    for number, value in enumerate(values):
        write_run(tmp_path / str(number), valid=100 + number, config={"x.y": value})
    assert labels(tmp_path) == [f"lstm, y={text}" for text in texts]


def test_long_values_that_look_alike_when_cut_are_told_apart(tmp_path: Path, write_run: Write):
    for number in range(2):
        long = "x" * 500 + str(number) + "y" * 500
        write_run(tmp_path / str(number), valid=100 + number, config={"a": long})
    first, second = labels(tmp_path)
    assert first != second
    assert max(len(first), len(second)) < 80


def test_ambiguous_keys_are_shown_in_full_and_long_names_are_numbered(
    tmp_path: Path, write_run: Write
):
    write_run(tmp_path / "0", valid=100, config={"a.b": 1, "c.b": 1})
    write_run(tmp_path / "1", valid=101, config={"a.b": 2, "c.b": 1})
    write_run(tmp_path / "2", valid=102, config={"a.b": 2, "c.b": 2})
    assert labels(tmp_path) == ["lstm, a.b=1, c.b=1", "lstm, a.b=2, c.b=1", "lstm, a.b=2, c.b=2"]
    for number in range(2):
        config = {"d": number, "a.b": 1, "c.b": 1, "name": "x" * 60}
        write_run(tmp_path / f"long{number}", valid=90 + number, config=config)
    assert labels(tmp_path)[:2] == [f"{'x' * 47}… (1)", f"{'x' * 47}… (2)"]


def test_names_tell_groups_apart_even_with_the_same_config(tmp_path: Path, write_run: Write):
    for name, seed in (("before", 1), ("before", 2), ("after", 1)):
        write_run(tmp_path / f"{name}{seed}", seed=seed, config={"name": name})
    assert sorted(labels(tmp_path)) == ["after", "before"]
    runs, _ = read_runs([("all", tmp_path / "before1"), ("all", tmp_path / "before2")])
    (section,), _ = group_runs(runs)
    assert [(group.name, len(group.runs)) for group in section.groups] == [("all", 2)]


def test_groups_by_a_key_alone(tmp_path: Path, write_run: Write):
    """Each run counts, even if it shares a seed; a repetition does not."""
    for number, (lr, layers) in enumerate([(1, 2), (2, 2), (1, 3), (1, 3)]):
        config = {"optimizer.lr": lr, "model.core.num_layers": layers}
        write_run(tmp_path / str(number), valid=100 + number, config=config)
    runs, _ = read_runs([(None, tmp_path)])
    (section,), (item,) = group_runs(runs, ["model.core.num_layers"])
    found = {group.name: len(group.runs) for group in section.groups}
    assert found == {"num_layers=2": 2, "num_layers=3": 1}
    assert section.groups[0].unit == "run"
    assert item.path == tmp_path / "3"
    for key, hint in (("num_layers", r"$"), ("model.core", r" It has model\.core\.\w+, for")):
        with pytest.raises(UserError, match=rf"--group-by {key}: no run's .* value there\.{hint}"):
            group_runs(runs, [key])


def test_one_window_of_an_epoch_is_not_all_of_it(tmp_path: Path, write_run: Write):
    for seed, limit in enumerate((1, 1.0)):
        write_run(tmp_path / str(seed), seed=seed, config={"trainer.limit_train_batches": limit})
        write_run(tmp_path / f"lr_{seed}", seed=seed, config={"optimizer.lr": limit})
    (section,), _ = grouped(tmp_path)
    assert sorted(len(group.runs) for group in section.groups) == [1, 1, 2]
    assert set(section.differences["trainer.limit_train_batches"]) == {"1", "1.0", "(not set)"}


def test_a_repeated_seed_counts_once(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", seed=1, valid=100)
    write_run(tmp_path / "1", seed=1, valid=101)
    (section,), (item,) = grouped(tmp_path)
    assert [run.scores["valid"].ppl for run in section.groups[0].runs] == [100]
    assert item.path == tmp_path / "1"
    assert item.reason.startswith(f"Repeats seed 1 of {tmp_path / '0'}")


def test_corpora_are_kept_apart_by_their_content(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", results={"data.sha256": "aa"})
    write_run(tmp_path / "1", results={"data.sha256": "bb"})
    write_run(tmp_path / "2", results={"data.sha256": "bb", "data.name": "renamed"}, seed=2)
    sections, _ = grouped(tmp_path)
    assert [section.corpus.sha256 for section in sections] == ["aa", "bb"]
    assert [len(group.runs) for section in sections for group in section.groups] == [1, 2]


def test_groups_are_ordered_by_their_mean_valid_perplexity(tmp_path: Path, write_run: Write):
    for lr, perplexities in ((1.0, (90.0, 130.0)), (2.0, (100.0, 101.0))):
        for seed, valid in enumerate(perplexities):
            config = {"optimizer.lr": lr}
            write_run(tmp_path / f"{lr}_{seed}", seed=seed, valid=valid, config=config)
    (section,), _ = grouped(tmp_path)
    assert [group.name for group in section.groups] == ["lstm, lr=2.0", "lstm, lr=1.0"]
    assert [group.number for group in section.groups] == [1, 2]
    assert section.groups[1].best_run.scores["valid"].ppl == 90


def test_different_protocols_make_different_groups(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", seed=1)
    write_run(tmp_path / "1", seed=2, results={"evaluation.columns": 1})
    (section,), _ = grouped(tmp_path)
    assert len(section.groups) == 2


def finetuned(folder: Path, write_run: Write, *runs: tuple[str, int, str | None]) -> list[int]:
    """Writes runs, given by name, seed and start; returns the sizes of groups, largest first."""
    for number, (name, seed, start) in enumerate(runs):
        config = {"init_from": start and f"../runs/{start}"}
        write_run(folder / "runs" / name, seed=seed, valid=100 + number, config=config)
    (section,), _ = grouped(folder)
    return sorted((len(group.runs) for group in section.groups), reverse=True)


def left_out(folder: Path) -> dict[str, str]:
    return {
        item.path.name: item.reason.replace(f"{folder}/runs/", "") for item in grouped(folder)[1]
    }


def test_finetunings_count_by_the_seeds_of_their_starting_runs(tmp_path: Path, write_run: Write):
    """From three runs, all with the same seed of their own, and then from those once more."""
    parents = [(f"p{seed}", seed, None) for seed in (1, 2, 3)]
    fine = [(f"f{seed}", 1, f"p{seed}") for seed in (1, 2, 3)]
    finer = [(f"g{seed}", 1, f"f{seed}") for seed in (1, 2, 3)]
    assert finetuned(tmp_path, write_run, *parents, *fine, *finer) == [3, 3, 3]
    assert not left_out(tmp_path)


def test_finetunings_of_one_run_are_not_independent(tmp_path: Path, write_run: Write):
    fine = [(f"f{seed}", seed, "p") for seed in (1, 2, 3)]
    finer = [(f"g{seed}", seed, f"f{seed}") for seed in (1, 2)]
    assert finetuned(tmp_path, write_run, ("p", 1, None), *fine, *finer) == [1, 1, 1]
    assert left_out(tmp_path) == {
        "f2": "Starts from the same weights as f1, and is not counted.",
        "f3": "Starts from the same weights as f1, and is not counted.",
        "g2": "Starts from the same weights as g1, and is not counted.",
    }


def test_finetunings_of_a_seed_and_of_its_repetition(tmp_path: Path, write_run: Write):
    parents = [("p1", 1, None), ("p2", 1, None)]
    fine = [("f1", 1, "p1"), ("f2", 2, "p2")]
    assert finetuned(tmp_path, write_run, *parents, *fine) == [1, 1]
    assert set(left_out(tmp_path)) == {"p2", "f2"}


def test_a_run_that_says_it_started_from_itself(tmp_path: Path, write_run: Write):
    assert finetuned(tmp_path, write_run, ("p", 1, "p")) == [1]


def test_finetunings_of_a_name_that_two_runs_have(tmp_path: Path, write_run: Write):
    """Which of them it was is unknown, and not taken to be the one that another names in full."""
    for number, folder in enumerate(("x", "y")):
        write_run(tmp_path / folder / "p", seed=number)
    for seed, start in enumerate(("p", "x/p")):
        write_run(tmp_path / f"f{seed}", seed=seed, valid=90, config={"init_from": start})
    (section,), skipped = grouped(tmp_path)
    assert sorted(len(group.runs) for group in section.groups) == [1, 1, 2]
    assert not skipped


def test_finetunings_of_a_missing_run(tmp_path: Path, write_run: Write):
    fine = [("f1", 1, "gone"), ("f2", 2, "gone"), ("f3", 3, "also_gone")]
    finer = [("g1", 1, "f1"), ("g2", 1, "f2"), ("g3", 1, "f3")]
    assert finetuned(tmp_path, write_run, *fine, *finer) == [1, 1, 1, 1]
    assert set(left_out(tmp_path)) == {"f2", "g2"}

"""What a comparison says first, and what it says is missing."""

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from scipy import stats

from lmbench.report._significance import compare_over_seeds, compare_over_text
from lmbench.report._verdict import Sentence, verdict
from lmbench.report.groups import Section

Write = Callable[..., Path]
Read = Callable[[Path], Section]


def said(section: Section, split: str = "test") -> list[Sentence]:
    over_text, _ = compare_over_text(section, split)
    return verdict(section, [*over_text, *compare_over_seeds(section, split)], split)


def note(run_dir: Path, *overrides: str) -> None:
    """Writes the overrides of a command line as the start of a run does."""
    (run_dir / "overrides.json").write_text(json.dumps({"overrides": overrides}))


def test_which_is_better_by_how_much_and_how_surely(three_models: Path, section_of: Read):
    """Two seeds each; SciPy gives the interval of the difference in nats."""
    first, second = ([math.log(ppl * (1 + 0.01 * s)) for s in (1, 2)] for ppl in (100, 120))
    interval = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    low, high = (100 * (1 - math.exp(-end)) for end in interval)
    (sentence,) = said(section_of(three_models))
    expected = (
        f"16.7% lower test perplexity, 95% interval over seeds {low:.1f} to {high:.1f}%, two "
        "seeds each."
    )
    assert sentence == Sentence(f"a is better than b: {expected}")


def test_the_better_group_is_that_of_the_split_whatever_valid_says(
    tmp_path: Path, write_run: Write, section_of: Read
):
    for model, valid, test in (("a", 100.0, 120.0), ("b", 101.0, 100.0)):
        for seed in (1, 2, 3):
            scores = {"valid": valid + seed / 100, "test": test + seed / 100}
            write_run(tmp_path / f"{model}{seed}", model=model, seed=seed, **scores)
    first, *_ = said(section_of(tmp_path))
    assert first.text.startswith("b is better than a: 16.7% lower test perplexity")
    write_run(tmp_path / "b4", model="b", seed=4, valid=101.04, test=100.04)
    first, *_ = said(section_of(tmp_path))
    assert first.text.startswith("b is better than a: ")
    assert first.text.endswith(", four and three seeds.")


def test_without_records_seeds_are_compared_and_a_command_makes_the_records(
    three_models: Path, section_of: Read
):
    for path in three_models.glob("*/evaluation-*"):
        path.unlink()
    first, second = said(section_of(three_models))
    assert first.text.startswith("a is better than b: ")
    assert "20 articles or, without titles, 20,000 tokens" in second.text
    runs = ",".join(str(three_models / name) for name in ("a1", "a2", "b1", "b2"))
    options = f"run={runs} split=test evaluation.save_tokens=true"
    assert second.command == f"lmbench-evaluate -m {options}"
    (three_models / "b1").rename(three_models / "lr=3 (b)")
    _, second = said(section_of(three_models))
    *_, option, _, _ = shlex.split(second.command or "")
    override = OverridesParser.create().parse_override(option)
    folders = list(override.sweep_string_iterator())
    assert f"{three_models}/lr=3 (b)" in [folder.strip("'") for folder in folders]
    (three_models / "a2/checkpoints/best.ckpt").unlink()
    _, second = said(section_of(three_models))
    assert second == ("This is about other seeds on this text.", None)


def test_records_are_asked_for_where_only_one_group_has_them(three_models: Path, section_of: Read):
    for path in three_models.glob("b?/evaluation-*"):
        path.unlink()
    _, second = said(section_of(three_models))
    runs = ",".join(str(three_models / name) for name in ("b1", "b2"))
    assert (second.command or "").startswith(f"lmbench-evaluate -m run={runs} split=test ")


def test_a_cache_says_nothing_about_the_models_themselves(three_models: Path, section_of: Read):
    for path in three_models.glob("*/evaluation-standard-*"):
        path.rename(path.with_name(path.name.replace("standard", "cache")))
    assert "evaluation.save_tokens=true" in (said(section_of(three_models))[1].command or "")


def test_a_difference_that_other_seeds_may_not_have(
    tmp_path: Path, write_run: Write, write_records: Write, section_of: Read
):
    """Clear over the text, but the seeds of a group are further apart than the groups."""
    for model, shift, tests in (("a", 0.0, (90.0, 120.0)), ("b", 0.1, (100.0, 130.0))):
        for seed, test in enumerate(tests, start=1):
            run_dir = write_run(
                tmp_path / f"{model}{seed}", model=model, seed=seed, valid=100 + shift, test=test
            )
            write_records(run_dir, shift, seed)
    first, second = said(section_of(tmp_path))
    assert first.text.startswith("It is unclear whether a or b is better: a has 8.9% lower test")
    assert "interval over seeds \N{MINUS SIGN}" in first.text
    assert second == Sentence("More seeds may settle it.")  # Hydra's overrides are missing


def test_articles_that_contradict_seeds(three_models: Path, write_records: Write, section_of: Read):
    for run_dir in three_models.glob("a*"):
        write_records(run_dir, 0.5, 3)
    first, second = said(section_of(three_models))
    assert first.text.startswith("It is unclear whether a or b is better: a has 16.7% lower")
    assert second.text == "Other text of this kind might not agree: texts vary a lot."


def test_records_of_some_seeds_do_not_count_against_all_seeds(
    three_models: Path, write_records: Write, section_of: Read
):
    """Those of one seed each say the opposite of all seeds together."""
    for name in ("a1", "b1"):
        write_records(three_models / name, {"a1": 0.5, "b1": 0.0}[name], 3)
    for name in ("a2", "b2"):
        for path in (three_models / name).glob("evaluation-*"):
            path.unlink()
    first, second = said(section_of(three_models))
    assert first.text.startswith("a is better than b: 16.7% lower test perplexity")
    assert (second.command or "").startswith("lmbench-evaluate -m run=")


def test_an_interval_over_the_text_is_said_to_be_one(
    tmp_path: Path, write_run: Write, write_records: Write, section_of: Read
):
    for model, shift in (("a", 0.0), ("b", 0.1)):
        write_records(write_run(tmp_path / model, model=model, valid=100 + shift), shift, 1)
    first, *_ = said(section_of(tmp_path))
    assert "lower test perplexity, 95% interval over articles " in first.text
    assert first.text.endswith(", one seed each.")


def test_significant_by_itself_but_not_among_many_pairs(
    tmp_path: Path, write_run: Write, section_of: Read
):
    """SciPy gives p; with six groups there are fifteen pairs."""
    for model, mean in zip("abcdef", (100.0, 101.0, 101.1, 101.2, 101.3, 101.4), strict=True):
        for seed, shift in ((1, -0.3), (2, 0.0), (3, 0.3)):
            name, ppl = f"{model}{seed}", mean + shift
            write_run(tmp_path / name, model=model, seed=seed, valid=ppl, test=ppl)
    sides = ([math.log(mean + x) for x in (-0.3, 0.0, 0.3)] for mean in (100.0, 101.0))
    p = stats.ttest_ind(*sides, equal_var=False).pvalue
    assert 0.01 < p < 0.05
    first, *_ = said(section_of(tmp_path))
    assert first.text.startswith("It is unclear whether a or b is better: a has 1.0% lower")
    said_p = re.search(r"that may be chance \(p = ([\d.]+), Holm\)", first.text)
    assert said_p
    assert float(said_p[1]) == pytest.approx(11 * p, abs=5e-4)  # the five of a come first


def test_one_seed_each_is_not_enough_and_a_command_trains_more(
    tmp_path: Path, write_run: Write, section_of: Read
):
    for seed, name in ((1, "a"), (2, "b")):
        scores = {"valid": 100 - seed, "test": 100 + 10 * seed}  # the order is that of test
        run_dir = write_run(tmp_path / name, model=name, seed=seed, **scores)
        note(run_dir, f"model={name}", f"seed={seed}", "optimizer={lr: 1}", "data='two words'")
    first, second = said(section_of(tmp_path))
    assert first.text == (
        "a has a 8.3% lower perplexity than b: 110.00 and 120.00 on test, one seed each. A test of "
        "that needs two seeds each."
    )
    assert second.command is not None
    for command, name, seeds in zip(second.command.split("; "), "ba", ("1,3", "2,3"), strict=True):
        program, option, *overrides = shlex.split(command)
        assert (program, option) == ("lmbench-train", "-m")
        expected = [f"model={name}", "optimizer={lr: 1}", "data='two words'", f"seed={seeds}"]
        assert overrides == expected
        OverridesParser.create().parse_overrides(overrides)


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        (["resume=somewhere"], None),
        (["init_from=somewhere", "seed=1"], None),
        (["hparams_search=lstm", "optimizer.lr=3"], None),
        (["sweep_resume=true", "seed=1"], "lmbench-train -m seed=2,3"),
        (["++sweep_resume=true", "seed=1"], "lmbench-train -m seed=2,3"),
        ([], "lmbench-train -m seed=2,3"),
        (["+optimizer.lr=3", "~logger"], "lmbench-train -m +optimizer.lr=3 '~logger' seed=2,3"),
        # From a stranger.
        (["+hydra.callbacks.x._target_=os.system"], None),
        (["model.core._target_=os.system"], None),
        (["model.core={_target_: os.system}"], None),
        (["model=\x1b[2Jlstm"], None),
    ],
)
def test_a_command_is_given_only_if_it_can_train_more_seeds(
    tmp_path: Path, write_run: Write, section_of: Read, overrides: list[str], command: str | None
):
    note(write_run(tmp_path / "a", valid=100), *overrides)
    write_run(tmp_path / "b", model="b", valid=101)
    assert said(section_of(tmp_path))[1].command == command


@pytest.mark.parametrize("devices", [2, [0, 1]])
def test_no_sweep_is_offered_for_runs_on_several_devices(
    tmp_path: Path, write_run: Write, section_of: Read, devices: int | list[int]
):
    config = {"trainer.devices": devices}
    note(write_run(tmp_path / "a", valid=100, config=config), f"trainer.devices={devices}")
    write_run(tmp_path / "b", model="b", valid=101)
    assert said(section_of(tmp_path))[1].command is None


def test_a_group_alone(tmp_path: Path, write_run: Write, section_of: Read):
    write_run(tmp_path / "0", test=None)
    assert said(section_of(tmp_path)) == [
        Sentence(
            "lstm has a perplexity of 120.00 on valid, one seed. There is nothing to compare it "
            "with."
        )
    ]


@pytest.mark.parametrize("key", ["evaluation.columns", "test.num_tokens"])
def test_only_what_was_read_alike_is_compared(
    tmp_path: Path, write_run: Write, section_of: Read, key: str
):
    """Most runs were read alike; the best one was not."""
    for number, value in enumerate((64, 64, 50)):
        results = {key: value, "data.num_tokens": {"valid": 64, "test": 64}}
        config = {"name": f"n{number}"}
        write_run(tmp_path / str(number), valid=100 - number, config=config, results=results)
    first, *_ = said(section_of(tmp_path))
    assert first.text.startswith("n1 and n0 have nearly the same perplexity: ")


def test_no_records_are_asked_for_if_the_text_has_too_few_articles(
    three_models: Path, write_records: Write, section_of: Read
):
    for run_dir in three_models.iterdir():
        write_records(run_dir, 0, 1, num_articles=10)
    assert len(said(section_of(three_models))) == 1

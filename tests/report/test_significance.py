import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lmbench.report import _significance as significance
from lmbench.report._significance import Comparison, compare_over_seeds, compare_over_text
from lmbench.report.groups import Section, group_runs
from lmbench.report.runs import read_runs
from lmbench.report.statistics import NUM_RESAMPLES, SEED, holm

Write = Callable[..., Path]
Read = Callable[[Path], Section]
Nats = Callable[[float, int], np.ndarray]


def pairs(comparisons: list[Comparison]) -> list[str]:
    return [one.first.name + one.second.name for one in comparisons]


def test_the_bootstrap_matches_a_plain_loop(
    three_models: Path,
    monkeypatch: pytest.MonkeyPatch,
    section_of: Read,
    nats: Nats,
):
    monkeypatch.setattr("lmbench.report.statistics.NUM_RESAMPLES", 200)
    comparisons, skipped = compare_over_text(section_of(three_models), "test")
    assert not skipped
    assert pairs(comparisons) == ["ab", "ac", "bc"]
    of_token = {
        model: np.mean(
            [nats(shift, 100 * ord(model) + seed).astype("f8") for seed in (1, 2)], axis=0
        )
        for model, shift in (("a", 0.0), ("b", 0.1), ("c", 0.0))
    }
    articles = np.repeat(np.arange(30), 40)
    draws = np.random.default_rng(SEED).integers(30, size=(200, 30))
    for comparison in comparisons:
        difference = of_token[comparison.first.name] - of_token[comparison.second.name]
        assert comparison.test.difference == pytest.approx(difference.mean(), rel=1e-9)
        resampled = []
        for draw in draws:
            tokens = [difference[article == articles] for article in draw]
            resampled.append(np.concatenate(tokens).mean())
        outside = stats.norm.cdf(-math.sqrt(30 / 29) * stats.t.ppf(0.975, 29))
        low, high = np.quantile(resampled, [outside, 1 - outside])
        assert (comparison.test.low, comparison.test.high) == pytest.approx((low, high), rel=1e-6)
        assert (comparison.unit, comparison.num_units) == ("article", 30)
        assert comparison.num_seeds == (2, 2)


def test_real_differences_hold_and_others_do_not(three_models: Path, section_of: Read):
    a_b, a_c, b_c = compare_over_text(section_of(three_models), "test")[0]
    tail = stats.norm.ppf(1 / (NUM_RESAMPLES + 1))
    smallest = 2 * stats.t.cdf(math.sqrt(29 / 30) * tail, 29)
    assert a_b.test.p == pytest.approx(smallest)
    assert a_b.adjusted_p == pytest.approx(3 * smallest)
    assert a_b.is_significant
    assert replace(a_b, adjusted_p=0.0499).is_significant
    assert not replace(a_b, adjusted_p=0.05).is_significant
    assert b_c.is_significant
    assert b_c.test.difference < 0
    assert not a_c.is_significant
    assert a_c.adjusted_p == a_c.test.p  # the largest of the three


def test_p_is_adjusted_within_an_evaluation(
    three_models: Path, section_of: Read, write_records: Callable[..., Path]
):
    for model in "abc":
        for seed in (1, 2):
            write_records(
                three_models / f"{model}{seed}", 0.0, 100 * ord(model) + seed, name="cache"
            )
    comparisons, _ = compare_over_text(section_of(three_models), "test")
    assert {one.evaluation for one in comparisons[:3]} == {"cache"}
    assert {one.evaluation for one in comparisons[3:]} == {"standard"}
    for family in (comparisons[:3], comparisons[3:]):
        assert [one.adjusted_p for one in family] == holm([one.test.p for one in family])


def test_seeds_are_compared_by_welch(three_models: Path, section_of: Read):
    comparisons = compare_over_seeds(section_of(three_models), "test")
    first, second = ([math.log(ppl * (1 + 0.01 * s)) for s in (1, 2)] for ppl in (100, 120))
    expected = stats.ttest_ind(second, first, equal_var=False)
    assert comparisons[0].test.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert comparisons[0].test.difference == pytest.approx(math.log(1.2))
    assert len(comparisons) == 3


def test_evaluations_are_compared_over_seeds_too(
    tmp_path: Path, write_run: Write, write_evaluation: Write, section_of: Read
):
    """Worse without the cache and better with it; `standard` would repeat the runs' own scores."""
    cached = {"a": [90.0, 91.5, 92.0], "b": [85.0, 85.5, 84.0], "c": [99.0]}
    for model, ppls in cached.items():
        for seed, ppl in enumerate(ppls, start=1):
            valid = 100.0 + seed + 10 * (model == "b")
            run_dir = tmp_path / f"{model}{seed}"
            write_run(run_dir, model=model, seed=seed, valid=valid, test=valid)
            write_evaluation(run_dir, "cache", ppl=ppl)
            write_evaluation(run_dir, "standard", ppl=valid)
    comparisons = compare_over_seeds(section_of(tmp_path), "test")
    assert [one.evaluation for one in comparisons] == [None, "cache"]
    own, cache = (one.test for one in comparisons)
    assert pairs(comparisons) == ["ab", "ab"]
    assert own.difference > 0
    expected = stats.ttest_ind(np.log(cached["b"]), np.log(cached["a"]), equal_var=False)
    assert cache.p == pytest.approx(expected.pvalue, rel=1e-6)
    low, high = expected.confidence_interval()
    assert (cache.low, cache.high) == pytest.approx((low, high), rel=1e-6)
    assert all(one.adjusted_p == one.test.p for one in comparisons)  # one pair in each family


@pytest.mark.parametrize(
    ("of_b", "num_compared"), [({}, 1), ({"columns": 1}, 0)], ids=["alike", "columns"]
)
def test_over_seeds_too_only_what_was_read_alike_is_compared(
    tmp_path: Path,
    write_run: Write,
    write_evaluation: Write,
    section_of: Read,
    of_b: dict,
    num_compared: int,
):
    for model, options in (("a", {}), ("b", of_b)):
        for seed in (1, 2):
            run_dir = write_run(tmp_path / f"{model}{seed}", model=model, seed=seed)
            write_evaluation(run_dir, "cache", ppl=90.0 + seed, **options)
    comparisons = compare_over_seeds(section_of(tmp_path), "test")
    assert sum(one.evaluation == "cache" for one in comparisons) == num_compared


def test_finetuned_runs_are_paired_with_those_they_started_from(
    tmp_path: Path, write_run: Write, section_of: Read
):
    """Parents whose seeds are far apart, two finetunings of each, and unrelated runs."""
    tests = {"p": [100.0, 120.0, 140.0], "f": [98.5, 117.0, 137.0], "g": [97.0, 116.5, 135.0]}
    for name, ppls in tests.items():
        for seed, ppl in enumerate(ppls, start=1):
            config = {} if name == "p" else {"init_from": f"p{seed}", "optimizer.lr": ord(name)}
            write_run(tmp_path / f"{name}{seed}", seed=seed, valid=ppl, test=ppl, config=config)
    for seed, ppl in enumerate([130.0, 150.0], start=1):
        write_run(tmp_path / f"other{seed}", model="other", seed=seed, valid=ppl, test=ppl)
    comparisons = compare_over_seeds(section_of(tmp_path), "test")
    nats = {name: np.log(ppls) for name, ppls in tests.items()}
    order = [("g", "f"), ("g", "p"), ("g", None), ("f", "p"), ("f", None), ("p", None)]
    assert len(comparisons) == len(order)
    for comparison, (first, second) in zip(comparisons, order, strict=True):
        assert (comparison.test_name == "paired t") == (second is not None)
        if second is None:
            expected = stats.ttest_ind(np.log([130, 150]), nats[first], equal_var=False)
        else:
            expected = stats.ttest_rel(nats[second], nats[first])
        assert comparison.test.p == pytest.approx(expected.pvalue, rel=1e-6)
        assert comparison.num_seeds == (3, 3 if second else 2)


def test_finetuned_runs_are_paired_without_those_they_started_from(
    tmp_path: Path, write_run: Write, section_of: Read
):
    """Two finetunings of each of three runs that are not compared."""
    tests = {"f": [100.0, 120.0, 140.0], "g": [99.0, 118.0, 139.0]}
    for name, ppls in tests.items():
        for seed, ppl in enumerate(ppls, start=1):
            config = {"init_from": f"/gone/p{seed}", "name": name}
            write_run(tmp_path / f"{name}{seed}", seed=seed, valid=ppl, test=ppl, config=config)
    section = group_runs(read_runs([(None, tmp_path)])[0], ["name"])[0][0]
    (comparison,) = compare_over_seeds(section, "test")
    expected = stats.ttest_rel(np.log(tests["f"]), np.log(tests["g"]))
    assert comparison.test_name == "paired t"
    assert comparison.test.p == pytest.approx(expected.pvalue, rel=1e-6)


def test_runs_of_one_config_and_seed_are_paired_whatever_they_are_called(
    tmp_path: Path, write_run: Write
):
    tests = {"old": [100.0, 120.0, 140.0], "new": [99.0, 118.0, 139.0]}
    for name, ppls in tests.items():
        for seed, ppl in enumerate(ppls, start=1):
            write_run(tmp_path / name / str(seed), seed=seed, valid=ppl, test=ppl)
    (section,), _ = group_runs(read_runs([(name, tmp_path / name) for name in tests])[0])
    (comparison,) = compare_over_seeds(section, "test")
    assert comparison.test_name == "paired t"
    expected = stats.ttest_rel(np.log(tests["old"]), np.log(tests["new"]))
    assert comparison.test.p == pytest.approx(expected.pvalue, rel=1e-6)


def test_runs_that_go_back_to_the_same_weights_are_one_value(tmp_path: Path, write_run: Write):
    """Two seeds, each finetuned, all in one group by the key, beside another group of three."""
    for seed in (1, 2):
        write_run(tmp_path / f"p{seed}", seed=seed, test=100.0 + seed)
        config = {"init_from": f"p{seed}"}
        write_run(tmp_path / f"f{seed}", seed=seed, test=90.0 + seed, config=config)
    for seed in (1, 2, 3):
        config = {"optimizer.lr": 9}
        write_run(tmp_path / f"o{seed}", seed=seed, valid=200, test=120.0 + seed, config=config)
    (section,), _ = group_runs(read_runs([(None, tmp_path)])[0], ["optimizer.lr"])
    (comparison,) = compare_over_seeds(section, "test")
    assert comparison.num_seeds == (2, 3)
    nats = [np.log([(100.0 + seed), (90.0 + seed)]).mean() for seed in (1, 2)]
    expected = np.log([121, 122, 123]).mean() - np.mean(nats)
    assert comparison.test.difference == pytest.approx(expected)


@pytest.mark.parametrize("starts", [("p1", "p2", "p3"), ("q1", "q2", "q3"), ("p1", "q2", "q3")])
def test_runs_that_start_from_a_repeated_seed_are_still_paired(
    tmp_path: Path, write_run: Write, section_of: Read, starts: tuple[str, ...]
):
    """q repeats p seed by seed, and is not counted itself."""
    parents, children = [100.0, 120.0, 140.0], [98.5, 117.0, 137.0]
    for name in ("p", "q"):
        for seed, ppl in enumerate(parents, start=1):
            write_run(tmp_path / f"{name}{seed}", seed=seed, valid=ppl, test=ppl)
    for seed, (start, ppl) in enumerate(zip(starts, children, strict=True), start=1):
        config = {"init_from": start}
        write_run(tmp_path / f"f{seed}", seed=seed, valid=ppl, test=ppl, config=config)
    (comparison,) = compare_over_seeds(section_of(tmp_path), "test")
    expected = stats.ttest_rel(np.log(parents), np.log(children))
    assert comparison.test_name == "paired t"
    assert comparison.test.p == pytest.approx(expected.pvalue, rel=1e-6)


def test_a_paired_test_skips_runs_without_a_partner(
    tmp_path: Path, write_run: Write, section_of: Read
):
    parents, children = [100.0, 120.0, 190.0], [98.5, 117.0]
    for seed, ppl in enumerate(parents, start=1):
        write_run(tmp_path / f"p{seed}", seed=seed, valid=ppl, test=ppl)
    for seed, ppl in enumerate(children, start=1):
        config = {"init_from": f"p{seed}"}
        write_run(tmp_path / f"f{seed}", seed=seed, valid=ppl, test=ppl, config=config)
    (comparison,) = compare_over_seeds(section_of(tmp_path), "test")
    expected = stats.ttest_rel(np.log(parents[:2]), np.log(children))
    assert comparison.test.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert comparison.num_seeds == (2, 2)


def test_one_shared_origin_is_not_paired(tmp_path: Path, write_run: Write, section_of: Read):
    """As when seeds 1 to 3 and 3 to 5 of one config have two names."""
    of_seed = {"a": {1: 100.0, 2: 101.0, 3: 102.0}, "b": {3: 120.0, 4: 122.0, 5: 121.0}}
    for name, ppls in of_seed.items():
        for seed, ppl in ppls.items():
            run_dir = tmp_path / name / str(seed)
            write_run(run_dir, seed=seed, valid=ppl, test=ppl, config={"name": name})
    (comparison,) = compare_over_seeds(section_of(tmp_path), "test")
    nats = [np.log(list(ppls.values())) for ppls in of_seed.values()]
    expected = stats.ttest_ind(*nats, equal_var=False)
    assert comparison.test_name == "Welch"
    assert comparison.test.p == pytest.approx(expected.pvalue, rel=1e-6)


def test_the_other_split(three_models: Path, section_of: Read):
    section = section_of(three_models)
    assert compare_over_text(section, "valid") == ([], [])
    expected = np.mean([math.log(121 / 101), math.log(122 / 102)])
    assert compare_over_seeds(section, "valid")[0].test.difference == pytest.approx(expected)


def test_records_of_other_tokens_are_not_compared(
    three_models: Path, write_run: Write, write_records: Write, section_of: Read
):
    write_records(write_run(three_models / "d", model="d", valid=140), 0, 5, num_tokens=1_199)
    write_records(write_run(three_models / "e", model="e", valid=150), 0, 5, name="cache")
    comparisons, _ = compare_over_text(section_of(three_models), "test")
    assert pairs(comparisons) == ["ab", "ac", "bc"]


CACHE = {"window": 500, "theta": 0.5, "interpolation": 0.1, "warmup": False}


def tuned(window: int) -> dict:
    """The settings and the grid of a cache for which tuning chose this window."""
    grid = [{**CACHE, "window": size, "nll": 4.0} for size in (500, 2000)]
    return {
        "settings": {"cache": CACHE | {"window": window}},
        "tuned": {"num_tokens": None, "cache": grid},
    }


@pytest.mark.parametrize(
    ("of_b", "of_c", "expected"),
    [
        ({}, {}, ["ab", "ac", "bc"]),
        ({"columns": 1}, {"columns": 1}, ["bc"]),
        ({"settings": {"cache": CACHE}}, {"settings": {"cache": CACHE | {"theta": 0.6}}}, []),
        (tuned(500), tuned(2000), ["bc"]),
        (tuned(500), {"settings": {"cache": CACHE}}, []),
    ],
    ids=["alike", "columns", "settings", "both tuned", "one tuned"],
)
def test_only_what_was_read_alike_is_compared(
    three_models: Path,
    write_records: Write,
    section_of: Read,
    of_b: dict,
    of_c: dict,
    expected: list[str],
):
    for model, options in (("b", of_b), ("c", of_c)):
        for seed in (1, 2):
            write_records(three_models / f"{model}{seed}", 0.1, seed, **options)
    comparisons, skipped = compare_over_text(section_of(three_models), "test")
    assert pairs(comparisons) == expected
    assert not skipped


def test_of_many_groups_the_best_are_compared(
    three_models: Path, section_of: Read, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(significance, "MOST_COMPARED", 2)
    found = section_of(three_models)
    assert pairs(compare_over_seeds(found, "test")) == ["ab"]
    assert pairs(compare_over_text(found, "test")[0]) == ["ab"]


def test_a_group_whose_seeds_were_not_read_alike_is_not_compared(
    three_models: Path, write_records: Write, section_of: Read
):
    write_records(three_models / "a2", 0, 5, columns=65)
    found = section_of(three_models)
    comparisons, _ = compare_over_text(found, "test")
    assert pairs(comparisons) == ["bc"]
    means = {group.name: group.perplexity("test", "standard") for group in found.groups}
    assert [name for name, mean in means.items() if mean is None] == ["a"]


def test_records_that_cannot_be_used_are_named(
    three_models: Path, write_records: Write, section_of: Read
):
    cut = three_models / "a1/evaluation-standard-test.parquet"
    cut.write_bytes(cut.read_bytes()[:-4])
    write_records(three_models / "b2", 0, 5, num_tokens=1_199)
    comparisons, skipped = compare_over_text(section_of(three_models), "test")
    assert [one.num_seeds for one in comparisons] == [(1, 1), (1, 2), (1, 2)]
    assert [item.path.parent.name for item in skipped] == ["a1", "b2"]
    assert "not those of the other seeds' records" in skipped[1].reason


@pytest.mark.parametrize(("num_articles", "is_enough"), [(1, False), (15, False), (20, True)])
def test_a_text_with_few_articles_is_not_tested(
    three_models: Path,
    write_run: Write,
    write_records: Write,
    section_of: Read,
    num_articles: int,
    is_enough: bool,
):
    """However clear the difference; runs on another text, with more articles, are still tested."""
    for model, shift, valid in (("d", 0.0, 140), ("e", 0.5, 150)):
        run_dir = write_run(three_models / model, model=model, valid=valid)
        write_records(run_dir, shift, valid, num_articles=num_articles)
    comparisons, skipped = compare_over_text(section_of(three_models), "test")
    assert pairs(comparisons) == ["ab", "ac", "bc", *(["de"] if is_enough else [])]
    assert [item.path.parent.name for item in skipped] == ([] if is_enough else ["d", "e"])
    assert all(f"there are only {num_articles}." in item.reason for item in skipped)


def test_groups_that_were_not_evaluated_alike_are_not_compared(
    tmp_path: Path, write_run: Write, section_of: Read
):
    for number in range(4):
        results = {"evaluation.columns": number // 2}
        test = 100.0 + number
        write_run(tmp_path / str(number), seed=number, test=test, results=results)
    assert compare_over_seeds(section_of(tmp_path), "test") == []

from collections.abc import Callable
from pathlib import Path

from lmbench.report.conclusions import conclusions
from lmbench.report.groups import Section
from lmbench.report.significance import compare_over_seeds, compare_over_text

Write = Callable[..., Path]
Read = Callable[[Path], Section]


def said(section: Section) -> str:
    over_text, _ = compare_over_text(section, "test")
    return " ".join(conclusions(section, over_text, compare_over_seeds(section, "test"), "test"))


def test_both_must_hold(three_models: Path, section_of: Read):
    text = said(section_of(three_models))
    assert text.startswith("1 a has the lowest valid perplexity: 101.50 ± ")
    assert "which is 20.0% higher." in text
    assert "nats per token holds (adjusted p < 0.001)" in text
    # The second of three pairs' p, times two: SciPy's ttest_ind gives 0.00146.
    assert (
        "Over seeds, on test, the difference of 0.1823 nats per token holds (adjusted p = 0.003)"
    ) in text
    assert text.endswith("Both hold: 1 a is better than 2 b.")


def test_a_cache_says_nothing_of_the_models_themselves(three_models: Path, section_of: Read):
    for path in three_models.glob("*/evaluation-standard-*"):
        path.rename(path.with_name(path.name.replace("standard", "cache")))
    section = section_of(three_models)
    assert len(compare_over_text(section, "test")[0]) == 3
    assert "Over the text, the two are not tested: no standard records" in said(section)


def test_one_of_them_alone_is_not_enough(three_models: Path, section_of: Read):
    for path in three_models.glob("*/evaluation-*"):
        path.unlink()
    text = said(section_of(three_models))
    assert "Over the text, the two are not tested: no standard records" in text
    assert text.endswith("So it is not shown that either is better.")


def test_a_difference_that_other_seeds_may_not_have(
    tmp_path: Path, write_run: Write, write_records: Write, section_of: Read
):
    """Clear over the text, but the seeds of a group lie further apart than the groups."""
    for model, shift, tests in (("a", 0.0, (90.0, 120.0)), ("b", 0.1, (100.0, 130.0))):
        for seed, test in enumerate(tests):
            run_dir = write_run(
                tmp_path / f"{model}{seed}", model=model, seed=seed, valid=100 + shift, test=test
            )
            write_records(run_dir, shift, seed)
    text = said(section_of(tmp_path))
    assert "nats per token holds (adjusted p < 0.001)" in text
    assert "nats per token does not hold (adjusted p = 0." in text
    assert text.endswith("Not both hold: it is not shown that either is better.")


def test_tests_that_point_in_opposite_directions(
    three_models: Path, write_records: Write, section_of: Read
):
    for run_dir in three_models.glob("a*"):
        write_records(run_dir, 0.5, 3)
    assert said(section_of(three_models)).endswith(
        "The two point in opposite directions: it is not shown that either is better."
    )


def test_a_text_of_few_articles_shows_nothing(
    three_models: Path, write_records: Write, section_of: Read
):
    """Though the difference holds over seeds, and is the same in every article."""
    for run_dir in three_models.iterdir():
        shift = 0.5 if run_dir.name.startswith("b") else 0.0
        write_records(run_dir, shift, ord(run_dir.name[1]), num_articles=6)
    text = said(section_of(three_models))
    assert "Over the test text, for these trained models (standard), the difference of 0." in text
    assert "nats per token has no verdict: 6 articles are too few, it takes 20." in text
    assert (
        "Over seeds, on test, the difference of 0.1823 nats per token holds (adjusted p = 0.0"
        in text
    )
    assert text.endswith("So it is not shown that either is better.")


def test_models_that_were_not_read_alike(
    three_models: Path, write_records: Write, section_of: Read
):
    for seed in (1, 2):
        write_records(three_models / f"b{seed}", 0.1, seed, columns=1)
    text = said(section_of(three_models))
    assert "no standard records are of the same tokens, read alike." in text
    assert text.endswith("So it is not shown that either is better.")


def test_a_group_alone_and_a_single_seed(tmp_path: Path, write_run: Write, section_of: Read):
    write_run(tmp_path / "0", test=None)
    assert said(section_of(tmp_path)) == (
        "1 lstm has the lowest valid perplexity: 120.00, a single seed. It was not tested. There "
        "is no other group to compare it with."
    )


def test_the_best_is_sought_among_those_that_were_evaluated_as_most(
    tmp_path: Path, write_run: Write, section_of: Read
):
    for number, columns in enumerate((1, 64, 64)):
        config, results = {"optimizer.lr": number}, {"evaluation.columns": columns}
        write_run(tmp_path / str(number), valid=100 + number, config=config, results=results)
    text = said(section_of(tmp_path))
    assert text.startswith("2 lstm lr=1 has the lowest valid perplexity: 101.00, a single seed.")
    assert "(Set aside, as evaluated otherwise: 1.)" in text


def test_a_run_that_was_scored_in_part_is_not_the_best(
    tmp_path: Path, write_run: Write, section_of: Read
):
    for number, num_tokens in enumerate((50, 99, 99)):
        results = {"data.num_tokens": {"valid": 100, "test": 100}, "test.num_tokens": num_tokens}
        config = {"optimizer.lr": number}
        write_run(tmp_path / str(number), valid=100 + number, config=config, results=results)
    text = said(section_of(tmp_path))
    assert text.startswith("2 lstm lr=1 has the lowest valid perplexity: 101.00, a single seed.")
    assert "(Set aside, as evaluated otherwise: 1.)" in text

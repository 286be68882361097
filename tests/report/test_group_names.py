"""What tells configs apart."""

import numpy as np
import pytest

from lmbench.report._group_names import differing_values, telling_keys, unique_names


def test_only_values_that_differ_are_listed_and_short_keys_come_first():
    configs = [{"model.size": 8, "lr": 1.0, "same": 3}, {"model.size": 9, "lr": 0.5, "same": 3}]
    found = differing_values(configs)
    assert list(found.items()) == [("lr", ("1.0", "0.5")), ("model.size", ("8", "9"))]


@pytest.mark.parametrize("seed", range(20))
def test_telling_keys_separate_as_much_as_all_keys_and_one_is_chosen_if_enough(seed: int):
    generator = np.random.default_rng(seed)
    columns = {
        f"key{index}": [str(value) for value in generator.integers(0, 3, 6)] for index in range(6)
    }
    if seed % 2:
        columns["key6"] = list("abcdef")

    def num_parts(keys: tuple[str, ...]) -> int:
        return len(set(zip(*(columns[key] for key in keys), strict=True)))

    found = telling_keys(columns)
    most = num_parts(tuple(columns))
    assert num_parts(found) == most
    assert (len(found) == 1) == bool(seed % 2)


def test_where_nothing_differs_there_are_no_telling_keys():
    assert telling_keys({"a": ["1", "1"], "b": ["2", "2"]}) == ()
    assert telling_keys({}) == ()


def test_numbers_that_a_search_drew_are_rounded():
    drawn = [2.000778174008002, 0.00123456789, 1.23456789e-05, 0.00100000001, 30]
    names = unique_names(["a"] * 5, differing_values([{"optimizer.lr": lr} for lr in drawn]))
    assert names == ["a, lr=2.001", "a, lr=0.001235", "a, lr=1.235e-05", "a, lr=0.001", "a, lr=30"]
    near = ("2.000778174", "2.000778175")
    assert unique_names(["a"] * 2, {"lr": near}) == [f"a, lr={text}" for text in near]

"""What tells configs apart."""

import itertools

import numpy as np
import pytest

from lmbench.report.differences import NOT_SET, differing_values, telling_keys


def test_only_values_that_differ_are_there_and_short_keys_come_first():
    configs = [{"model.size": 8, "lr": 1.0, "same": 3}, {"model.size": 9, "lr": 0.5, "same": 3}]
    found = differing_values(configs)
    assert list(found.items()) == [("lr", ("1", "0.5")), ("model.size", ("8", "9"))]


def test_a_key_that_a_config_lacks_is_no_null():
    assert differing_values([{"a": None}, {}]) == {"a": ("null", NOT_SET)}


def test_texts_are_equal_where_values_are():
    values = [0.1, 0.1 + 1e-9, 0.1, True, False, None, "x" * 200, "x" * 100 + "y" + "x" * 99]
    (texts,) = differing_values([{"a": value} for value in values]).values()
    for (one, text), (other, other_text) in itertools.combinations(
        zip(values, texts, strict=True), 2
    ):
        assert (text == other_text) == (one == other)


@pytest.mark.parametrize("seed", range(20))
def test_telling_keys_part_as_far_as_all_keys_and_none_of_fewer_does(seed: int):
    generator = np.random.default_rng(seed)
    columns = {
        f"key{index}": [str(value) for value in generator.integers(0, 3, 6)] for index in range(6)
    }

    def num_parts(keys: tuple[str, ...]) -> int:
        return len(set(zip(*(columns[key] for key in keys), strict=True)))

    found = telling_keys(columns)
    most = num_parts(tuple(columns))
    assert num_parts(found) == most
    if len(found) <= 3:
        for size in range(1, len(found)):
            for keys in itertools.combinations(columns, size):
                assert num_parts(keys) < most


def test_where_nothing_differs_no_key_tells():
    assert telling_keys({"a": ["1", "1"], "b": ["2", "2"]}) == ()
    assert telling_keys({}) == ()

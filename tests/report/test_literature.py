import pytest

from lmbench.errors import UserError
from lmbench.report.literature import PUBLISHED, choose_published, published_table


def test_none_all_and_some():
    assert choose_published(None) == []
    assert choose_published(["all", "mos"]) == list(PUBLISHED.values())
    assert choose_published(["doc", "mos", "doc"]) == [PUBLISHED["doc"], PUBLISHED["mos"]]


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"there is no gpt\. Choose from lstm_200, lstm_650"):
        choose_published(["gpt"])


def test_each_has_its_source_and_the_digits_that_were_published():
    titles, rows, _ = published_table([PUBLISHED["awd_lstm"], PUBLISHED["lstm_200"]]).shown()
    assert titles[1:4] == ["valid / test", "with cache", "with dynamic evaluation"]
    assert rows[0][1:5] == ["68.6 / 65.8", "53.8 / 52.0", "46.4 / 44.3", "33M"]
    assert rows[1][1:5] == ["105.97 / 100.33", "", "", ""]
    assert all("arXiv" in row[5] or "issue" in row[5] for row in rows)


def test_test_is_better_than_valid_in_all_of_them():
    for one in PUBLISHED.values():
        for pair in filter(None, (one.standard, one.cache, one.dynamic)):
            valid, test = map(float, pair)
            assert test < valid

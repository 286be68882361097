import pytest

from lmbench.errors import UserError
from lmbench.report.published import PUBLISHED, choose_published, published_table


def test_none_all_and_some():
    assert choose_published(None) == []
    assert choose_published(["all"]) == choose_published([]) == list(PUBLISHED.values())
    assert choose_published(["doc", "mos", "doc"]) == [PUBLISHED["doc"], PUBLISHED["mos"]]


def test_an_unknown_name():
    with pytest.raises(UserError, match=r"^--published knows no gpt\. It knows lstm_200, "):
        choose_published(["mos", "gpt"])


def test_each_has_its_source_and_the_digits_that_were_published():
    rows = published_table(PUBLISHED.values()).rows
    assert len(rows) == len(PUBLISHED)
    of_user = "a user's single run, pytorch/examples issue 281"
    assert all(row[1].startswith(("paper arXiv ", "repository ", of_user)) for row in rows)
    (lstm,) = [row for row in rows if row[0].startswith("LSTM 650")]
    assert lstm[1] == of_user
    assert lstm[2:] == ["91.70 / 86.68", "—", "—", "—"]
    (paper,) = [row for row in rows if row[0] == "AWD-LSTM"]
    assert paper[2:] == ["68.6 / 65.8", "53.8 / 52.0", "46.4 / 44.3", "33M"]


def test_test_is_better_than_valid_in_all_of_them():
    for result in PUBLISHED.values():
        for valid, test in result.scores.values():
            assert 30 < float(test) < float(valid) < 110

"""What a config may name to be called."""

import pytest

from lmbench.errors import UserError
from lmbench.run.targets import ALLOWED_TARGETS, ALLOWED_TARGETS_VARIABLE, refuse_calls

CORE = "lmbench.model.core.LSTM"
CORPUS = "lmbench.data.synthetic.make_corpus"


def test_targets_of_lmbench_are_allowed_in_their_places():
    config = {
        "data": {"_target_": CORPUS},
        "model": {"core": {"_target_": CORE}},
        "logger": [{"_target_": "lmbench.callbacks.metrics_csv.MetricsCSV"}],
    }
    refuse_calls(config, "config.yaml")


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"a": [{"b": {"_target_": "os.system"}}]}, "a[0].b._target_ names os.system"),
        ({"a": {"_target_": {"x": 1}}}, "a._target_ names {'x': 1}"),
        ({"a": "${oc.env:HOME}"}, "a is an interpolation"),
        ({"model": {"head": {"_target_": CORPUS}}}, "belongs at data alone"),
        ({"model": {"head": {"_target_": CORE}}}, "does not belong there"),
    ],
)
def test_all_else_is_refused_with_its_key(config: dict, part: str):
    with pytest.raises(UserError) as error:
        refuse_calls(config, "config.yaml")
    assert str(error.value).startswith("config.yaml: ")
    assert part in str(error.value)


def test_the_environment_can_allow_more(monkeypatch: pytest.MonkeyPatch):
    config = {"model": {"core": {"_target_": "mine.Core"}}}
    assert "mine.Core" not in ALLOWED_TARGETS
    with pytest.raises(UserError, match=f"{ALLOWED_TARGETS_VARIABLE}=mine.Core"):
        refuse_calls(config, "config.yaml")
    monkeypatch.setenv(ALLOWED_TARGETS_VARIABLE, "other.Thing, mine.Core")
    refuse_calls(config, "config.yaml")

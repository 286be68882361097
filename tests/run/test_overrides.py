"""The overrides with which a run goes on."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from lmbench.errors import UserError
from lmbench.run.overrides import apply_override, override_as_config, places_of, set_value


@pytest.fixture
def config() -> DictConfig:
    values = {"trainer": {"max_epochs": 3}, "data": {"path": None}, "callbacks": {"x": {"n": 1}}}
    return OmegaConf.create(values)


def test_a_value_of_any_depth_is_set(config: DictConfig):
    apply_override("trainer.max_epochs=5", config)
    apply_override("callbacks.x.n=[1,2]", config)
    apply_override("+trainer.max_time=00:01:00:00", config)
    assert config.trainer == {"max_epochs": 5, "max_time": "00:01:00:00"}
    assert config.callbacks.x.n == [1, 2]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("trainer.min_epochs=1", "the run has no trainer.min_epochs"),
        ("+logger.x.y=1", "the run has no logger.x.y"),
        ("~trainer.max_epochs", "does not go with resume"),
        ("data.path=/x", "does not go with resume"),
        ("seed=2", "does not go with resume"),
        ("trainer=long", "does not go with resume"),
        ("+callbacks.x._target_=os.system", "only plain values"),
        ("[callbacks].x.n=2", "only plain values"),
        ("callbacks.x.n=${oc.env:HOME}", "is an interpolation"),
        ("callbacks.x={_target_: os.system}", "names os.system"),
    ],
)
def test_what_would_make_it_another_run_is_refused(config: DictConfig, override: str, part: str):
    before = config.copy()
    with pytest.raises(UserError) as error:
        apply_override(override, config)
    assert part in str(error.value)
    assert config == before


def test_places_are_set_apart(config: DictConfig, tmp_path: Path):
    given = ["seed=1", f"data.path={tmp_path}", "+data.cache_dir=x", "trainer.max_epochs=2"]
    assert places_of(given) == given[1:3]
    set_value(f"data.path={tmp_path}", config)
    assert config.data.path == str(tmp_path)


@pytest.mark.parametrize("text", ["1:30", "00:00:00:05", "190:20:30"])
def test_a_time_stays_text(text: str):
    """YAML 1.1 takes it for a number to the base of 60."""
    assert override_as_config(f"a.b={text}") == {"a": {"b": text}}

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lmbench.config import conf_dir, flatten, write_run_config
from lmbench.errors import UserError
from lmbench.report.configs import read_config
from lmbench.run.config import resumed_config
from lmbench.run.overrides import record_overrides


def composed(tmp_path: Path) -> dict:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", ["experiment=quickstart_awd_lstm", "resume=null"])
    write_run_config(config, tmp_path)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain


def without_lists(flat: dict) -> dict:
    return {key: value for key, value in flat.items() if not isinstance(value, list)}


def test_a_config_is_read_as_omegaconf_reads_it(tmp_path: Path):
    expected = flatten(composed(tmp_path))
    found = read_config(tmp_path)
    assert {key: value for key, value in found.items() if "[" not in key} == without_lists(expected)
    assert len(found) > 60


def test_items_of_lists_have_keys(tmp_path: Path, write_run: Callable[..., Path]):
    found = read_config(write_run(tmp_path / "run"))
    assert (found["optimizer.betas[0]"], found["optimizer.betas[1]"]) == (0.9, 0.99)
    assert found["optimizer.weight_decay"] == 1.2e-6


def test_what_resumes_have_changed_belongs_to_the_config(tmp_path: Path):
    composed(tmp_path)
    overrides = ["trainer.max_epochs=40", "loss.ar_alpha=1e-1", "+callbacks.nt_asgd.more=[1,2]"]
    record_overrides(tmp_path, overrides[:1])
    record_overrides(tmp_path, overrides[1:])
    expected = flatten(OmegaConf.to_container(resumed_config(tmp_path, [])[0]))
    found = read_config(tmp_path)
    assert {key: value for key, value in found.items() if "[" not in key} == without_lists(expected)
    assert (found["trainer.max_epochs"], found["loss.ar_alpha"]) == (40, 0.1)
    assert found["callbacks.nt_asgd.more[1]"] == 2


@pytest.mark.parametrize("time", ["1:00:00:00", "00:00:05:00"])
def test_a_time_that_a_resume_has_set_is_a_text(tmp_path: Path, time: str):
    composed(tmp_path)
    record_overrides(tmp_path, [f"trainer.max_time={time}"])
    assert read_config(tmp_path)["trainer.max_time"] == time


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "it holds no keys"),
        ("[1, 2]", "it holds no keys"),
        ("a: [1", "while parsing a flow sequence"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", "could not determine a constructor"),
        (BOMB, "it holds more than 10,000 values"),
        ("a: &a {b: *a}", "it holds more than 10,000 values"),
        ("a: 2026-13-45", "month must be in"),
        ("[" * 100_000, "while increasing flow level exceeded"),
    ],
    ids=["empty", "list", "cut", "call", "merge", "bomb", "circle", "date", "deep"],
)
def test_damaged_configs_are_named(tmp_path: Path, text: str, part: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"config\.yaml is damaged: {part}"):
        read_config(tmp_path)


def test_a_config_that_is_missing(tmp_path: Path):
    with pytest.raises(UserError, match=r"Has no config\.yaml: it failed before it began"):
        read_config(tmp_path)


@pytest.mark.parametrize("line", ["{", '{"overrides": 3}', json.dumps({"overrides": ["a.b=[1"]})])
def test_damaged_overrides(tmp_path: Path, write_run: Callable[..., Path], line: str):
    run_dir = write_run(tmp_path / "run")
    (run_dir / "overrides.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"(overrides\.jsonl cannot be read|config\.yaml is dam)"):
        read_config(run_dir)

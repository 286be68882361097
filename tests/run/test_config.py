"""Run directories as a stranger may send them, what a resume may change, and a start from a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from small import SMALL, composed, config_of, set_value

from lmbench.cli.train import train
from lmbench.errors import UserError
from lmbench.run.changes import RESUMABLE, apply_init_from, resumed_config
from lmbench.run.choice import ChosenRun
from lmbench.run.config import (
    plain_config,
    read_run_config,
    replace_run_config,
    write_run_config,
)
from lmbench.run.config import (
    set_value as set_in_run,
)
from lmbench.run.directory import alone_in, is_run
from lmbench.run.targets import MODEL_PLACES, flatten


def write_run(folder: Path, *overrides: str) -> Path:
    folder.mkdir()
    write_run_config(config_of(*overrides), folder)
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", "model=lstm", *SMALL)


def change(run_dir: Path, key: str, value: object) -> None:
    path = run_dir / "config.yaml"
    config = yaml.safe_load(path.read_text("utf-8"))
    set_value(config, key, value)
    path.write_text(yaml.safe_dump(config), "utf-8")


def files_below(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refusal(tmp_path: Path, act: Callable[[], object]) -> str:
    """The error message; nothing may have been written anywhere."""
    before = files_below(tmp_path)
    with pytest.raises(UserError) as error:
        act()
    assert files_below(tmp_path) == before
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_runs_config_is_resolved_and_written_once(tmp_path: Path):
    path = tmp_path / "config.yaml"
    composed_config = composed("model=awd_lstm", "data=synthetic", "seed=7")
    write_run_config(plain_config(composed_config), tmp_path)
    text = path.read_text("utf-8")
    assert "${" not in text
    resolved: Any = OmegaConf.to_container(composed_config, resolve=True)
    of_the_command = {key: resolved.pop(key) for key in ("resume", "sweep_resume")}
    assert of_the_command == {"resume": None, "sweep_resume": False}
    assert read_run_config(tmp_path) == resolved
    with pytest.raises(UserError, match=r"holds a run already.*To continue it: .*resume="):
        write_run_config(config_of("seed=8"), tmp_path)
    assert path.read_text("utf-8") == text
    replace_run_config(config_of("seed=8"), tmp_path)
    assert read_run_config(tmp_path)["seed"] == 8


@pytest.mark.parametrize("value", [1e-6, 1e22, -2.5e-8, 1e5, "1e-6", "1:30:00", "yes", "0o7", ""])
def test_a_value_is_read_as_it_was_written(run_dir: Path, value: float | str):
    replace_run_config(read_run_config(run_dir) | {"seed": value}, run_dir)
    found = read_run_config(run_dir)["seed"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", {"_target_": "os.mkdir", "path": "was here"}),
        ("optimizer._target_", "os.mkdir"),
        ("optimizer._target_", "lmbench.run.directory.shutil.rmtree"),
        ("optimizer._target_", " lmbench.optim.ASGD"),
        ("optimizer._target_", ["os.mkdir"]),
        ("model.head._target_", "lmbench.data.corpus.load_text"),
        ("scheduler", {"_target_": "os.mkdir"}),
        ("callbacks.evil", {"_target_": "os.mkdir", "path": "was here"}),
        ("logger.evil", {"_target_": "lightning.pytorch.loggers.tensorboard.os.mkdir"}),
    ],
    ids=str,
)
def test_a_strangers_class_is_refused(
    run_dir: Path, tmp_path: Path, key: str, value: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    change(run_dir, key, value)
    message = refusal(tmp_path, lambda: resumed_config(run_dir, []))
    assert key.removesuffix("._target_") in message
    assert "LMBENCH_ALLOWED_TARGETS=" in message


def test_only_what_a_command_builds_is_checked(run_dir: Path):
    change(run_dir, "callbacks.mine", {"_target_": "my.Callback"})
    change(run_dir, "nobody.reads", {"_target_": "os.mkdir"})
    assert read_run_config(run_dir, (*MODEL_PLACES, "data"))["callbacks"]["mine"]
    with pytest.raises(UserError, match=r"callbacks\.mine names my\.Callback"):
        read_run_config(run_dir)


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a ${data.num_words} b", ["${x}"]], ids=str)
def test_an_interpolation_is_refused(run_dir: Path, tmp_path: Path, value: Any):
    for key in ("model.name", "nobody.reads"):
        change(run_dir, key, value)
        message = refusal(tmp_path, lambda: read_run_config(run_dir))
        assert f"{key}{'[0]' * isinstance(value, list)} is an interpolation" in message
        change(run_dir, key, None)


def test_a_runs_cache_is_that_of_this_machine(run_dir: Path):
    loader = {"_target_": "lmbench.data.corpus.load_text", "path": "p", "cache_dir": "/victim"}
    change(run_dir, "data", loader)
    assert read_run_config(run_dir)["data"]["cache_dir"] is None
    found = read_run_config(run_dir)
    set_in_run(found, "data.cache_dir=mine", "data.cache_dir", "mine")
    assert (found["data"]["path"], found["data"]["cache_dir"]) == ("p", "mine")
    change(run_dir, "data", {"_target_": "lmbench.data.synthetic.make_corpus"})
    with pytest.raises(UserError, match=r"^data\.cache_dir=mine: .* has no data\.cache_dir"):
        set_in_run(read_run_config(run_dir), "data.cache_dir=mine", "data.cache_dir", "mine")


def test_what_is_not_a_run_is_refused(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / ("x" * 300)):
        assert not is_run(folder)
        assert "not the directory of a run" in refusal(
            tmp_path, lambda f=folder: resumed_config(f, [])
        )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"data: {}\nmodel: 1\n",
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_file_that_is_not_a_config_is_refused(
    run_dir: Path, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (run_dir / "config.yaml").write_bytes(content)
    assert "config.yaml" in refusal(tmp_path, lambda: read_run_config(run_dir))


@pytest.mark.parametrize(
    "override",
    [
        "model.core.hidden_size=9",
        "model=awd_lstm",
        "callbacks.nt_asgd.average_from_start=true",
        "~callbacks.progress",
        "trainer.max_epochs",
    ],
)
def test_what_would_make_it_another_run_is_refused(run_dir: Path, tmp_path: Path, override: str):
    message = refusal(tmp_path, lambda: resumed_config(run_dir, [override]))
    assert message.startswith(f"{override} cannot be changed in a resume")


@pytest.mark.parametrize(
    ("before", "after", "is_taken"),
    [
        ("32-true", "bf16-mixed", True),
        (32, "16-mixed", True),
        ("bf16-mixed", "32", True),
        ("32-true", "64-true", False),
        ("64", "64-true", True),
        ("bf16-mixed", "bf16-true", False),
        ("bf16", "32-true", True),
        (16, "16-true", False),
    ],
)
def test_a_resume_keeps_the_precision_of_the_weights(
    run_dir: Path, tmp_path: Path, before: str | int, after: str, is_taken: bool
):
    change(run_dir, "trainer.precision", before)
    override = f"trainer.precision={after}"
    if is_taken:
        config, _ = resumed_config(run_dir, [override])
        assert str(config["trainer"]["precision"]) == after
    else:
        message = refusal(tmp_path, lambda: resumed_config(run_dir, [override]))
        assert message.startswith(override)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("callbacks.nt_asgd.non_monotone_interval=3", "the run has no callbacks.nt_asgd"),
        ("data.path=here", "the run has no data.path"),
        ("trainer.max_epochs=7", "follows a schedule"),
    ],
)
def test_what_the_run_lacks_or_its_schedule_forbids_is_refused(
    run_dir: Path, tmp_path: Path, override: str, part: str
):
    assert part in refusal(tmp_path, lambda: resumed_config(run_dir, [override]))


@pytest.mark.parametrize("scheduler", ["warmup", "plateau"])
def test_a_schedule_without_a_length_allows_a_longer_run(tmp_path: Path, scheduler: str):
    run_dir = write_run(tmp_path / "run", "model=lstm", *SMALL, f"scheduler={scheduler}")
    resumed, _ = resumed_config(run_dir, ["trainer.max_epochs=9"])
    assert resumed["trainer"]["max_epochs"] == 9


def test_a_resume_changes_what_it_may(tmp_path: Path):
    run_dir = write_run(tmp_path / "run", "model=awd_lstm", "data=text", "data.path=theirs")
    before = read_run_config(run_dir)
    values = {
        "trainer.max_epochs": (9, "9"),
        "trainer.max_time": ("1:00:00:00", "1:00:00:00"),  # a number in base 60 to YAML
        "trainer.precision": ("bf16-mixed", "bf16-mixed"),
        "loss.ar_alpha": (1e-5, "1e-5"),
        "callbacks.nt_asgd.non_monotone_interval": (3, "3"),
    }
    assert set(values) <= set(RESUMABLE)
    overrides = [f"{key}={text}" for key, (_, text) in values.items()]
    here = ["resume=x", "data.path=ours", "+data.cache_dir=cache"]
    config, kept = resumed_config(run_dir, [*here, *overrides])
    found, unchanged = flatten(config), flatten(before)
    changed = {key: found[key] for key in found if found[key] != unchanged[key]}
    expected = {key: value for key, (value, _) in values.items()}
    assert changed == expected | {"data.path": "ours", "data.cache_dir": "cache"}
    assert kept is not None
    assert kept["data"] == before["data"]  # paths are those of this machine
    assert flatten(kept) | {"data.path": "ours", "data.cache_dir": "cache"} == found
    assert resumed_config(run_dir, here)[1] is None
    assert read_run_config(run_dir) == before  # nothing is written before the run continues


def test_a_run_whose_last_checkpoint_is_gone_is_not_started_over(run_dir: Path, tmp_path: Path):
    (run_dir / "checkpoints").mkdir()
    previous = run_dir / "checkpoints" / "previous.ckpt"
    previous.write_text("saved")
    (run_dir / ".lock").touch()
    run = ChosenRun(resumed_config(run_dir, [])[0], resumes=True)
    message = refusal(tmp_path, lambda: train(run, run_dir))
    assert "last.ckpt cannot be read: No such file" in message
    assert f"{previous}: rename that to last.ckpt" in message


def test_a_run_in_progress_is_left_alone(run_dir: Path, tmp_path: Path):
    run = ChosenRun(resumed_config(run_dir, [])[0], resumes=True)
    with alone_in(run_dir):
        assert "Another process is at work" in refusal(tmp_path, lambda: train(run, run_dir))


def test_a_start_from_a_run_takes_over_what_belongs_to_its_weights(tmp_path):
    overrides = ("experiment=quickstart_awd_lstm", "loss.ar_alpha=0.5", "seed=7")
    run = composed(*overrides)
    folder = write_run(tmp_path / "run", *overrides)
    config = composed("experiment=finetune", f"init_from={folder}").copy()
    changes = ("model.core.weight_dropout=0.125", "batching.batch_size=40", "trainer.max_epochs=9")
    taken = apply_init_from(config, ["experiment=finetune", f"init_from={folder}", *changes])
    assert taken.data == run.data
    assert taken.loss == run.loss
    assert taken.model.core.weight_dropout == 0.125
    assert taken.batching.batch_size == 40
    taken.model.core.weight_dropout = run.model.core.weight_dropout
    taken.batching.batch_size = run.batching.batch_size
    assert (taken.model, taken.batching) == (run.model, run.batching)
    assert taken.evaluation == run.evaluation
    # The rest is finetuning's own.
    for node in ("optimizer", "callbacks", "trainer", "seed"):
        assert taken[node] == config[node]
    assert config.data == composed("experiment=finetune", f"init_from={folder}").data


def test_overrides_are_read_as_hydra_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_dir = write_run(tmp_path / "run", "model=awd_lstm", "data=text", "data.path=theirs")
    overrides = [r"data.path='it\'s'", "trainer.max_time={minutes:60}", "trainer.max_epochs=int(8)"]
    composed_now = flatten(plain_config(composed("data=text", *overrides)))
    config, _ = resumed_config(run_dir, overrides)
    for key in ("data.path", "trainer.max_time.minutes", "trainer.max_epochs"):
        assert flatten(config)[key] == composed_now[key]
    monkeypatch.setenv("MINE", "mine")
    config, _ = resumed_config(run_dir, ["data.path=${oc.env:MINE}/text"])
    assert config["data"]["path"] == "mine/text"
    given = [r"data.path='it\'s'", "model.core={num_layers:3}"]
    start = composed("experiment=finetune", f"init_from={run_dir}")
    taken = apply_init_from(start, given)
    assert taken.data.path == "it's"
    assert taken.model.core == composed("model=awd_lstm", "model.core.num_layers=3").model.core


def test_an_override_of_a_start_refers_to_values_of_the_run(tmp_path):
    folder = write_run(tmp_path / "run", "model=awd_lstm", "model.core.output_dropout=0.375")
    given = f"init_from={folder}", "model.core.hidden_dropout=${model.core.output_dropout}"
    config = composed("experiment=finetune", given[0])
    taken = apply_init_from(config, ["experiment=finetune", *given])
    assert config.model.core.get("output_dropout") != 0.375
    assert taken.model.core.hidden_dropout == 0.375


def test_a_start_from_nowhere_takes_over_nothing():
    config = composed("model=lstm")
    assert apply_init_from(config, ["model=lstm"]) is config


@pytest.mark.parametrize(
    "override",
    [
        *("model=lstm", "data=text", "model/core=lstm", "~model.core.dropout"),
        *("ablation=no_ar_tar", "debug=overfit"),
    ],
)
def test_a_start_from_a_run_has_that_runs_model_and_data(tmp_path, override):
    folder = write_run(tmp_path / "run", "model=awd_lstm")
    config = composed("experiment=finetune", f"init_from={folder}")
    with pytest.raises(UserError, match=rf"^{override} cannot be combined with init_from="):
        apply_init_from(config, [override])


@pytest.mark.parametrize(
    ("part", "override"),
    [
        ("model/core=hgrn2", "model.core.num_heads=4"),
        ("model/head=adaptive_softmax", "model.head={cutoffs:[2,5]}"),
    ],
)
def test_a_start_from_a_run_keeps_the_layout_of_its_weights(tmp_path, part, override):
    folder = write_run(tmp_path / "run", "model=awd_lstm", part)
    config = composed("experiment=finetune", f"init_from={folder}")
    with pytest.raises(UserError, match=r"^model\.\w+\.\w+ cannot be changed with init_from="):
        apply_init_from(config, [override])


def test_finetuning_never_starts_from_nowhere():
    with pytest.raises(UserError, match=r"^Set init_from=RUN_DIR"):
        apply_init_from(composed("experiment=finetune"), ["experiment=finetune"])


def test_a_start_from_a_run_whose_name_is_a_number(tmp_path, monkeypatch):
    """As the jobs of a sweep are; 0 does not count as a missing name."""
    monkeypatch.chdir(tmp_path)
    for name in ("0", "1"):
        write_run(tmp_path / name, "model=awd_lstm", f"batching.bptt=7{name}")
        given = ["experiment=finetune", f"init_from={name}"]
        taken = apply_init_from(composed(*given), given)
        assert taken.batching.bptt == int(f"7{name}")
        # a string, which serves as a path and is true wherever that is tested
        assert taken.init_from == name

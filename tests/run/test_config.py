"""Run directories as a stranger may send them: nothing in them is called, read or written to."""

import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lmbench import build
from lmbench.config import conf_dir, take_over_from_run, write_run_config
from lmbench.errors import UserError
from lmbench.run.config import read_run_config, resumed_config
from lmbench.run.directory import is_run
from lmbench.run.overrides import record_overrides
from lmbench.run.targets import ALLOWED_TARGETS_VARIABLE
from lmbench.saved.checkpoint import load_weights
from lmbench.train import train

SMALL = (
    "model=lstm",
    "data=synthetic",
    "data.num_words=40",
    "data.num_train_tokens=400",
    "data.num_valid_tokens=60",
    "data.num_test_tokens=60",
    "model.embedding_size=4",
    "model.core.hidden_size=5",
    "batching.batch_size=4",
    "trainer.accelerator=cpu",
)


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("train", [*SMALL, *overrides])


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(plain_config()), "utf-8")
    return folder


@cache
def plain_config() -> dict[str, Any]:
    config: Any = OmegaConf.to_container(composed("resume=x"), resolve=True)
    del config["resume"], config["init_changes"]
    return config


def change(run_dir: Path, key: str, value: object) -> None:
    """By way of JSON, which is YAML too, and quicker."""
    path = run_dir / "config.yaml"
    config = json.loads(path.read_text("utf-8"))
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = value
    path.write_text(json.dumps(config), "utf-8")


def build_everything(config: DictConfig, run_dir: Path) -> None:
    """All that a command calls by name."""
    corpus = build.corpus(config)
    module = build.module(config, build.model(config, len(corpus.vocabulary), corpus.train))
    trainer: Any = build.trainer(config, run_dir)
    trainer.datamodule = build.datamodule(config, corpus)
    module.trainer = trainer
    module.configure_optimizers()


def go_on(run_dir: Path, *overrides: str) -> DictConfig:
    config, _ = resumed_config(run_dir, [f"resume={run_dir}", *overrides])
    build_everything(config, run_dir)
    return config


def files_below(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refusal(tmp_path: Path, act: Callable[[], object]) -> str:
    """The message; nothing may have been written anywhere."""
    before = files_below(tmp_path)
    with pytest.raises(UserError) as error:
        act()
    assert files_below(tmp_path) == before
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_runs_own_config_can_be_gone_on_with(run_dir: Path):
    assert go_on(run_dir) == plain_config()
    (run_dir / "config.yaml").unlink()
    write_run_config(OmegaConf.create(plain_config()), run_dir)
    assert go_on(run_dir) == plain_config()


# Places for a target: new nodes, old ones, lists and lists in lists.
PLACES = [
    "_target_",
    "data._target_",
    "model.core._target_",
    "model.head._target_",
    "model._target_",
    "optimizer._target_",
    "optimizer.betas",
    "scheduler._target_",
    "callbacks.progress._target_",
    "callbacks.evil._target_",
    "logger.csv._target_",
    "trainer._target_",
    "trainer.devices",
    "batching._target_",
    "batching.bptt",
    "evaluation.columns",
    "seed",
    "init_from",
    "nobody.reads.this._target_",
    "nobody.reads",
]


def payload(marker: Path) -> dict[str, str]:
    return {"_target_": "os.mkdir", "path": str(marker)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wrapped", [0, 2])
def test_a_target_of_strangers_is_refused_wherever_it_stands(
    run_dir: Path, tmp_path: Path, place: str, wrapped: int
):
    marker = tmp_path / "was here"
    key = place.removesuffix("._target_")
    value: Any = payload(marker)
    for _ in range(wrapped):
        value = [0, value]
    if wrapped and place.endswith("_target_"):
        key = f"{key}.arguments" if key != "_target_" else "arguments"
    elif place == "_target_":
        key, value = "_target_", "os.mkdir"
    change(run_dir, key, value)
    message = refusal(tmp_path, lambda: go_on(run_dir))
    assert "_target_ names os.mkdir" in message
    assert f"{ALLOWED_TARGETS_VARIABLE}=os.mkdir" in message
    assert not marker.exists()


def test_the_payload_is_no_dud_and_the_environment_can_allow_it(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    marker = tmp_path / "was here"
    change(run_dir, "callbacks.evil", payload(marker))
    monkeypatch.setenv(ALLOWED_TARGETS_VARIABLE, "my.Core, os.mkdir")
    go_on(run_dir)
    assert marker.is_dir()
    change(run_dir, "callbacks.evil", payload(tmp_path / "again") | {"_target_": "os.makedirs"})
    refusal(tmp_path, lambda: go_on(run_dir))


@pytest.mark.parametrize(
    "target",
    [
        "os.mkdir",
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "lightning.pytorch.loggers.tensorboard.os.mkdir",
        "lmbench.callbacks.checkpoint_io.os.mkdir",
        "lmbench.callbacks.checkpoints.Path.mkdir",
        "lmbench.run.directory.shutil.rmtree",
        "torch.optim.SGD.__init__.__globals__",
        "torch.optim.sgd.os.mkdir",
        "torch.load",
        "torch.hub.load",
        "lmbench.train.train",
        "lmbench.optim.ASGD ",
        " lmbench.optim.ASGD",
        "lmbench.optim.ASGD.mro",
        "",
        None,
        7,
        True,
        ["os.mkdir"],
        {"a": "os.mkdir"},
        [["os.mkdir"]],
        {"_target_": "os.mkdir"},
        [],
        {},
    ],
    ids=str,
)
def test_a_target_in_disguise_is_refused(run_dir: Path, tmp_path: Path, target: Any):
    for node in ("callbacks.progress", "optimizer"):
        change(run_dir, node, {"_target_": target, "path": str(tmp_path / "was here")})
        assert "_target_ names " in refusal(tmp_path, lambda: go_on(run_dir))


def test_a_loader_has_no_business_outside_of_data(run_dir: Path, tmp_path: Path):
    """It writes a cache, into the folder that it is told."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "valid", "test"):
        (corpus / f"{split}.txt").write_text("a b c\n" * 50, "utf-8")
    loader = {"_target_": "lmbench.data.corpus.load_text", "path": str(corpus)}
    loader["cache_dir"] = str(tmp_path / "victim")
    for key in ("callbacks.evil", "logger.evil", "optimizer", "model.core"):
        change(run_dir, key, loader)
        assert "belongs at data alone" in refusal(tmp_path, lambda: go_on(run_dir))
        change(run_dir, key, None)


@pytest.mark.parametrize("by", [resumed_config, read_run_config])
def test_a_runs_cache_is_that_of_this_machine(
    run_dir: Path, tmp_path: Path, by: Callable, monkeypatch: pytest.MonkeyPatch
):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "valid", "test"):
        (corpus / f"{split}.txt").write_text("a b c\n" * 50, "utf-8")
    victim, ours = tmp_path / "victim", tmp_path / "ours"
    monkeypatch.setenv("XDG_CACHE_HOME", str(ours))
    monkeypatch.setenv("HOME", str(ours))
    loader = {"_target_": "lmbench.data.corpus.load_text", "path": str(corpus)}
    change(run_dir, "data", loader | {"cache_dir": str(victim)})
    config = by(run_dir, []) if by is resumed_config else by(run_dir)
    build.corpus(config[0] if isinstance(config, tuple) else config)
    assert not victim.exists()
    assert list(ours.rglob("*.bin")) or any(path.is_file() for path in ours.rglob("*"))


def test_a_start_from_a_run_has_its_own_cache_too(run_dir: Path):
    change(run_dir, "data.cache_dir", "/somewhere/else")
    config = composed("experiment=finetune", f"init_from={run_dir}")
    assert take_over_from_run(config, []).data.cache_dir is None
    overridden = take_over_from_run(config, ["data.cache_dir=/mine"])
    assert overridden.data.cache_dir == "/mine"


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "a ${oc.env:LMBENCH_SECRET} b",
        "${data.num_words}",
        r"\${oc.env:HOME}",
        "${oc.decode:'[1]'}",
        ["${oc.env:HOME}"],
        [[{"deep": "${oc.env:HOME}"}]],
    ],
    ids=str,
)
def test_an_interpolation_is_refused(
    run_dir: Path, tmp_path: Path, value: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LMBENCH_SECRET", "xyzzy")
    for key in ("model.name", "init_from", "nobody.reads"):
        change(run_dir, key, value)
        message = refusal(tmp_path, lambda: go_on(run_dir))
        assert key in message
        assert "is an interpolation" in message
        assert "xyzzy" not in message
        change(run_dir, key, None)


def test_hydras_own_keys_do_nothing(run_dir: Path, tmp_path: Path):
    evil = tmp_path / "evil"
    (evil / "optimizer").mkdir(parents=True)
    (evil / "optimizer/adam.yaml").write_text(f"_target_: os.mkdir\npath: {tmp_path}/was here\n")
    change(run_dir, "hydra.searchpath", [str(evil)])
    change(run_dir, "hydra.run.dir", str(tmp_path / "elsewhere"))
    change(run_dir, "defaults", [{"optimizer": "adam"}])
    before = files_below(tmp_path)
    config = go_on(run_dir)
    assert config.optimizer == OmegaConf.to_container(composed().optimizer, resolve=True)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logger.csv.save_dir", ".."),
        ("logger.csv.save_dir", "{tmp_path}/victim"),
        ("logger.tensorboard.save_dir", "../victim"),
        ("logger.tensorboard.save_dir", "{tmp_path}/victim"),
        ("logger.tensorboard.name", "../../victim"),
        ("logger.tensorboard.name", "{tmp_path}/victim"),
        ("logger.tensorboard.version", "../../victim"),
        ("logger.tensorboard.version", "{tmp_path}/victim"),
        ("logger.tensorboard.sub_dir", "../../victim"),
        ("logger.tensorboard.sub_dir", "{tmp_path}/victim"),
    ],
)
def test_a_folder_outside_of_the_run_is_refused(
    run_dir: Path, tmp_path: Path, key: str, value: str
):
    change(run_dir, key, value.format(tmp_path=tmp_path))
    config, _ = resumed_config(run_dir, [])
    message = refusal(tmp_path, lambda: build.trainer(config, run_dir))
    assert message.startswith(f"{key.rpartition('.')[0]} leads out of the run's directory")


def test_the_folder_of_checkpoints_is_that_of_older_runs(run_dir: Path):
    """Which named it, and the metric."""
    change(run_dir, "callbacks.checkpoints.dirpath", "checkpoints")
    change(run_dir, "callbacks.checkpoints.monitor", "val/nll")
    trainer: Any = build.trainer(resumed_config(run_dir, [])[0], run_dir)
    assert trainer.checkpoint_callback.last_path == run_dir / "checkpoints/last.ckpt"


def test_what_a_run_was_once_resumed_with_stays(run_dir: Path):
    overrides = run_dir / "overrides.jsonl"
    overrides.write_text(json.dumps({"overrides": ["evaluation.columns=1"]}) + "\n")
    assert resumed_config(run_dir, [])[0].evaluation.columns == 1


@pytest.mark.parametrize("time", ["1:00:00:00", "00:01:00:00", "0:30"])
def test_a_time_is_a_text(run_dir: Path, time: str):
    """YAML 1.1 would take the first for a number to the base of 60."""
    config, _ = resumed_config(run_dir, [f"trainer.max_time={time}"])
    assert config.trainer.max_time == time


@pytest.mark.parametrize(
    "override",
    [
        "callbacks.nt_asgd=null",
        "+callbacks.nt_asgd.average_from_start=true",
        "callbacks.nt_asgd.monitor=val/ppl",
        "evaluation.protocol=published",
        "evaluation.columns=1",
        "evaluation.burn_in=0",
        "trainer.limit_val_batches=5",
        "+trainer.overfit_batches=1",
        "+trainer.fast_dev_run=true",
    ],
)
def test_what_the_state_of_a_run_belongs_to_stays(run_dir: Path, override: str):
    with pytest.raises(UserError, match=rf"^{re.escape(override)} does not go with resume: the be"):
        resumed_config(run_dir, [override])


def test_a_variable_of_the_environment_leads_nowhere(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """TensorBoard's logger expands them in the whole path."""
    monkeypatch.setenv("LMBENCH_VICTIM", "../../victim")
    change(run_dir, "logger.tensorboard.name", "$LMBENCH_VICTIM")
    config, _ = resumed_config(run_dir, [])
    assert "leads out" in refusal(tmp_path, lambda: build.trainer(config, run_dir))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("metrics.csv", "file"),
        ("timing.csv", "nothing"),
        ("results.json", "file"),
        ("train.log", "file"),
        ("checkpoints", "folder"),
        (".hydra", "folder"),
        ("a/b", "nothing"),
        ("tensorboard/c", "folder"),
    ],
)
def test_a_link_in_the_directory_is_refused(run_dir: Path, tmp_path: Path, name: str, kind: str):
    victim = tmp_path / "victim"
    if kind == "file":
        victim.write_text("precious")
    elif kind == "folder":
        victim.mkdir()
    (run_dir / name).parent.mkdir(exist_ok=True)
    (run_dir / name).symlink_to(victim)
    assert not is_run(run_dir)  # so that Hydra does not write into it either
    assert f"{run_dir / name} is a link" in refusal(tmp_path, lambda: go_on(run_dir))


def test_what_is_no_run(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert not is_run(folder)
        assert "is not the directory of a run" in refusal(tmp_path, lambda f=folder: go_on(f))
    with pytest.raises(UserError, match=r"config\.yaml cannot be read: .*File name too long"):
        read_run_config(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]\n",
        b"- 1\n- 2\n",
        b"just text\n",
        b"42\n",
        b"\x00\x01\x02\xff\xfe" * 50,
        b"\xff\xfe\x00",
        b"a: [1\n",
        b"a: {b\n",
        b"a: b: c\n",
        b"\ta: 1\n",
        b"a: 1\na: 2\n",
        b"a: " + b"1" * 5000,
        b"? [1, 2]\n: 3\n",
        b"!!python/object/apply:os.mkdir ['was here']\n",
        b"data: !!python/object/new:os.mkdir ['was here']\n",
        b"data: {}\nmodel: 1\n",
        b"data: &a [*a]\n",
    ],
    ids=repr,
)
def test_a_config_that_is_none(
    run_dir: Path, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (run_dir / "config.yaml").write_bytes(content)
    message = refusal(tmp_path, lambda: go_on(run_dir))
    assert "config.yaml" in message


# A line of overrides.jsonl, and what is said about it.
OVERRIDES = [
    ("no JSON", "cannot be read"),
    ("[1, 2]", "cannot be read"),
    ('{"override": []}', "cannot be read"),
    ('{"overrides": 5}', "cannot be read"),
    ("\x00\x01", "cannot be read"),
    ('{"overrides": "abc"}', "does not go with resume"),
    ('{"overrides": [null]}', "does not go with resume"),
    *(
        (json.dumps({"overrides": [override]}), part)
        for override, part in [
            ("data.path=/etc", "does not go with resume"),
            ("data.cache_dir=/tmp/victim", "does not go with resume"),
            ("+data.cache_dir=/tmp/victim", "does not go with resume"),
            ("[data].cache_dir=/tmp/victim", "only plain values"),
            ("[data].num_words=41", "only plain values"),
            (".data.num_words=41", "only plain values"),
            ("data[num_words]=41", "does not go with resume"),
            ("model.core.hidden_size=9", "does not go with resume"),
            ("+model.core._target_=os.mkdir", "does not go with resume"),
            ("batching.batch_size=2", "does not go with resume"),
            ("optimizer.lr=1", "does not go with resume"),
            ("scheduler.max_lr=1", "does not go with resume"),
            ("seed=2", "does not go with resume"),
            ("init_from=/etc", "does not go with resume"),
            ("~callbacks.progress", "does not go with resume"),
            ("model=awd_lstm", "does not go with resume"),
            ("callbacks=null", "does not go with resume"),
            ("trainer.max_epochs", "does not go with resume"),
            ("", "does not go with resume"),
            ("callbacks.progress._target_=os.mkdir", "only plain values"),
            ("+callbacks.evil._target_=os.mkdir", "only plain values"),
            ("callbacks.progress={_target_: os.mkdir, path: was here}", "names os.mkdir"),
            ('callbacks.progress={"\\x5ftarget_": os.mkdir, path: was here}', "names os.mkdir"),
            ("+callbacks.evil={_target_: os.mkdir, path: was here}", "names os.mkdir"),
            ("+callbacks.evil=[{_target_: os.mkdir, path: was here}]", "names os.mkdir"),
            ("trainer.precision=${oc.env:HOME}", "is an interpolation"),
            ('trainer.precision="\\x24{oc.env:HOME}"', "is an interpolation"),
            ("trainer.max_epoch=3", "the run has no trainer.max_epoch"),
            ("nothing.at.all=3", "the run has no nothing.at.all"),
            ("hydra.run.dir=/tmp/victim", "the run has no hydra.run.dir"),
            ("trainer.max_epochs=[1", "trainer.max_epochs=[1: "),
            ("trainer.max_epochs=!!python/object/apply:os.mkdir ['was here']", "os.mkdir"),
            ("callbacks.progress=[1, 2]", "callbacks.progress"),
            ("logger.csv.save_dir=/tmp/victim", "leads out of the run's directory"),
        ]
    ),
]


@pytest.mark.parametrize(("line", "part"), OVERRIDES, ids=repr)
def test_overrides_of_strangers_are_refused(
    run_dir: Path, tmp_path: Path, line: str, part: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (run_dir / "overrides.jsonl").write_text(line + "\n", "utf-8")
    assert part in refusal(tmp_path, lambda: go_on(run_dir))


def test_overrides_of_the_command_line_are_held_to_the_same(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    overrides = [json.loads(line)["overrides"][0] for line, _ in OVERRIDES[7:]]
    for override in overrides[::5]:
        refusal(tmp_path, lambda override=override: go_on(run_dir, override))


def test_places_are_given_on_the_command_line_and_not_kept(run_dir: Path, tmp_path: Path):
    data = {"_target_": "lmbench.data.corpus.load_text", "path": "/theirs", "cache_dir": "/x"}
    change(run_dir, "data", data)
    places = [f"data.path={tmp_path}", "++data.cache_dir=mine"]
    config, new = resumed_config(run_dir, ["resume=x", *places, "trainer.max_epochs=7"])
    assert (config.data.path, config.data.cache_dir) == (str(tmp_path), "mine")
    assert new == ["trainer.max_epochs=7"]
    config, _ = resumed_config(run_dir, [])
    assert (config.data.path, config.data.cache_dir) == ("/theirs", None)
    (run_dir / "overrides.jsonl").write_text(json.dumps({"overrides": places}), "utf-8")
    assert "does not go with resume" in refusal(tmp_path, lambda: resumed_config(run_dir, []))


def test_overrides_that_are_not_text(run_dir: Path, tmp_path: Path):
    (run_dir / "overrides.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "overrides.jsonl cannot be read" in refusal(tmp_path, lambda: go_on(run_dir))


def test_overrides_are_kept_and_the_last_one_wins(run_dir: Path):
    config, new = resumed_config(run_dir, ["resume=x", "trainer.max_epochs=7"])
    assert (config.trainer.max_epochs, new) == (7, ["trainer.max_epochs=7"])
    assert resumed_config(run_dir, [])[0].trainer.max_epochs == composed().trainer.max_epochs
    record_overrides(run_dir, new)
    record_overrides(run_dir, [])
    record_overrides(run_dir, ["+trainer.benchmark=true", "loss.ar_alpha=0.5"])
    lines = (run_dir / "overrides.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["overrides"] for line in lines] == [
        ["trainer.max_epochs=7"],
        ["+trainer.benchmark=true", "loss.ar_alpha=0.5"],
    ]
    config, new = resumed_config(run_dir, ["resume=x", "trainer.max_epochs=9"])
    assert new == ["trainer.max_epochs=9"]
    assert (config.trainer.max_epochs, config.trainer.benchmark) == (9, True)
    assert config.loss.ar_alpha == 0.5


def test_a_run_whose_last_checkpoint_is_gone_is_not_started_over(run_dir: Path, tmp_path: Path):
    (run_dir / "checkpoints").mkdir()
    previous = run_dir / "checkpoints" / "previous.ckpt"
    previous.write_text("saved")
    config, new = resumed_config(run_dir, [])
    # that of the whole process, as it is
    config.float32_matmul_precision = torch.get_float32_matmul_precision()
    message = refusal(tmp_path, lambda: train(config, run_dir, resumed_with=new))
    assert "last.ckpt cannot be read: No such file" in message
    assert f"{previous}: rename that to last.ckpt" in message


def test_a_run_that_another_process_has_gone_on_with_meanwhile_is_left_alone(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As it was read without a checkpoint, what the other one has saved would be cleared away."""
    (run_dir / "metrics.csv").write_text("rows")
    (run_dir / ".lock").touch()  # which the other one has left
    config, new = resumed_config(run_dir, [])
    config.float32_matmul_precision = torch.get_float32_matmul_precision()
    times = iter([None, 5])  # before the run was read, and in its lock
    monkeypatch.setattr("lmbench.train.time_of_change", lambda path: next(times))
    message = refusal(tmp_path, lambda: train(config, run_dir, resumed_with=new))
    assert message == f"Another process has just worked in {run_dir}. Start again."


def test_a_new_run_does_not_begin_where_it_could_not_go_on(tmp_path: Path):
    (tmp_path / "run").mkdir()
    link = tmp_path / "run/data"
    link.symlink_to(tmp_path)
    message = refusal(tmp_path, lambda: train(composed().copy(), tmp_path / "run"))
    assert f"{link} is a link" in message
    assert list((tmp_path / "run").iterdir()) == [link]


class TestCheckpointsOfStrangers:
    """Through ``load_weights``."""

    @pytest.fixture
    def parts(self) -> tuple:
        config = composed()
        corpus = build.corpus(config)
        build.seed_everything(config)
        module = build.module(config, build.model(config, len(corpus.vocabulary)))
        return module, corpus

    @pytest.fixture
    def checkpoint(self, parts: tuple) -> dict[str, Any]:
        module, corpus = parts
        state = {name: value + 1 for name, value in module.state_dict().items()}
        datamodule = build.datamodule(composed(), corpus)
        return {"state_dict": state, type(datamodule).__qualname__: datamodule.state_dict()}

    def refusal(self, tmp_path: Path, parts: tuple, checkpoint: dict[str, Any]) -> str:
        torch.save(checkpoint, tmp_path / "best.ckpt")
        return refusal(tmp_path, lambda: load_weights(tmp_path / "best.ckpt", *parts))

    def test_ones_own_is_loaded(self, tmp_path: Path, parts: tuple, checkpoint: dict):
        torch.save(checkpoint | {"global_step": 7}, tmp_path / "best.ckpt")
        content = load_weights(tmp_path / "best.ckpt", *parts)
        assert content["global_step"] == 7
        found = parts[0].state_dict()
        assert all(torch.equal(found[name], checkpoint["state_dict"][name]) for name in found)

    def test_another_vocabulary(self, tmp_path: Path, parts: tuple, checkpoint: dict):
        of_corpus = checkpoint["LanguageModelDataModule"]
        other = build.corpus(composed("data.num_words=41"))
        of_corpus |= {"sha256": other.sha256, "words": list(other.vocabulary.words)}
        message = self.refusal(tmp_path, parts, checkpoint)
        assert f"corpus with sha256 {other.sha256}" in message

    def test_no_vocabulary(self, tmp_path: Path, parts: tuple, checkpoint: dict):
        for of_corpus in (None, [], {"words": []}):
            checkpoint["LanguageModelDataModule"] = of_corpus
            assert "does not name its corpus" in self.refusal(tmp_path, parts, checkpoint)

    def test_weights_of_another_shape(self, tmp_path: Path, parts: tuple, checkpoint: dict):
        state = checkpoint["state_dict"]
        for name, value in {"model.head.bias": torch.zeros(42), "model.new": torch.ones(1)}.items():
            changed = checkpoint | {"state_dict": state | {name: value}}
            message = self.refusal(tmp_path, parts, changed)
            assert "do not fit the model" in message
            assert name in message

    def test_missing_weights(self, tmp_path: Path, parts: tuple, checkpoint: dict):
        del checkpoint["state_dict"]["model.head.bias"]
        assert "model.head.bias" in self.refusal(tmp_path, parts, checkpoint)

    def test_weights_that_are_not_finite(self, tmp_path: Path, parts: tuple, checkpoint: dict):
        checkpoint["state_dict"]["model.head.bias"][5] = float("nan")
        message = self.refusal(tmp_path, parts, checkpoint)
        assert "the weight model.head.bias is not finite" in message

    def test_a_bomb(self, tmp_path: Path, parts: tuple, checkpoint: dict):
        class Bomb:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(tmp_path / "was here"),)

        assert "could run code" in self.refusal(tmp_path, parts, checkpoint | {"x": Bomb()})
        assert not (tmp_path / "was here").exists()

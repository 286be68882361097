"""Every choice in the conf folder composes, and sets nothing that its target does not take."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from small import composed, config_of, set_value

from lmbench.data.columns import EvaluationSettings
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError
from lmbench.evaluation.dynamic import Dynamic
from lmbench.files import read_yaml
from lmbench.instantiate import training as build
from lmbench.instantiate._callbacks import build_callbacks
from lmbench.instantiate.arguments import parameters_of
from lmbench.instantiate.loggers import _WANDB_OPTIONS
from lmbench.instantiate.model import build_model
from lmbench.run import targets
from lmbench.run.targets import (
    ALLOWED_TARGETS_VARIABLE,
    PLACES,
    conf_dir,
    flatten,
    known_targets,
    require_known_targets,
)
from lmbench.training.module import LanguageModelModule

# Group → options, as a user sees them; hydra/ configures Hydra itself, and so does hparams_search/.
OPTIONS: dict[str, list[str]] = {}
for file in sorted(conf_dir().glob("*/**/*.yaml")):
    group = file.parent.relative_to(conf_dir()).as_posix()
    if not group.startswith(("hydra", "hparams_search")):
        OPTIONS.setdefault(group, []).append(file.stem)


def rows_of_choices() -> list[dict[str, str]]:
    """All pairs of optimizer and schedule; every other option is in at least one."""
    pair = ("optimizer", "scheduler")
    pairs = [*product(*(OPTIONS[group] for group in pair))]
    apart = (*pair, "experiment", "ablation", "debug")
    others = [group for group in OPTIONS if group not in apart]
    rows = []
    for index in range(max(map(len, [pairs, *OPTIONS.values()]))):
        row = {group: OPTIONS[group][index % len(OPTIONS[group])] for group in others}
        if row["data"] != "text":  # the only corpus that can be cut in several ways
            del row["data/tokenizer"]
        rows.append(row | dict(zip(pair, pairs[index % len(pairs)], strict=True)))
    return rows


ROWS = rows_of_choices()
PUBLISHED = {
    "model.name": "awd_lstm",
    "model.core._target_": "lmbench.model.core.AWDLSTM",
    "model.embedding_size": 400,
    "model.core.hidden_size": 1150,
    "model.core.output_size": 400,
    "model.core.num_layers": 3,
    "model.tied": True,
    "model.head.bias": True,
    "model.embedding_dropout": 0.1,
    "model.core.input_dropout": 0.65,
    "model.core.hidden_dropout": 0.2,
    "model.core.output_dropout": 0.4,
    "model.core.weight_dropout": 0.5,
    "optimizer._target_": "lmbench.optim.ASGD",
    "optimizer.lr": 30.0,
    "optimizer.weight_decay": 1.2e-6,
    "optimizer.momentum": None,
    "trainer.gradient_clip_val": 0.25,
    "trainer.max_epochs": 750,
    "batching.batch_size": 80,
    "batching.bptt": 70,
    "batching.variable_windows": True,
    "batching.scale_lr": True,
    "loss.ar_alpha": 2.0,
    "loss.tar_beta": 1.0,
    "callbacks.nt_asgd._target_": "lmbench.callbacks.nt_asgd.NTASGD",
    "callbacks.nt_asgd.non_monotone_interval": 5,
    "data.name": "wikitext2",
}


def nodes_with_target(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from nodes_with_target(child, f"{key}.{name}".removeprefix("."))


def arguments_of(target: Any) -> set[str]:
    return set(parameters_of(target))


def assert_targets_take_their_keys(config: DictConfig) -> None:
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    nodes = dict(nodes_with_target(plain))
    assert {"data", "optimizer", "model.core", "model.head"} <= set(nodes)
    for key, node in nodes.items():
        unknown = set(node) - {"_target_"} - arguments_of(get_object(node["_target_"]))
        if key == "logger.wandb":  # whose logger passes the rest on
            unknown -= set(_WANDB_OPTIONS)
        if key == "evaluation":  # where evaluation=standard's keys are left out
            unknown -= arguments_of(EvaluationSettings)
        assert not unknown, f"{key}: {unknown}"
    # Nodes without a target of their own: build knows where they go.
    assert set(plain["trainer"]) <= arguments_of(L.Trainer)
    assert set(plain["batching"]) <= arguments_of(LanguageModelDataModule)
    assert set(plain["loss"]) <= arguments_of(LanguageModelModule)
    if "evaluation" not in nodes:
        modes = {key.split(".")[1] for key in nodes if key.startswith("evaluation.")}
        assert set(plain["evaluation"]) - modes <= arguments_of(EvaluationSettings)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # salesforce/awd-lstm-lm, pointer.py on WikiText-2
        ("cache", {"cache": {"window": 3785, "theta": 0.662, "interpolation": 0.1279}}),
        # benkrause/dynamic-evaluation, dynamiceval.py
        ("dynamic", {"columns": 1, "window": 5}),
        ("dynamic", {"dynamic": {"statistics": {"columns": 100, "segments": None}}}),
    ],
)
def test_evaluations_of_trained_models_have_the_published_constants(
    name: str, published: dict[str, Any]
):
    for choice in (name, "dynamic_cache"):
        evaluation = composed(f"evaluation={choice}", name="evaluate").evaluation
        assert OmegaConf.merge(evaluation, published) == evaluation


def test_dynamic_evaluation_has_the_published_constants_for_wikitext2():
    """Those of dynamiceval.py --lr 0.002 --lamb 0.02 --epsilon 0.001 --oldhyper, for AWD-LSTM."""
    num_rows = 2_088_628 // 100
    num_segments = len(range(0, num_rows - 2, 5))  # while i < train_data.size(0) - 1 - 1
    num_tensors = 1 + 3 * 4 + 1  # embedding; two weights and two biases a layer; softmax's bias
    expected = {"lr": 0.002 / num_segments**0.5, "epsilon": 0.001 / num_segments**0.5}
    expected |= {"decay": 0.02 / num_tensors}
    dynamic = composed("evaluation=dynamic", name="evaluate").evaluation.dynamic
    for key, value in expected.items():
        assert dynamic[key] == pytest.approx(value, rel=2e-3)
        assert getattr(Dynamic(), key) == dynamic[key]
    assert dynamic.lr in dynamic.grid.lrs[1:-1]
    assert dynamic.decay in dynamic.grid.decays[1:-1]


def test_a_run_may_name_only_targets_that_conf_names_at_that_place(
    monkeypatch: pytest.MonkeyPatch,
):
    """Each option by itself, so that none is left out; test_callbacks.py tests Lightning's."""
    no_dropout = "lmbench.callbacks.no_dropout.NoDropout"  # of debug=overfit
    for place in PLACES:
        group = place.replace(".", "/")
        named = {
            node["_target_"]
            for option in OPTIONS[group]
            for _, node in nodes_with_target(load(f"{group}/{option}.yaml"))
        }
        assert named
        others = known_targets(place) - named
        assert named <= known_targets(place)
        assert all(name.startswith("lightning.pytorch.") for name in others - {no_dropout})
        assert all(get_object(target) for target in named)
    config = config_of("model=awd_lstm", "data=synthetic")
    require_known_targets(config, PLACES, "here")
    loader = "lmbench.data.synthetic.make_corpus"
    for key, target in (
        ("optimizer._target_", "os.mkdir"),
        ("model.core._target_", "lmbench.model.head.Softmax"),
        ("callbacks.mine._target_", loader),
        ("logger.csv._target_", "lmbench.callbacks.metrics_csv.os.mkdir"),
        ("data._target_", ["os.mkdir"]),
    ):
        changed = config_of("model=awd_lstm", "data=synthetic")
        set_value(changed, key, target)
        for places, is_refused in ((PLACES, True), (("scheduler",), False)):
            if is_refused:
                with pytest.raises(UserError, match=rf"^here: {key.removesuffix('._target_')} "):
                    require_known_targets(changed, places, "here")
            else:
                require_known_targets(changed, places, "here")
    set_value(config, "model.core._target_", "my.Core")
    with pytest.raises(UserError, match=f"{ALLOWED_TARGETS_VARIABLE}=my.Core"):
        require_known_targets(config, PLACES, "here")
    monkeypatch.setenv(ALLOWED_TARGETS_VARIABLE, "my.Head, my.Core")
    require_known_targets(config, PLACES, "here")


def load(name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / name))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.values()))
def test_choices_compose_into_targets_that_take_their_keys(row):
    combined = composed(*(f"{group}={option}" for group, option in row.items()))
    assert combined.model.name == row["model"]
    # A model must not pass its own learning rate on to another optimizer.
    assert combined.optimizer == OmegaConf.load(conf_dir() / f"optimizer/{row['optimizer']}.yaml")
    assert bool(combined.get("scheduler")) == (row["scheduler"] != "constant")
    assert_targets_take_their_keys(combined)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(max(len(OPTIONS["experiment"]), len(OPTIONS["data"]))))
def test_experiments_compose_with_other_corpora(index):
    experiment = OPTIONS["experiment"][index % len(OPTIONS["experiment"])]
    data = OPTIONS["data"][index % len(OPTIONS["data"])]
    both = composed(f"experiment={experiment}", f"data={data}")
    assert both.data._target_ == OmegaConf.load(conf_dir() / f"data/{data}.yaml")._target_
    assert_targets_take_their_keys(both)


def test_awd_lstm_is_the_published_one():
    awd_lstm = composed("model=awd_lstm")
    assert {key: OmegaConf.select(awd_lstm, key) for key in PUBLISHED} == PUBLISHED
    assert not awd_lstm.scheduler


# Where the published runs differ from model=awd_lstm or model=lstm.
EXPERIMENTS = {
    "awd_lstm_wikitext2": {"seed": 1882},
    "awd_lstm_wikitext2_90": {
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 5e-3,
        "optimizer.betas": [0.9, 0.99],
        "optimizer.weight_decay": 1.2e-6,
        "batching.batch_size": 100,
        "batching.scale_lr": False,
        "trainer.gradient_clip_val": 0.12,
        "trainer.max_epochs": 90,
        "loss.ar_alpha": 1.8,  # --alpha=3, times 1 - 0.4
        "loss.tar_beta": 1.5,
        "model.core.output_dropout": 0.4,
        "model.core.input_dropout": 0.6,
        "callbacks.nt_asgd._target_": None,
        "callbacks.nt_asgd.non_monotone_interval": None,
    },
    "awd_lstm_penn_treebank": {
        "seed": 141,
        "batching.batch_size": 20,
        "model.core.input_dropout": 0.4,
        "model.core.hidden_dropout": 0.25,
        "trainer.max_epochs": 500,
        "data.name": "penn_treebank",
    },
    "finetune": {
        "callbacks.nt_asgd.average_from_start": True,
        "callbacks.nt_asgd.stop_when_stalled": True,
    },
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_are_the_published_ones(experiment: str):
    config = composed(f"experiment={experiment}", "init_from=x", "++data.path=x")
    expected = {**PUBLISHED, **EXPERIMENTS[experiment]}
    assert {key: OmegaConf.select(config, key) for key in expected} == expected
    assert bool(config.scheduler) == (experiment == "awd_lstm_wikitext2_90")


def test_the_90_epochs_have_the_published_phases():
    phases = composed("experiment=awd_lstm_wikitext2_90").scheduler.phases
    assert [phase.share for phase in phases] == [7.5, 37.5, 37.5, 7.5]
    lrs = [[factor * 5e-3 for factor in phase.lr_factor] for phase in phases]
    assert lrs == [[5e-4, 5e-3], [5e-3, 5e-3], [5e-3, 5e-4], [5e-4, 0.0]]
    assert [list(phase.beta1) for phase in phases] == [[0.8, 0.7], [0.7] * 2, [0.7, 0.8], [0.8] * 2]


def test_the_published_mixture_of_softmaxes():
    """zihangdai/mos: main.py --n_experts 15 --dropoutl 0.29, on WikiText-2."""
    head = composed("model/head=mixture_of_softmaxes").model.head
    assert (head.num_components, head.latent_dropout) == (15, 0.29)


def test_the_plain_lstms_rate_rises_in_the_first_twentieth():
    scheduler = composed("model=lstm").scheduler
    assert (scheduler.pct_start, scheduler.max_lr) == (0.05, 20.0)


CPU_HOUR = ("cpu_hour", "cpu_hour_lstm")
FIVE_EPOCHS = ("five_epochs", "five_epochs_lstm")
OF_AWD_LSTM = (
    "name",
    "model.name",
    "model.core.",
    "model.embedding_dropout",
    "loss.",
    "batching.variable_windows",
    "callbacks.weight_average.",
)


# A learning rate that does not fall to zero belongs to the average of the weights.
@pytest.mark.parametrize(
    ("experiments", "scheduled"), [(CPU_HOUR, {"scheduler.phases"}), (FIVE_EPOCHS, set())]
)
def test_a_plain_lstm_has_what_is_not_awd_lstms_own(
    experiments: tuple[str, str], scheduled: set[str]
):
    ours, plain = (flatten(config_of(f"experiment={name}")) for name in experiments)
    different = {key for key in ours.keys() | plain.keys() if ours.get(key) != plain.get(key)}
    others = {key.partition("[")[0] for key in different if not key.startswith(OF_AWD_LSTM)}
    assert others == scheduled
    assert {"model.core._target_", "loss.ar_alpha", "batching.variable_windows"} < different
    for key in ("model.core.hidden_size", "model.core.num_layers"):
        assert ours[key] == plain[key]
    assert plain["model.tied"]


@pytest.mark.parametrize("key", ["precision", "accelerator", "devices", "max_steps", "max_epochs"])
def test_a_key_of_the_trainer_that_was_taken_out_is_named(key: str):
    with pytest.raises(UserError, match=rf"^trainer\.{key} is missing or empty"):
        build.require_known_keys(config_of(f"~trainer.{key}"))


# What each ablation sets in the recipe that it is made for.
ABLATIONS: dict[str, dict[str, Any]] = {
    "no_weight_dropout": {"model.core.weight_dropout": 0.0},
    "no_locked_dropout": {"model.core.locked_dropout": False},
    "no_embedding_dropout": {"model.embedding_dropout": 0.0},
    "no_ar_tar": {"loss.ar_alpha": 0.0, "loss.tar_beta": 0.0},
    "no_tying": {"model.tied": False},
    "no_averaging": {"callbacks.nt_asgd": None, "callbacks.weight_average": None},
    "no_variable_windows": {"batching.variable_windows": False},
    "with_embedding_dropout": {"model.embedding_dropout": 0.05},
    "with_ar_tar": {"loss.ar_alpha": 1.0, "loss.tar_beta": 0.5},
    "with_averaging": {
        "callbacks.weight_average": {
            "_target_": "lmbench.callbacks.weight_average.WeightAverage",
            "eta": 8,
        }
    },
    "with_variable_windows": {"batching.variable_windows": True},
}


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(
    "experiments",
    [
        ("quickstart_awd_lstm", "quickstart_lstm"),
        pytest.param(CPU_HOUR, marks=pytest.mark.slow),
    ],
)
def test_an_ablation_changes_one_part_of_a_recipe(
    ablation: str, experiments: tuple[str, str], tmp_path: Path
):
    experiment = experiments[ablation.startswith("with_")]
    expected = config_of(f"experiment={experiment}")
    parts = ABLATIONS[ablation]
    assert any(OmegaConf.select(OmegaConf.create(expected), key) != parts[key] for key in parts)
    for key, value in [*parts.items(), ("name", ablation)]:
        set_value(expected, key, value)
    config = config_of(f"experiment={experiment}", f"ablation={ablation}")
    assert config == expected
    build.require_known_keys(config)
    assert build_callbacks(config, tmp_path)


@pytest.mark.parametrize("experiment", ["quickstart_awd_lstm", "cpu_hour_lstm"])
def test_no_ablation_changes_nothing(experiment: str):
    assert config_of(f"experiment={experiment}", "ablation=none") == config_of(
        f"experiment={experiment}"
    )
    assert {"none", *ABLATIONS} == set(OPTIONS["ablation"])


def test_the_larger_lstm_is_that_of_pytorchs_examples():
    config = composed("experiment=lstm_wikitext2")
    assert (config.model.embedding_size, config.model.core.hidden_size) == (650, 650)
    assert (config.model.tied, config.model.core.dropout, config.trainer.max_epochs) == (
        True,
        0.5,
        40,
    )
    assert (config.optimizer.lr, config.scheduler.factor) == (20.0, 0.25)
    assert (config.scheduler.patience, config.scheduler.threshold) == (0, 0.0)
    assert (config.batching.batch_size, config.batching.bptt) == (20, 35)


@pytest.mark.parametrize(("name", "number"), [("lstm", 7_332_078), ("awd_lstm", 33_556_078)])
def test_models_have_the_documented_number_of_parameters(name: str, number: int):
    """AWD-LSTM's is the published one."""
    with torch.device("meta"):
        model = build_model(config_of(f"model={name}")["model"], vocabulary_size=33_278)
    assert model.num_parameters == number


def test_each_model_of_a_sweep_brings_its_own_recipe():
    lstm, awd_lstm = composed("model=lstm"), composed("model=awd_lstm")
    assert (lstm.optimizer.lr, awd_lstm.optimizer.lr) == (20.0, 30.0)
    assert (lstm.optimizer.weight_decay, awd_lstm.optimizer.weight_decay) == (0.0, 1.2e-6)
    assert lstm.scheduler._target_ == "torch.optim.lr_scheduler.OneCycleLR"
    assert lstm.scheduler.max_lr == lstm.optimizer.lr
    assert "nt_asgd" not in lstm.callbacks
    assert set(awd_lstm.callbacks) - set(lstm.callbacks) == {"nt_asgd"}
    assert not lstm.batching.variable_windows
    assert lstm.loss.ar_alpha == lstm.loss.tar_beta == 0.0


@pytest.mark.parametrize("model", OPTIONS["model"])
def test_the_command_line_wins_over_the_recipe(model):
    overridden = composed(
        f"model={model}",
        "optimizer=adam",
        "callbacks=default",
        "trainer.max_epochs=3",
        "batching.bptt=7",
        "optimizer.lr=0.125",
    )
    assert overridden.optimizer._target_ == "torch.optim.Adam"
    assert (overridden.trainer.max_epochs, overridden.batching.bptt) == (3, 7)
    assert overridden.optimizer.lr == 0.125
    assert "nt_asgd" not in overridden.callbacks


@pytest.mark.parametrize(
    ("space", "choices"),
    [
        ("lstm", ["model=lstm"]),
        ("awd_lstm", ["model=awd_lstm"]),
        ("adam", ["model=lstm"]),
        ("adam", ["model=awd_lstm"]),
        ("adam", ["experiment=awd_lstm_wikitext2_90"]),
        ("adam", ["experiment=cpu_hour"]),
    ],
)
def test_a_search_space_surrounds_the_values_of_its_model(space: str, choices: list[str]):
    """Each range holds the recipe's value; only the plugin, not used here, reads the rest."""
    search = OmegaConf.load(conf_dir() / f"hparams_search/{space}.yaml")
    assert search.hydra.sweeper.direction == "minimize"
    assert search.hydra.mode == "MULTIRUN"  # otherwise, without -m, a single run would be trained
    chosen = {
        key.split("/")[-1]: option for item in search.defaults for key, option in item.items()
    }
    assert chosen.pop("sweeper") == "optuna"
    config = composed(*choices, *(f"{group}={option}" for group, option in chosen.items()))
    OmegaConf.set_struct(config, False)
    config.merge_with({"callbacks": search.get("callbacks", {})})
    averages = {name for name, node in config.callbacks.items() if node is not None} & {"nt_asgd"}
    assert bool(averages) == (config.optimizer._target_ == "lmbench.optim.ASGD")
    for key, text in search.hydra.sweeper.params.items():
        low, high = map(float, re.findall(r"interval\(([\d.]+), ([\d.]+)\)", text)[0])
        assert low <= OmegaConf.select(config, key, throw_on_missing=True) <= high, key


def test_another_core_can_replace_that_of_the_model():
    swapped = composed("model=awd_lstm", "model/core=lstm")
    assert swapped.model.core == OmegaConf.merge(
        OmegaConf.load(conf_dir() / "model/core/lstm.yaml"), {"output_size": 400}
    )


@pytest.mark.parametrize("group", [*OPTIONS, "hparams_search"])
def test_unknown_options_are_refused(group: str):
    """Also in groups from which nothing has to be chosen."""
    with pytest.raises(ConfigCompositionException, match=rf"Could not find '{group}/no_such'"):
        composed("data=text", f"{group}=no_such")


def test_help_names_every_evaluation():
    help_text = (conf_dir() / "hydra/help/evaluate.yaml").read_text("utf-8")
    for path in (conf_dir() / "evaluation").glob("*.yaml"):
        assert f"\n  {path.stem} " in help_text


def test_conf_is_found_in_a_wheel_and_in_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "src/lmbench"
    package.mkdir(parents=True)
    monkeypatch.setattr(targets, "__file__", str(package / "run/targets.py"))
    assert conf_dir() == tmp_path.resolve() / "conf"
    (package / "conf").mkdir()
    assert conf_dir() == package.resolve() / "conf"


def test_flatten_gives_dotted_keys():
    nested = {"a": {"b": 1, "c": {"d": [2, 3]}}, "e": None}
    assert flatten(nested) == {"a.b": 1, "a.c.d[0]": 2, "a.c.d[1]": 3, "e": None}


@pytest.mark.parametrize("path", sorted((conf_dir() / "experiment").glob("*.yaml")))
def test_an_experiment_gives_its_name_to_the_run(path: Path):
    """Other runs are named after their model."""
    assert composed(f"experiment={path.stem}").name == path.stem
    assert composed("model=awd_lstm").name == "awd_lstm"


@pytest.mark.parametrize("path", sorted((conf_dir() / "hparams_search").glob("*.yaml")))
def test_a_search_does_not_use_the_test_split(path: Path):
    """The file is read without Hydra, as Optuna is an extra."""
    assert read_yaml(path)["trainer"] == {"limit_test_batches": 0}

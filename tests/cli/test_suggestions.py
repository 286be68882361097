import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from lmbench.cli.suggestions import explain, explain_dashes, explain_null, similar
from lmbench.run.targets import conf_dir


def test_keys_with_the_same_last_word_come_before_similar_ones():
    keys = ["trainer.max_epochs", "trainer.max_steps", "optimizer.lr", "scheduler.lr"]
    assert similar("lr", keys) == ["optimizer.lr", "scheduler.lr"]
    assert similar("trainer.max_epoch", keys) == ["trainer.max_epochs"]
    assert similar("max_step", keys) == ["trainer.max_steps"]
    assert similar("epochs", [*keys, "model/core"]) == ["trainer.max_epochs"]
    assert similar("core", [*keys, "model/core"]) == ["model/core"]
    assert similar("bogus", keys) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trainer.max_epoch=3"], "There is no key trainer.max_epoch. Did you mean trainer.max_ep"),
        (["model=awd_lstm", "lr=3"], "There is no key lr. Did you mean optimizer.lr?"),
        (["model=lstm,awd_lstm", "lr=3"], "There is no key lr. Did you mean optimizer.lr?"),
        (["modl=lstm"], "There is no key modl. Did you mean model?"),
        (["model/cor=gru"], "There is no key model/cor. Did you mean model/core?"),
        (["optimizer={lrs:3}"], "optimizer has the keys foreach, lr, weight_decay. Set one: opt"),
        (["seed=1", "name=a(1).txt"], "name=a(1).txt cannot be read. If the value is text, quote "),
        (
            ["name=it's"],
            """name=it's cannot be read. If the value is text, quote it: "name='it\\'s'\"""",
        ),
        (["seed=1", "cpu_hr"], "cpu_hr is not of the form KEY=VALUE."),
        (["cpu_hour"], "cpu_hour is not of the form KEY=VALUE. Did you mean experiment=cpu_hour?"),
        (["model=gru"], "There is no model=gru. Did you mean model/core=gru? Choose from awd_lstm"),
        (
            ["model.core.weight_dropout=0.3"],
            "There is no key model.core.weight_dropout here, but there is with model=awd_lstm.",
        ),
        (
            ["model.core.weight_dropout=0.3", "init_from=run"],
            "There is no key model.core.weight_dropout here, but there is with model=awd_lstm. If "
            "the run of init_from=run has it: +model.core.weight_dropout=…",
        ),
        (
            ["data.num_train_tokens=3000", "experiment=quickstart_lstm,quickstart_awd_lstm"],
            "There is no key data.num_train_tokens here, but there is with data=synthetic. If all "
            "experiments of the sweep have it: ++data.num_train_tokens=…",
        ),
        (
            ["callbacks.nt_asgd.non_monotone_interval=3", "resume=run"],
            "There is no key callbacks.nt_asgd.non_monotone_interval here, but there is with "
            "callbacks=nt_asgd. If the run of resume=run has it: +callbacks.nt_asgd.non_mono",
        ),
        (["resume=~/run"], "resume=~/run: ~ cannot be read here. Write resume=/me/run"),
        (["resume=~nobody-of-that-name/run"], "resume=~nobody-of-that-name/run cannot be read. If"),
        (["logger.wandb.offline=true"], "There is no key logger.wandb.offline here, but there is "),
        (["callbacks.mine._target_=a.B"], "There is no key callbacks.mine._target_. To set a key "),
        (["core=gru"], "There is no key core. Did you mean model/core?"),
        (["scheduler.phases[0].share=5"], "scheduler.phases[0].share=5: an item cannot be set"),
        (["trainer.bogus=1"], "There is no key trainer.bogus. To set a key that the config lacks"),
        (
            ["model=awd_lst"],
            "There is no model=awd_lst. Did you mean awd_lstm? Choose from awd_lstm, lstm.",
        ),
        (["logger=[csv,wnadb]"], "There is no logger=wnadb. Did you mean wandb? Choose from csv, "),
    ],
)
def test_what_hydra_refuses_is_explained(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", "/me")
    with (
        initialize_config_dir(str(conf_dir()), version_base="1.3"),
        pytest.raises(HydraException) as error,
    ):
        compose("train", [text for text in arguments if "," not in text or "[" in text])
    assert explain(str(error.value), arguments, "train").startswith(said)


@pytest.mark.parametrize(
    ("key", "start"),
    [("model.core.weight_dropout", "resume=run"), ("callbacks.nt_asgd._target_", "init_from=run")],
)
def test_no_plus_sign_is_advised_where_it_would_be_refused(key: str, start: str):
    said = explain(f"Could not override '{key}'.", [start, f"{key}=1"], "train")
    assert f"There is no key {key} here, but there is with" in said
    assert "+" not in said


def test_no_key_is_added_where_lmbench_reads_none():
    said = explain("Could not override 'bogus'.", ["bogus=1"], "train")
    assert said == "There is no key bogus."


def test_a_group_of_ones_own_does_not_hide_what_was_wrong():
    arguments = ["--config-dir", "mine", "experiment=mine", "optimizer.lrr=3"]
    said = explain("Could not override 'optimizer.lrr'.", arguments, "train")
    assert said == "There is no key optimizer.lrr. Did you mean optimizer.lr?"


def test_a_group_of_another_command_is_explained():
    said = explain("Could not override 'data'.", ["run=x", "data=text"], "evaluate")
    assert said == "data has the keys cache_dir, path. Set one: data.cache_dir=…"


def test_a_search_for_another_model_says_so():
    arguments = ["hparams_search=awd_lstm", "trainer.max_epochs=5"]
    said = explain("Could not override 'model.core.input_dropout'.", arguments, "train")
    assert said.startswith("hparams_search=awd_lstm varies model.core.input_dropout, which this")


@pytest.mark.parametrize("arguments", [["logger=null"], ["seed=1", "model=lstm", "logger=3"]])
def test_a_group_set_to_no_option_is_named(arguments: list[str]):
    with (
        initialize_config_dir(str(conf_dir()), version_base="1.3"),
        pytest.raises(ValueError, match=r"^Config group override must be"),
    ):
        compose("train", arguments)
    text = explain_null(arguments)
    assert text.startswith(
        f"{arguments[-1]}: a group takes the name of an option. Choose from csv, "
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--experiment", "cpu_hour"], "--experiment: keys are given without dashes: experiment=…"),
        (["seed=1", "--model.tied=no"], "--model.tied=no: keys are given without dashes: model.ti"),
        (["--seed=3"], "--seed=3: keys are given without dashes: seed=3"),
        (["--multirun", "--config-dir", "data", "--cfg=job", "--run", "--info"], None),
    ],
)
def test_keys_with_dashes_are_explained(arguments: list[str], said: str | None):
    text = explain_dashes(arguments, "train")
    assert text is None if said is None else str(text).startswith(said)

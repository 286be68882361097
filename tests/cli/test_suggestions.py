import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from lmbench.cli._suggestions import explain, explain_arguments, similar
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
        (["seed=1", "name=a(1).txt"], "name=a(1).txt cannot be read. If the value is text, quote "),
        (
            ["name=it's"],
            """name=it's cannot be read. If the value is text, quote it: "name='it\\'s'\"""",
        ),
        (["seed=1", "cpu_hr"], "cpu_hr is not of the form KEY=VALUE."),
        (["cpu_hour"], "cpu_hour is not of the form KEY=VALUE. Did you mean experiment=cpu_hour?"),
        (["model=gru"], "There is no model=gru. Did you mean model/core=gru? Choose from awd_lstm"),
        (["model=awd_lst"], "There is no model=awd_lst. Did you mean awd_lstm? Choose from awd_ls"),
        (["logger=[csv,wnadb]"], "There is no logger=wnadb. Did you mean wandb? Choose from csv, "),
        (["resume=~/run"], "resume=~/run: ~ cannot be read here."),
        (["optimizer.momentum=3"], "There is no key optimizer.momentum. To add it: +optimizer.mom"),
        (["model=lstm", "optimizer.momentum=3"], "There is no key optimizer.momentum. To add it: "),
        (["bogus=1"], "There is no key bogus."),
        (["data.tokenizer=none"], "There is no key data.tokenizer here, but there is with data=te"),
        (["model=lstm", "model.core.weight_dropout=1"], "There is no key model.core.weight_dropou"),
        (["+seed=1"], "Could not append to config."),  # Hydra's own says it better
        (["hydra/launcher=none"], "There is no hydra/launcher=none. Others are extras"),
    ],
)
def test_what_hydra_refuses_is_explained(arguments: list[str], said: str):
    with (
        initialize_config_dir(str(conf_dir()), version_base="1.3"),
        pytest.raises(HydraException) as error,
    ):
        compose("train", [text for text in arguments if "," not in text or "[" in text])
    assert explain(error.value, arguments, "train").startswith(said)


def test_a_group_of_ones_own_does_not_hide_what_was_wrong():
    arguments = ["--config-dir", "mine", "experiment=mine", "optimizer.lrr=3"]
    said = explain(HydraException("Could not override 'optimizer.lrr'."), arguments, "train")
    assert said == "There is no key optimizer.lrr. Did you mean optimizer.lr?"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--experiment", "cpu_hour"], "--experiment: keys are given without dashes: experiment=…"),
        (["seed=1", "--model.tied=no"], "--model.tied=no: keys are given without dashes: model.ti"),
        (["--seed=3"], "--seed=3: keys are given without dashes: seed=3"),
        (
            ["seed=1", "logger=null"],
            "logger=null: a group takes the name of an option: csv, ",
        ),
        (["--multirun", "--config-dir", "data", "--cfg=job", "--run", "resume=null"], None),
    ],
)
def test_dashes_and_groups_set_to_nothing_are_explained(arguments: list[str], said: str | None):
    text = explain_arguments(arguments, "train")
    assert text is None if said is None else str(text).startswith(said)


@pytest.mark.parametrize("group", ["logger", "experiment"])
def test_hydra_takes_no_group_set_to_nothing(group: str):
    with (
        initialize_config_dir(str(conf_dir()), version_base="1.3"),
        pytest.raises(ValueError, match=r"^Config group override must be"),
    ):
        compose("train", [f"{group}=null"])

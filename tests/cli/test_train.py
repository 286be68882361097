import pytest
from small import config_of

from lmbench.cli.train import _note_on_optimizer


@pytest.mark.parametrize(
    ("overrides", "begins"),
    [
        (("model=lstm", "model/core=gru"), "lstm (GRU): SGD's learning rate, 20.0, was chosen for"),
        (("model=awd_lstm", "model/core=qrnn"), "awd_lstm (QRNN): SGD's learning rate, 30.0, was"),
        (("model=lstm",), ""),
        (("experiment=cores", "model/core=gru"), ""),
    ],
)
def test_a_core_in_a_recipe_of_sgd_gets_a_note(overrides: tuple[str, ...], begins: str):
    note = _note_on_optimizer(config_of(*overrides))
    assert note.startswith(begins)
    assert bool(note) == bool(begins)

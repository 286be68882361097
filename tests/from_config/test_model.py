import pytest
import torch

from lmbench.errors import UserError
from lmbench.from_config.model import build_model
from lmbench.model import LSTM, AdaptiveSoftmax

NODE = {
    "embedding_size": 6,
    "embedding_dropout": 0.25,
    "tied": False,
    "core": {"_target_": "lmbench.model.core.LSTM", "hidden_size": 5, "num_layers": 2},
    "head": {"_target_": "lmbench.model.head.AdaptiveSoftmax", "cutoffs": [3, 7]},
}


def test_plain_values_give_a_model():
    counts = [5, 0, 3, 9, 1, 1, 2, 7, 7, 4, 6]
    train_ids = torch.repeat_interleave(torch.arange(11), torch.tensor(counts)).int().numpy()
    model = build_model(NODE, 11, train_ids)
    assert isinstance(model.core, LSTM)
    assert isinstance(model.head, AdaptiveSoftmax)
    assert model.embedding.dropout == 0.25
    assert [layer.hidden_size for layer in model.core.layers] == [5, 5]
    words = sorted(range(11), key=lambda word: (-counts[word], word))
    assert [words[rank] for rank in model.head.word_ranks] == list(range(11))
    assert model(torch.zeros(4, 2, dtype=torch.int64)).output.shape == (4, 2, 5)


@pytest.mark.parametrize("missing", NODE)
def test_a_missing_value_is_named(missing: str):
    node = {name: value for name, value in NODE.items() if name != missing}
    with pytest.raises(UserError, match=rf"^model\.{missing} is missing\.$"):
        build_model(node, 11)


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"tied weights embedding_size \(6\) .*output_size \(5\)"):
        build_model(NODE | {"tied": True}, 11)
    with pytest.raises(UserError, match=r"^model\.embedding_dropout must be"):
        build_model(NODE | {"embedding_dropout": 1.5}, 11)

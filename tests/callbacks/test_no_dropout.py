"""Training without dropout."""

import pytest
import torch
from small import small_config

from lmbench.callbacks.no_dropout import NoDropout
from lmbench.instantiate import training as build
from lmbench.instantiate.model import build_model


@pytest.mark.parametrize("model", ["lstm", "awd_lstm"])
def test_a_model_in_training_gives_what_it_gives_in_evaluation(model: str):
    config = small_config(model=model)
    module = build.module(config, build_model(config["model"], 41))
    tokens = torch.arange(24).view(6, 4)

    def outputs() -> torch.Tensor:
        return module.model(tokens).output

    in_evaluation = module.model.eval() and outputs()
    assert not torch.equal(module.model.train() and outputs(), in_evaluation)
    NoDropout().on_train_start(None, module)
    assert torch.equal(outputs(), in_evaluation)

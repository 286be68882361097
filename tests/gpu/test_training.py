"""What only a GPU can show about training; each test runs in seconds."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector import result
from small import SMALL, config_of
from torch import nn
from torch.nn import functional
from torch.testing import assert_close
from trainings import quiet_trainer, random_windows, small_module

from lmbench.callbacks.throughput import Throughput
from lmbench.callbacks.weight_average import WeightAverage
from lmbench.instantiate.model import build_model
from lmbench.machine import set_matmul_precision
from lmbench.model import LanguageModel
from lmbench.model.contracts import detach_state
from lmbench.model.core._rnn import run_rnn
from lmbench.model.dropout import WeightDropout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ARGUMENTS = (
    "model=awd_lstm",
    *SMALL,
    "trainer.accelerator=cuda",
    "trainer.max_steps=20",
    "trainer.log_every_n_steps=5",
)


def two_windows(model: LanguageModel, device: str) -> dict[str, torch.Tensor]:
    """Outputs, losses, states and gradients of two windows, with the same masks on every device."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5000, (2, 21, 8), generator=generator)
    results, state = {}, None

    def dropout(input: torch.Tensor, p: float) -> torch.Tensor:
        keep = torch.rand(input.shape, generator=generator) >= p
        return input * keep.to(input) / (1 - p)

    with (
        mock.patch.object(functional, "dropout", dropout),
        mock.patch.object(WeightDropout, "forward", lambda self, weight: dropout(weight, self.p)),
    ):
        for number, window in enumerate(tokens.to(device)):
            output, _, state = model(window[:-1], state)
            loss = model.head.loss(output, window[1:])
            loss.backward()
            state = detach_state(state)
            results |= {f"output {number}": output, f"loss {number}": loss}
            results[f"cell {number}"] = state[-1][1]
    results |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: tensor.detach().double().cpu().clone() for name, tensor in results.items()}


@pytest.mark.usefixtures("matmul_precision")
def test_awd_lstm_in_float32_computes_what_the_cpu_does_in_float64() -> None:
    """At the published size, with dropped weights in cuDNN and a state that is carried on."""
    set_matmul_precision("highest", "cuda")  # for cuDNN too, whose default is TF32
    torch.manual_seed(0)
    model = build_model(config_of("model=awd_lstm")["model"], 5000).train()
    found = two_windows(copy.deepcopy(model).to("cuda"), "cuda")
    for name, right in two_windows(model.double(), "cpu").items():
        error = (found[name] - right).norm() / right.norm()
        assert error <= 1e-5, name


def test_bfloat16_leaves_the_lstm_in_float32() -> None:
    """Output, state and gradients are those without autocast, to the last bit."""
    torch.manual_seed(0)
    layer = nn.LSTM(24, 40, device="cuda")
    input = torch.randn(7, 5, 24, device="cuda", requires_grad=True)
    state = (torch.randn(1, 5, 40, device="cuda"), torch.randn(1, 5, 40, device="cuda"))
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            dropped = WeightDropout(0.5)(layer.weight_hh_l0)
            output, (hidden, cell) = run_rnn(torch.lstm, layer, input, state, dropped)
        leaves = [input, *layer.parameters()]
        found.append([output, hidden, cell, *torch.autograd.grad(output.sum(), leaves)])
    assert all(tensor.dtype == torch.float32 for tensor in found[1])
    assert_close(found[1], found[0], rtol=0, atol=0)


def test_one_process_trains_with_nccl_and_its_checkpoint_opens_no_gpu(tmp_path: Path) -> None:
    """With the strategy ddp, all that is logged goes through NCCL, even with one GPU."""
    environment = {key: value for key, value in os.environ.items() if "HYDRA" not in key}
    command = [sys.executable, "-m", "lmbench.cli.train", *ARGUMENTS, "trainer.strategy=ddp"]
    trained = subprocess.run(
        [*command, "hydra.run.dir=run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    (process,) = checkpoint["processes"]
    state = process["stream"]["state"]
    assert {x.device.type for layer in state for x in layer} == {"cpu"}


def test_steps_do_not_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning reads the progress bar's values after each step: none of them is on the GPU."""
    devices: list[str] = []

    def convert(value: torch.Tensor) -> object:
        devices.append(value.device.type)
        return convert_tensors_to_scalars(value)

    convert_tensors_to_scalars = result.convert_tensors_to_scalars
    monkeypatch.setattr(result, "convert_tensors_to_scalars", convert)
    options = {"accelerator": "cuda", "max_epochs": 2, "log_every_n_steps": 5}
    trainer = quiet_trainer(Throughput(), **options)
    trainer.fit(small_module(9), datamodule=random_windows(9, 808, batch_size=4))
    assert devices.count("cpu") > 2 * 20  # 20 steps per epoch, and two values from the fifth on
    assert devices.count("cuda") <= 2 * 2  # validation perplexity


def test_an_average_of_the_weights_stays_on_the_gpu() -> None:
    average = WeightAverage(2.0)
    module, datamodule = small_module(9), random_windows(9, 80)
    trainer = quiet_trainer(average, max_epochs=1, accelerator="cuda")
    trainer.fit(module, datamodule=datamodule)
    assert {x.device.type for x in average._average_model.parameters()} == {"cuda"}

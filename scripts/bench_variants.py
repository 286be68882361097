"""What ``bench.py`` measures: one function per variant, each run in a process of its own.

Shape letters: T time steps of a window, B columns, E embedding, H hidden, V vocabulary.
"""

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lmbench.callbacks.throughput import peak_memory_bytes
from lmbench.data.batching import Batch
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.instantiate import training as build
from lmbench.instantiate.model import build_model
from lmbench.loss.activation_penalty import (
    activation_regularization,
    temporal_activation_regularization,
)
from lmbench.machine import set_matmul_precision, set_up_allocator, set_up_threads
from lmbench.model import LanguageModel
from lmbench.model.contracts import detach_state
from lmbench.optim import ASGD
from lmbench.run.config import plain_config
from lmbench.run.targets import conf_dir
from lmbench.training.lightning_internals import quieten_lightning

WARM_UP_STEPS = 2
FIXED_OVERRIDES = (
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "batching.variable_windows=false",  # so that every step is the same work
)


class Turns:
    """Shares the processor: a process works for a turn of some steps, then waits for the next one.

    The first turn is the warm-up. In the others the first step is not counted: while a process
    waits, a virtual machine may give its free memory away, and has to get it back.

    Args:
        connection: Pipe to the parent, which gets the samples of a turn with the facts.
        steps: Steps per turn.

    Attributes:
        facts: What else to report to the parent.
    """

    def __init__(self, connection: Connection, steps: int) -> None:
        self.facts: dict[str, Any] = {"num_threads": torch.get_num_threads()}
        self._connection = connection
        self._steps = steps
        self._steps_of_turn = WARM_UP_STEPS
        self._samples: list[dict[str, float]] = []
        self._start = time.perf_counter()

    def end_step(self, parts: dict[str, float] | None = None) -> None:
        """Ends a step, and perhaps the turn; the next step is timed from the return on.

        Args:
            parts: The seconds of this step, by part; None for the time since the step before.
        """
        self._samples.append(parts or {"step": time.perf_counter() - self._start})
        if len(self._samples) == self._steps_of_turn:
            self.facts["peak_memory_bytes"] = peak_memory_bytes(torch.device("cpu"))
            self._connection.send((self._samples[1:], self.facts))
            self._samples, self._steps_of_turn = [], 1 + self._steps
            self._connection.recv()
        self._start = time.perf_counter()


def work(
    connection: Connection,
    variant: Callable[..., None],
    arguments: dict[str, Any],
    steps: int,
    num_threads: int | None,
    as_lmbench: bool,
) -> None:
    """The target of a process: runs a variant until the parent ends it.

    ``as_lmbench``: whether freed memory is kept and subnormal numbers are rounded to zero, as by
    ``lmbench-train``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    quieten_lightning()
    if as_lmbench:
        set_up_threads()
        set_up_allocator()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    # Without a terminal there is no progress bar.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            variant(Turns(connection, steps), **arguments)
        except UserError as error:
            sys.exit(str(error))


def compose_config(overrides: list[str]) -> DictConfig:
    """The config of ``lmbench-train`` with these overrides and the fixed ones."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", [*overrides, *FIXED_OVERRIDES])


def set_up(
    overrides: list[str], vocabulary_size: int, num_windows: int
) -> tuple[DictConfig, LanguageModel, LanguageModelDataModule]:
    """Config, model and random tokens, enough for ``num_windows`` windows of train and test."""
    config = compose_config(overrides)
    plain = plain_config(config)
    build.seed_everything(plain)
    set_matmul_precision(config.float32_matmul_precision, config.trainer.accelerator)
    evaluation, batching = config.evaluation, config.batching
    standard = evaluation.protocol == "standard"
    columns, burn_in = (evaluation.columns, evaluation.burn_in) if standard else (1, 0)
    lengths = {
        "train": batching.batch_size * (batching.bptt * num_windows + 1),
        "valid": 1000,
        "test": columns * evaluation.window * num_windows + burn_in + 1,
    }
    generator = np.random.default_rng(config.seed)
    splits = {
        split: generator.integers(vocabulary_size, size=length, dtype=np.int32)
        for split, length in lengths.items()
    }
    vocabulary = Vocabulary(tuple(f"w{index}" for index in range(vocabulary_size)))
    datamodule = build.datamodule(plain, Corpus("random", vocabulary, **splits))
    return config, build_model(plain["model"], vocabulary_size), datamodule


def flops_per_token(model: LanguageModel) -> int:
    """Operations of a forward pass, by formula: products of the LSTM layers and the softmax."""
    core: Any = model.core  # one of LSTM layers
    lstm = sum(
        2 * 4 * layer.hidden_size * (layer.input_size + layer.hidden_size) for layer in core.layers
    )
    return lstm + 2 * model.head.input_size * model.head.vocabulary_size


# The machine --------------------------------------------------------------------------------------


def machine(turns: Turns, *, matrix_size: int, copy_bytes: int) -> None:
    """Square products by each path, and a large copy."""
    a, b = torch.randn(2, matrix_size, matrix_size)
    a_bf16, b_bf16 = a.bfloat16(), b.bfloat16()
    exact = a.double() @ b.double()
    out, out_bf16 = torch.empty_like(a), torch.empty_like(a_bf16)  # new memory would cost time
    products: dict[str, Callable[[], Tensor]] = {
        precision: lambda precision=precision: product_with_precision(precision, a, b, out)
        for precision in ("highest", "high", "medium")
    }
    if torch.backends.mkldnn.is_available():
        x, weight = a.to_mkldnn(), b.t().contiguous().to_mkldnn()
        products["onednn"] = lambda: functional.linear(x, weight)
    products["bf16"] = lambda: torch.mm(a_bf16, b_bf16, out=out_bf16)
    turns.facts["flop"] = 2 * matrix_size**3
    turns.facts["bytes"] = 2 * copy_bytes  # read and written
    turns.facts["relative_error"] = {
        name: relative_error(product(), exact) for name, product in products.items()
    }
    del exact
    while True:
        torch.mm(a, b)  # after the others' turns the first product is slower
        laps = Laps()
        for name, product in products.items():
            product()
            laps.end(name)
        source, target = torch.ones(2, copy_bytes // 4)
        laps.end("allocation")
        target.copy_(source)
        laps.end("copy")
        del source, target  # leaves the memory to the others
        turns.end_step(laps.seconds)


def product_with_precision(precision: str, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a @ b`` into ``out`` under a setting of ``torch.set_float32_matmul_precision``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    torch.mm(a, b, out=out)
    torch.set_float32_matmul_precision(before)
    return out


def relative_error(product: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the difference, relative to that of the exact product."""
    dense = product.to_dense() if product.is_mkldnn else product
    return float((dense.double() - exact).norm() / exact.norm())


class Laps:
    """Seconds of the parts of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def end(self, name: str) -> None:
        """Ends a part; the next one begins."""
        now = time.perf_counter()
        self.seconds[name] = now - self._start
        self._start = time.perf_counter()


# lmbench, through Lightning -----------------------------------------------------------------------


class EndStep(L.Callback):
    """Cuts the Trainer's loop at one place: a step is all that happens until it is there again."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Ends a training step."""
        self._turns.end_step()

    def on_test_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Ends a window of the test split."""
        self._turns.end_step()


def lmbench_training(turns: Turns, *, run_dir: str, **arguments: Any) -> None:
    """``trainer.fit``, with all of the config's callbacks and loggers."""
    config, model, datamodule = set_up(**arguments)
    turns.facts["flop"] = 3 * flops_per_token(model) * note_tokens(turns, datamodule, "train")
    turns.facts["num_parameters"] = model.num_parameters
    plain = plain_config(config)
    module = build.module(plain, model)
    trainer: Any = build.trainer(plain, Path(run_dir))
    trainer.callbacks.append(EndStep(turns))
    trainer.fit(module, datamodule=datamodule)


def lmbench_evaluation(turns: Turns, *, run_dir: str, **arguments: Any) -> None:
    """``trainer.test``."""
    config, model, datamodule = set_up(**arguments)
    turns.facts["flop"] = flops_per_token(model) * note_tokens(turns, datamodule, "test")
    plain = plain_config(config)
    module = build.module(plain, model)
    trainer: Any = build.trainer(plain, Path(run_dir))
    trainer.callbacks.append(EndStep(turns))
    trainer.test(module, datamodule=datamodule, verbose=False)


def note_tokens(turns: Turns, datamodule: LanguageModelDataModule, split: str) -> int:
    """Number of tokens in a window."""
    num_tokens = next(windows(datamodule, split)).tokens.numel()
    turns.facts["num_tokens"] = num_tokens
    return num_tokens


def windows(datamodule: LanguageModelDataModule, split: str) -> Iterator[Batch]:
    """The windows of a split, without Lightning."""
    loader = datamodule.train_dataloader() if split == "train" else datamodule.test_dataloader()
    return iter(loader)


# lmbench, part by part ----------------------------------------------------------------------------


def lmbench_parts(turns: Turns, **arguments: Any) -> None:
    """The same training step in a bare loop, and further optimizers with the same gradients."""
    config, model, datamodule = set_up(**arguments)
    parameters = list(model.parameters())
    optimizer = first_optimizer(config, parameters)
    others = averaging_optimizers(config, parameters)
    autocast = config.trainer.precision == "bf16-mixed"
    clip = config.trainer.gradient_clip_val
    batches, state = windows(datamodule, "train"), None
    model.train()
    while True:
        laps = Laps()
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            embedded = model.embed(batch.tokens)
            laps.end("embedding")
            output, raw_output, state = model.core(embedded, state)
            state = detach_state(state)
            laps.end("core")
            loss = model.head.loss(output, batch.targets)
            laps.end("head, loss and gradients")
            loss = loss + penalties(config, output, raw_output)
            laps.end("penalties")
        optimizer.zero_grad()
        loss.backward()
        laps.end("backward")
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        laps.end("clip")
        optimizer.step()
        laps.end(f"optimizer ({name_of(optimizer)})")
        step = sum(laps.seconds.values())
        for other in others:
            for copied, parameter in zip(other.param_groups[0]["params"], parameters, strict=True):
                copied.grad = parameter.grad
        instead = Laps()
        for other in others:
            other.step()
            instead.end(f"instead: {name_of(other)}")
        turns.end_step({**laps.seconds, "step": step, **instead.seconds})


def penalties(config: DictConfig, output: Tensor, raw_output: Tensor) -> Tensor | float:
    """Activation regularization as the LightningModule adds it."""
    penalty: Tensor | float = 0.0
    if config.loss.ar_alpha:
        penalty = penalty + config.loss.ar_alpha * activation_regularization(output)
    if config.loss.tar_beta:
        penalty = penalty + config.loss.tar_beta * temporal_activation_regularization(raw_output)
    return penalty


def first_optimizer(config: DictConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The config's optimizer, or the SGD with which NT-ASGD begins."""
    nt_asgd = config.callbacks.get("nt_asgd")
    if nt_asgd is not None and not nt_asgd.average_from_start:
        options = {"lr": config.optimizer.lr, "weight_decay": config.optimizer.weight_decay}
        return torch.optim.SGD(parameters, **options, foreach=True)
    return instantiate(config.optimizer, parameters, _convert_="all")


def averaging_optimizers(
    config: DictConfig, parameters: list[nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """Averaged SGD of lmbench and of PyTorch, each with parameters of its own."""

    def copies() -> list[nn.Parameter]:
        return [nn.Parameter(parameter.detach().clone()) for parameter in parameters]

    options = {"lr": config.optimizer.lr, "weight_decay": config.optimizer.weight_decay}
    return [
        ASGD(copies(), **options),
        torch.optim.ASGD(copies(), **options, t0=0, lambd=0.0, foreach=True),
    ]


def name_of(optimizer: torch.optim.Optimizer) -> str:
    """An optimizer's name as in the documentation: ``torch.optim.SGD``."""
    kind = type(optimizer)
    return f"{kind.__module__.partition('.')[0]}.optim.{kind.__name__}"


# The baseline -------------------------------------------------------------------------------------


class Baseline(nn.Module):
    """The same model as one would first write it: whole masks, and all logits at once.

    Args:
        config: A config of lmbench; its core is ``lstm`` or ``awd_lstm``.
        vocabulary_size: Number of words, V.
    """

    def __init__(self, config: DictConfig, vocabulary_size: int) -> None:
        super().__init__()
        core = config.model.core
        inner = [core.hidden_size] * (core.num_layers - 1)
        sizes = [config.model.embedding_size, *inner, core.output_size or core.hidden_size]
        self.embedding = nn.Embedding(vocabulary_size, sizes[0])
        self.layers = nn.ModuleList(itertools.starmap(nn.LSTM, itertools.pairwise(sizes)))
        self.decoder = nn.Linear(sizes[-1], vocabulary_size, bias=config.model.head.bias)
        if config.model.tied:
            self.decoder.weight = self.embedding.weight
        self.locked = "weight_dropout" in core
        self.p_embedding = config.model.embedding_dropout
        self.p_input, self.p_hidden, self.p_output = (
            core[f"{place}_dropout" if self.locked else "dropout"]
            for place in ("input", "hidden", "output")
        )
        self.p_weight = core.weight_dropout if self.locked else 0.0
        self.ar_alpha, self.tar_beta = config.loss.ar_alpha, config.loss.tar_beta

    def drop(self, x: Tensor, p: float) -> Tensor:
        """Drops elements of ``(T, B, E)``; in AWD-LSTM the same ones at every time step."""
        if self.locked and self.training:
            return x * functional.dropout(torch.ones_like(x[:1]), p)
        return functional.dropout(x, p, self.training)

    def forward(self, tokens: Tensor, state: list | None) -> tuple[Tensor, Tensor, list]:
        """Outputs ``(T, B, H)`` after dropout and before it, and the detached state."""
        mask = functional.dropout(
            torch.ones_like(self.embedding.weight[:, :1]), self.p_embedding, self.training
        )
        x = self.drop(functional.embedding(tokens, self.embedding.weight * mask), self.p_input)
        raw, new_state = x, []
        for index, layer in enumerate(self.layers):
            if index > 0:
                x = self.drop(raw, self.p_hidden)
            weight = cast(Tensor, layer.weight_hh_l0)
            dropped = {"weight_hh_l0": functional.dropout(weight, self.p_weight, self.training)}
            raw, last = functional_call(layer, dropped, (x, state[index] if state else None))
            new_state.append(tuple(tensor.detach() for tensor in last))
        return self.drop(raw, self.p_output), raw, new_state

    def nats(self, output: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy from all logits."""
        logits = functional.linear(output, self.decoder.weight, self.decoder.bias)
        return functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction=reduction
        )

    def loss(self, batch: Batch, state: list | None) -> tuple[Tensor, list | None]:
        """Mean nats with the activation penalties, and the next state."""
        output, raw, state = self(batch.tokens, state)
        loss = self.nats(output, batch.targets)
        if self.ar_alpha:
            loss = loss + self.ar_alpha * output.pow(2).mean()
        if self.tar_beta:
            loss = loss + self.tar_beta * (raw[1:] - raw[:-1]).pow(2).mean()
        return loss, state


def baseline_training(turns: Turns, **arguments: Any) -> None:
    """A plain loop with ``torch.optim.SGD``."""
    config, model, datamodule = set_up(**arguments)
    baseline = baseline_of(config, model)
    turns.facts["flop"] = 3 * flops_per_token(model) * note_tokens(turns, datamodule, "train")
    turns.facts["loss"] = same_loss(config, model, baseline, next(windows(datamodule, "train")))
    del model
    optimizer = torch.optim.SGD(
        baseline.parameters(), config.optimizer.lr, weight_decay=config.optimizer.weight_decay
    )
    baseline.train()
    state = None
    for batch in windows(datamodule, "train"):
        loss, state = baseline.loss(batch, state)
        optimizer.zero_grad()
        loss.backward()
        if config.trainer.gradient_clip_val:
            nn.utils.clip_grad_norm_(baseline.parameters(), config.trainer.gradient_clip_val)
        optimizer.step()
        turns.end_step()


def baseline_evaluation(turns: Turns, **arguments: Any) -> None:
    """A plain loop over the same columns."""
    config, model, datamodule = set_up(**arguments)
    baseline = baseline_of(config, model).eval()
    turns.facts["flop"] = flops_per_token(model) * note_tokens(turns, datamodule, "test")
    del model
    state, total = None, 0.0
    with torch.no_grad():
        for batch in windows(datamodule, "test"):
            output, _, state = baseline(batch.tokens, state)
            total += baseline.nats(output, batch.targets, "sum").item()
            turns.end_step()


def baseline_of(config: DictConfig, model: LanguageModel) -> Baseline:
    """The baseline with the same weights."""
    for part, known in (("core", ("LSTM", "AWDLSTM")), ("head", ("Softmax",))):
        target = config.model[part]._target_
        if target.rpartition(".")[2] not in known:
            raise UserError(f"The baseline has no {part} {target}.")
    baseline = Baseline(config, model.head.vocabulary_size)
    baseline.load_state_dict(
        {
            name.replace("core.layers.", "layers.").replace("head.", "decoder."): value
            for name, value in model.state_dict().items()
        }
    )
    return baseline


@torch.no_grad()
def same_loss(
    config: DictConfig, model: LanguageModel, baseline: Baseline, batch: Batch
) -> dict[str, float]:
    """The loss of both without dropout; refuses to compare speeds of unequal work."""
    output, raw_output, _ = model.eval()(batch.tokens)
    nll = model.head.loss(output, batch.targets)
    losses = {
        "lmbench": float(nll + penalties(config, output, raw_output)),
        "baseline": float(baseline.eval().loss(batch, None)[0]),
    }
    if not abs(losses["lmbench"] / losses["baseline"] - 1.0) <= 1e-5:  # NaN is not equal either
        raise UserError(f"lmbench and the baseline compute different losses: {losses}")
    return losses

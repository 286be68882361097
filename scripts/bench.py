"""Measures speed and memory of training and evaluation on this machine's processor.

lmbench's steps stand beside the same steps written plainly (all logits at once) and beside products
of large matrices. All run in this process and take turns, so that a change in the machine's speed
affects all alike. Tokens are random; neither files nor a network are needed.

    python scripts/bench.py                              model=awd_lstm, then model=lstm
    python scripts/bench.py model=awd_lstm batching.batch_size=40
    python scripts/bench.py --scale                      a text and a vocabulary like WikiText-103's
    python scripts/bench.py --quick                      tiny sizes, to try the script

Memory is the peak of a turn above what was in use before it, weights and optimizers included.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.benchmark import Measurement, TaskSpec, Timer

from lmbench.callbacks.throughput import peak_memory_bytes, reset_peak_memory
from lmbench.data.corpus import Corpus, load_text
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.instantiate import training as build
from lmbench.instantiate.model import build_model
from lmbench.loss.activation_penalty import (
    activation_regularization,
    temporal_activation_regularization,
)
from lmbench.machine import processor, set_matmul_precision, set_up_allocator, set_up_threads
from lmbench.model import LanguageModel
from lmbench.model.contracts import State, detach_state
from lmbench.optim import ASGD
from lmbench.run.config import plain_config
from lmbench.run.provenance import provenance
from lmbench.run.targets import conf_dir

PRECISIONS = ("highest", "high", "medium", "bf16")
"""Settings of ``torch.set_float32_matmul_precision``; and autocast to bfloat16, with medium."""

TINY = ("model.embedding_size=16", "model.core.hidden_size=16")
TINY += ("batching.batch_size=4", "batching.bptt=8")
WIKITEXT103_TOKENS, WIKITEXT103_WORDS = 103_227_021, 267_735  # Merity et al. 2016
CPU = torch.device("cpu")

Window = tuple[Tensor, Tensor]
"""Tokens and targets, each ``(T, B)``."""

Loss = Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]
"""Mean nats of a window with the penalties, and the next state, from tokens, targets and state."""


@dataclass
class Row:
    """Something to measure.

    Attributes:
        group: What it is compared with: the first row of this group.
        name: Its name in the group.
        turn: Runs some steps; returns the seconds of each.
        precision: The matrix products whose speed is its limit.
        num_tokens: Tokens of a step.
        flop: Operations of a step's matrix products.
        seconds: What the turns so far returned.
        memory_bytes: The highest peak of these turns.
    """

    group: str
    name: str
    turn: Callable[[], Measurement]
    precision: str = ""
    num_tokens: int = 0
    flop: int = 0
    seconds: list[float] = field(default_factory=list)
    memory_bytes: int = 0


def main(args: argparse.Namespace) -> None:
    """Measures and prints a table of each model, or of a large text."""
    set_up_threads()
    set_up_allocator()
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(
        f"{processor()['name']}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"commit {str(provenance()['commit'])[:7]}; load: {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        if args.scale:
            console.print(table(f"{args.scale:,} tokens", measured(scale_rows(args, folder), args)))
            return
        is_chosen = any(text.startswith(("model=", "experiment=")) for text in args.overrides)
        for model in ("",) if is_chosen else ("model=awd_lstm", "model=lstm"):
            config = config_of(*filter(None, [model]), *TINY * args.quick, *args.overrides)
            rows = model_rows(config, args, folder)
            console.print(table(config.model.name, measured(rows, args)))


def measured(rows: list[Row], args: argparse.Namespace) -> list[Row]:
    """The rows after their turns: one of each in every round."""
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        for row in rows:
            reset_peak_memory(CPU)
            before = peak_memory_bytes(CPU)
            row.seconds += row.turn().times
            row.memory_bytes = max(row.memory_bytes, peak_memory_bytes(CPU) - before)
    return rows


def table(title: str, rows: list[Row]) -> Table:
    """A table with a section for each group."""
    shown = Table(title=title, title_justify="left")
    columns = ("ms/step", "spread", "times as fast", "tokens/s", "memory, MiB", "of peak")
    shown.add_column("")
    for column in columns:
        shown.add_column(column, justify="right")
    peaks = {row.name: row.flop / timing(row.seconds).median for row in rows if not row.num_tokens}
    for group, members in itertools.groupby(rows, key=lambda row: row.group):
        shown.add_section()
        shown.add_row(f"[bold]{group}")
        first = None
        for row in members:
            steps = timing(row.seconds)
            seconds = steps.median
            first = first or seconds
            peak = peaks.get(row.precision)
            shown.add_row(
                f"  {row.name}",
                f"{1e3 * seconds:,.2f}",
                f"{steps.iqr / seconds:.0%}",
                f"{first / seconds:.2f}",
                f"{row.num_tokens / seconds:,.0f}" if row.num_tokens else "",
                f"{row.memory_bytes / 2**20:,.0f}",
                f"{row.flop / seconds / peak:.0%}" if peak else "",
            )
    return shown


def timing(seconds: list[float]) -> Measurement:
    """Median and spread (interquartile range) of steps."""
    return Measurement(1, seconds, TaskSpec("step()", ""))


def timed(step: Callable[[], object], args: argparse.Namespace) -> Callable[[], Measurement]:
    """A turn: the mean of some steps, after two that warm up."""
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return lambda: timer.timeit(args.steps)


def in_precision(precision: str, step: Callable[[], object]) -> Callable[[], None]:
    """The step with a setting for products of float32, or in bfloat16."""

    def set_and_step() -> None:
        is_bf16 = precision == "bf16"
        torch.set_float32_matmul_precision("medium" if is_bf16 else precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            step()

    return set_and_step


def config_of(*overrides: str) -> DictConfig:
    """The config of ``lmbench-train``, for steps that are all the same work."""
    fixed = ("trainer.accelerator=cpu", "trainer.devices=1", "trainer.limit_val_batches=1")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", [*overrides, *fixed, "batching.variable_windows=false"])


def model_rows(config: DictConfig, args: argparse.Namespace, folder: str) -> list[Row]:
    """All that is measured of a model.

    Raises:
        UserError: The baseline has no such core or head.
    """
    torch.manual_seed(config.seed)
    model = build_model(plain_config(config)["model"], args.vocabulary_size)
    baseline = baseline_of(config, model)
    window, columns = config.batching, config.evaluation.get("columns", 1)
    training = random_window(args.vocabulary_size, window.bptt, window.batch_size)
    test = random_window(args.vocabulary_size, config.evaluation.window, columns)
    loss = loss_of(config, model)
    model.eval()
    require_equal_losses(loss, baseline.eval(), training)

    size = 256 if args.quick else 4096
    a, b = torch.randn(2, size, size)
    out, flop = torch.empty_like(a), 2 * size**3  # new memory would cost time
    a_bf16, b_bf16, out_bf16 = a.bfloat16(), b.bfloat16(), out.bfloat16()
    rows = []
    for name in args.precisions:
        factors = (a_bf16, b_bf16, out_bf16) if name == "bf16" else (a, b, out)
        step = in_precision(name, lambda x=factors: torch.mm(*x[:2], out=x[2]))
        rows.append(Row(f"matrix products, {size} wide", name, timed(step, args), name, 0, flop))

    for group, window in (("training", training), ("evaluation", test)):
        is_training, num_tokens = group == "training", window[0].numel()
        flop = (3 if is_training else 1) * flops_per_token(model) * num_tokens
        plain = step_of(config, baseline, baseline.loss, window, is_training=is_training)
        step = step_of(config, model, loss, window, is_training=is_training)
        choices = [("plain, highest", "highest", plain)]
        choices += [(f"lmbench, {name}", name, step) for name in args.precisions]
        for name, precision, step in choices:
            turn = timed(in_precision(precision, step), args)
            rows.append(Row(group, name, turn, precision, num_tokens, flop))
    return [*rows, *averaged_sgd_rows(model, args), *trainer_rows(config, args, folder)]


def random_window(vocabulary_size: int, length: int, num_columns: int) -> Window:
    """Tokens drawn at random."""
    stream = torch.randint(vocabulary_size, (length + 1, num_columns))
    return stream[:-1], stream[1:]


def flops_per_token(model: LanguageModel) -> int:
    """Operations of a forward pass, by formula: products of the LSTM layers and the softmax."""
    layers = cast(Any, model.core).layers
    lstm = sum(2 * 4 * x.hidden_size * (x.input_size + x.hidden_size) for x in layers)
    return lstm + 2 * model.head.input_size * model.head.vocabulary_size


def loss_of(config: DictConfig, model: LanguageModel) -> Loss:
    """What lmbench trains on."""

    def loss(tokens: Tensor, targets: Tensor, before: State | None) -> tuple[Tensor, State]:
        output, raw_output, state = model(tokens, before)
        loss = model.head.loss(output, targets)
        if config.loss.ar_alpha:
            loss = loss + config.loss.ar_alpha * activation_regularization(output)
        if config.loss.tar_beta:
            penalty = temporal_activation_regularization(raw_output)
            loss = loss + config.loss.tar_beta * penalty
        return loss, detach_state(state)

    return loss


def step_of(
    config: DictConfig, model: nn.Module, loss: Loss, window: Window, *, is_training: bool
) -> Callable[[], None]:
    """A step of SGD, without Lightning; or only the loss, as in evaluation."""
    parameters, state = list(model.parameters()), None
    optimizer = torch.optim.SGD(parameters, 1e-3, weight_decay=config.optimizer.weight_decay)

    def step() -> None:
        nonlocal state
        model.train(is_training)
        with torch.set_grad_enabled(is_training):
            value, state = loss(*window, state)
        if is_training:
            optimizer.zero_grad()
            value.backward()
            if config.trainer.gradient_clip_val:
                nn.utils.clip_grad_norm_(parameters, config.trainer.gradient_clip_val)
            optimizer.step()

    return step


def averaged_sgd_rows(model: nn.Module, args: argparse.Namespace) -> list[Row]:
    """Steps of averaged SGD on copies of a model's parameters."""
    rows = []
    for kind, options in ((torch.optim.ASGD, {"t0": 0, "lambd": 0.0, "foreach": True}), (ASGD, {})):
        parameters = [nn.Parameter(x.detach().clone()) for x in model.parameters()]
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer = kind(parameters, lr=1.0, weight_decay=1e-6, **options)
        name = f"{kind.__module__.partition('.')[0]}.optim.ASGD"
        rows.append(Row("averaged SGD", name, timed(optimizer.step, args)))
    return rows


def trainer_rows(config: DictConfig, args: argparse.Namespace, folder: str) -> list[Row]:
    """What Lightning and the data cost: steps of a tiny model, without the Trainer and with it."""
    num_steps, num_words = 100, 100
    for key, _, value in (override.partition("=") for override in TINY):
        OmegaConf.update(config, key, int(value))
    config.trainer.max_steps = num_steps
    plain, window = plain_config(config), config.batching
    model = build_model(plain["model"], num_words)
    tokens = torch.randint(num_words, (window.batch_size * (window.bptt * num_steps + 1),))
    train, heldout = tokens.int().numpy(), np.zeros(1000, np.int32)
    vocabulary = Vocabulary(tuple(map(str, range(num_words))))
    data = build.datamodule(plain, Corpus("random", vocabulary, train, heldout, heldout))
    module = build.module(plain, model)

    def fit() -> Measurement:
        times = StepTimes()
        with tempfile.TemporaryDirectory(dir=folder) as run_dir:
            build.trainer(plain, Path(run_dir), more=[times]).fit(module, datamodule=data)
        return timing(times.seconds)

    columns = random_window(num_words, window.bptt, window.batch_size)
    step = in_precision(
        "highest", step_of(config, model, loss_of(config, model), columns, is_training=True)
    )
    group = "a tiny model's training"
    return [
        Row(group, name, turn, "", columns[0].numel())
        for name, turn in (("loop", timed(step, args)), ("Trainer and data", fit))
    ]


class StepTimes(L.Callback):
    """Notes the seconds from the end of a step to the end of the next one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._end = 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Ends a step; the first two are left out."""
        before, self._end = self._end, time.perf_counter()
        if batch_idx > 1:
            self.seconds.append(self._end - before)


class Baseline(nn.Module):
    """The same model as one would first write it: whole masks, and all logits at once.

    Args:
        config: A config of lmbench; its core is ``lstm`` or ``awd_lstm``.
        vocabulary_size: Number of words.
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

    def loss(self, tokens: Tensor, targets: Tensor, before: list | None) -> tuple[Tensor, list]:
        """Mean nats with the activation penalties, and the next state."""
        output, raw, state = self(tokens, before)
        logits = self.decoder(output)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if self.ar_alpha:
            loss = loss + self.ar_alpha * output.pow(2).mean()
        if self.tar_beta:
            loss = loss + self.tar_beta * (raw[1:] - raw[:-1]).pow(2).mean()
        return loss, state


def baseline_of(config: DictConfig, model: LanguageModel) -> Baseline:
    """The baseline with the same weights.

    Raises:
        UserError: The baseline has no such core or head.
    """
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
def require_equal_losses(loss: Loss, baseline: Baseline, window: Window) -> None:
    """Refuses to compare speeds of unequal work; the models must be without dropout.

    Raises:
        UserError: lmbench and the baseline compute different losses.
    """
    losses = [float(each(*window, None)[0]) for each in (loss, baseline.loss)]
    if not abs(losses[0] / losses[1] - 1.0) <= 1e-5:  # NaN is not equal either
        raise UserError(f"lmbench and the baseline compute different losses: {losses}.")


def scale_rows(args: argparse.Namespace, folder: str) -> list[Row]:
    """Heads of a large vocabulary, and the first opening of a long text."""
    num_words = 3000 if args.quick else WIKITEXT103_WORDS
    rng = np.random.default_rng(0)
    output = torch.randn(1400, 400, requires_grad=True)
    targets = torch.from_numpy(zipf_ids(rng, len(output), num_words))
    sizes = {"input_size": output.shape[1], "vocabulary_size": num_words}
    counts = {"counts": WIKITEXT103_TOKENS // np.arange(1, num_words + 1)}
    set_matmul_precision("auto", "cpu")
    rows = []
    for name, options in (("softmax", {}), ("adaptive_softmax", counts)):
        node = OmegaConf.load(conf_dir() / "model" / "head" / f"{name}.yaml")
        head = instantiate(node, **sizes, **options)

        def step(head: Any = head) -> None:
            head.zero_grad()
            head.loss(output, targets).backward()

        rows.append(Row(f"{num_words:,} words", name, timed(step, args), "", len(output)))

    text = Path(folder, "text")
    write_text(text, args.scale, rng, num_words)

    def tokenize() -> Measurement:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            start = time.perf_counter()
            load_text(text, cache_dir=cache)
            return timing([time.perf_counter() - start])

    return [*rows, Row("text", "tokenize and number", tokenize, "", 3 * args.scale)]


def write_text(folder: Path, num_tokens: int, rng: np.random.Generator, num_words: int) -> None:
    """Writes train, valid and test, in lines of 99 words and a line end."""
    folder.mkdir()
    words = np.array([f"w{index:x}" for index in range(num_words)], dtype=object)
    for split in ("train", "valid", "test"):
        with (folder / f"{split}.txt").open("w", encoding="utf-8") as file:
            for start in range(0, num_tokens, 10**6):
                ids = zipf_ids(rng, min(10**6, num_tokens - start), num_words)
                for line in range(0, len(ids), 100):
                    file.write(" ".join(words[ids[line : line + 99]]) + "\n")


def zipf_ids(rng: np.random.Generator, size: int, num_words: int) -> np.ndarray:
    """Ids whose frequency falls with 1 / (id + 1)."""
    weights = 1.0 / np.arange(1, num_words + 1)
    return rng.choice(num_words, size, p=weights / weights.sum())


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; options and overrides in any order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("overrides", nargs="*", help="of the config, as lmbench-train takes them")
    add("--rounds", type=int, default=5, help="turns of each; default %(default)s")
    add("--steps", type=int, default=2, help="of a turn; default %(default)s")
    add("--vocabulary-size", type=int, default=33278, help="default %(default)s, WikiText-2's")
    add("--precisions", default=",".join(PRECISIONS), help="with commas; default %(default)s")
    add("--scale", type=int, nargs="?", const=WIKITEXT103_TOKENS, help="tokens of the text")
    add("--quick", action="store_true", help="tiny sizes, some seconds")
    args = parser.parse_intermixed_args(arguments)
    args.precisions = args.precisions.split(",")
    if unknown := set(args.precisions) - set(PRECISIONS):
        parser.error(f"--precisions: {', '.join(unknown)} not among {', '.join(PRECISIONS)}")
    if args.quick:
        args.rounds, args.vocabulary_size = 2, 1000
    return args


if __name__ == "__main__":
    try:
        main(parse_arguments())
    except (HydraException, UserError) as error:
        sys.exit(str(error))

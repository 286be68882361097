"""Checks lmbench on a CUDA device: agreement with the CPU, needless copies, speed, and training.

The model is AWD-LSTM at its published size on random tokens; training is on WikiText-2, if
``scripts/gpu_check.sh prepare`` has put it into ``build/gpu_check``. Fails if results differ.

    scripts/gpu_check.sh --output gpu_check.json
    python scripts/gpu_check.py --device cpu --quick        tiny sizes, to try the script
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import bench
import bench_variants as variants
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from lmbench.callbacks.throughput import peak_memory_bytes
from lmbench.model import LanguageModel
from lmbench.model.contracts import detach_state
from lmbench.model.dropout import WeightDropout

Rows = list[dict[str, Any]]

CARRIED = Path("build/gpu_check")
PRECISIONS = {
    "float32": ("float32_matmul_precision=highest", "trainer.precision=32-true"),
    "tf32": ("float32_matmul_precision=high", "trainer.precision=32-true"),
    "bf16-mixed": ("float32_matmul_precision=high", "trainer.precision=bf16-mixed"),
}
TOLERANCE = 1e-5  # norm of the difference over that of the correct result
ONLY_CUDA = [{"left out": "on a CUDA device only"}]


def main(args: argparse.Namespace) -> None:
    """All checks, one after the other; the report is written after each."""
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA device. To try the script without one: --device cpu --quick")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    facts = {"device": name, "cuda": torch.version.cuda, **bench.environment()}
    report: dict[str, Any] = {"environment": facts}
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"{name}, CUDA {torch.version.cuda}; {bench.describe(facts)}")
    for check in (parity, copies, speed, cuda_graph, training):
        rows = report[check.__name__] = check(device, args)
        console.print(table_of(str(check.__doc__), rows))
        if args.output:
            args.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if not all(row["relative error"] <= TOLERANCE for row in report["parity"]):
        sys.exit("The results differ from the CPU's.")


def table_of(title: str, rows: Rows) -> Table:
    """A table whose columns are the dicts' keys."""
    first, *columns = rows[0]
    table = bench.new_table(title, *columns, first=first)
    table.min_width = min(len(title), 100)
    for row in rows:
        table.add_row(*(f"{x:,.4g}" if isinstance(x, float) else str(x) for x in row.values()))
    return table


def set_up(args: argparse.Namespace, precision: str, *overrides: str) -> tuple[Any, Any, list]:
    """Config, model and two windows of random tokens."""
    chosen = ["model=awd_lstm", *PRECISIONS[precision], *(bench.TINY if args.quick else ())]
    vocabulary_size = bench.TINY_VOCABULARY_SIZE if args.quick else 33278
    config, model, data = variants.set_up([*chosen, *overrides], vocabulary_size, num_windows=2)
    return config, model, list(itertools.islice(variants.windows(data, "train"), 2))


def parity(device: torch.device, args: argparse.Namespace) -> Rows:
    """Float32 on the device against float64 on the CPU, with the same dropout masks."""
    shorter = () if args.quick else ("batching.batch_size=8", "batching.bptt=20")
    _, model, batches = set_up(args, "float32", *shorter)
    found = two_windows(model.to(device), batches, device)
    right = two_windows(model.double().cpu(), batches, torch.device("cpu"))
    rows = []
    for part, tensors in right.items():
        errors = {
            name: float((found[part][name].double().cpu() - tensor).norm() / tensor.norm())
            for name, tensor in tensors.items()
        }
        worst = max(errors, key=lambda name: (math.isnan(errors[name]), errors[name]))
        row = {"part": part, "relative error": errors[worst], "tolerance": TOLERANCE}
        rows.append(row | {"largest in": worst})
    return rows


def two_windows(model: LanguageModel, batches: list, device: torch.device) -> dict[str, Any]:
    """What two windows in training give, the second from the state that the first one left."""
    generator = torch.Generator().manual_seed(0)

    def dropout(input: Tensor, p: float) -> Tensor:
        keep = torch.rand(input.shape, generator=generator) >= p  # on the CPU: devices differ
        return input * keep.to(input) / (1 - p)

    forward, state = {}, None
    model.train().zero_grad()
    with (
        mock.patch.object(functional, "dropout", dropout),
        mock.patch.object(WeightDropout, "forward", lambda self, weight: dropout(weight, self.p)),
    ):
        for index, batch in enumerate(batches):
            output, _, state = model(batch.tokens.to(device), state)
            loss = model.head.loss(output, batch.targets.to(device))
            loss.backward()
            state = detach_state(state)
            forward |= {f"output {index}": output.detach(), f"loss {index}": loss.detach()}
            forward[f"cell state {index}"] = state[-1][1]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"forward": forward, "gradients": {name: g.clone() for name, g in gradients.items()}}


class Step:
    """lmbench's training step in a bare loop, on one window: it could be a CUDA graph."""

    def __init__(self, device: torch.device, *settings: Any) -> None:
        self.config, model, batches = set_up(*settings)
        self.tokens, self.targets = (tensor.to(device) for tensor in batches[0][:2])
        self.model: LanguageModel = model.to(device).train()
        self.optimizer = variants.first_optimizer(self.config, list(model.parameters()))
        self.flop = 3 * variants.flops_per_token(model) * self.tokens.numel()
        with torch.no_grad():
            self.state = self.model(self.tokens).state

    def __call__(self) -> None:
        """Leaves the new state in the memory of the old one, as a graph needs it."""
        bf16 = self.config.trainer.precision == "bf16-mixed"
        with torch.autocast(self.tokens.device.type, torch.bfloat16, enabled=bf16):
            output, raw_output, state = self.model(self.tokens, self.state)
            loss = self.model.head.loss(output, self.targets)
            loss = loss + variants.penalties(self.config, output, raw_output)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.trainer.gradient_clip_val)
        self.optimizer.step()
        for old, new in zip(sum(self.state, ()), sum(detach_state(state), ()), strict=True):
            old.copy_(new)


def seconds_of(call: Callable[[], Any], device: torch.device, num_calls: int) -> float:
    """Median over five groups of calls, after each of which it waits for the device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    samples = []
    for _ in range(1 + 5):  # the first one warms up
        start = time.perf_counter()
        for _ in range(num_calls):
            call()
        wait()
        samples.append((time.perf_counter() - start) / num_calls)
    return statistics.median(samples[1:])


def copies(device: torch.device, args: argparse.Namespace) -> Rows:
    """Copies within the device in a float32 step: what gathering dropped weights costs cuDNN."""
    if device.type != "cuda":
        return ONLY_CUDA
    rows = []
    for p in (0.5, 0.0):
        step = Step(device, args, "float32", f"model.core.weight_dropout={p}")
        step_ms = 1e3 * seconds_of(step, device, args.steps)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            step()
            torch.cuda.synchronize(device)
        found = [event for event in profiler.events() or () if "DtoD" in event.name]
        ms = sum(event.time_range.elapsed_us() for event in found) / 1e3
        rows.append({"weight dropout": p, "copies": len(found), "ms": ms, "ms/step": step_ms})
    return rows


def speed(device: torch.device, args: argparse.Namespace) -> Rows:
    """Training in a bare loop; the peak is that of square products in the same precision."""
    heads: list[tuple[str, ...]] = [()]
    rows = []
    if device.type == "cuda" and find_spec("liger_kernel"):
        heads.append(("model.head.kernel=liger",))
    for precision, head in itertools.product(PRECISIONS, heads):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = Step(device, args, precision, *head)
        seconds = seconds_of(step, device, args.steps)
        memory = peak_memory_bytes(device)
        size = 256 if args.quick else 8192
        dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        a, b, out = torch.randn(3, size, size, device=device).to(dtype)
        product = seconds_of(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, args.steps)
        peak, reached = 2 * size**3 / product, step.flop / seconds
        row = {"precision": " ".join((precision, *head)), "tokens/s": step.tokens.numel() / seconds}
        row |= {"ms/step": 1e3 * seconds, "peak memory, GiB": memory / 2**30}
        row |= {"TFLOP/s": reached / 1e12, "peak TFLOP/s": peak / 1e12}
        rows.append(row | {"% of peak": 100 * reached / peak})
        del step, a, b, out  # so that the next one's peak memory is its own
    return rows


def cuda_graph(device: torch.device, args: argparse.Namespace) -> Rows:
    """A trial: the same step, recorded once and replayed as a CUDA graph."""
    if device.type != "cuda":
        return ONLY_CUDA
    rows = []
    for precision in PRECISIONS:
        step, graph = Step(device, args, precision), torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        with torch.cuda.stream(torch.cuda.Stream(device)):  # a graph is not recorded on the default
            eager = 1e3 * seconds_of(step, device, args.steps)
        row: dict[str, Any] = {"precision": precision, "ms/step": eager}
        step.optimizer.zero_grad()  # the graph's gradients are in its own memory
        try:
            with torch.cuda.graph(graph):
                step()
            row["as a graph"] = 1e3 * seconds_of(graph.replay, device, args.steps)
        except RuntimeError as error:
            row["as a graph"] = str(error).partition("\n")[0]
        rows.append(row)
    return rows


def training(device: torch.device, args: argparse.Namespace) -> Rows:
    """lmbench-train on WikiText-2, or on a few words with --quick."""
    corpus = [f"data.path={CARRIED}/wikitext-2", f"data.cache_dir={CARRIED}/cache"]
    if args.quick:
        sizes = {"num_words": 40, "num_train_tokens": 2000, "num_valid_tokens": 300}
        corpus = ["data=synthetic", *(f"data.{key}={size}" for key, size in sizes.items())]
        corpus += bench.TINY
    elif not (CARRIED / "wikitext-2").is_dir():
        return [{"left out": f"no {CARRIED}/wikitext-2; scripts/gpu_check.sh prepare DIR makes it"}]
    settings = [f"trainer.accelerator={device.type}", f"trainer.max_epochs={args.epochs}"]
    settings += ["float32_matmul_precision=high", "logger.tensorboard=null", *corpus]
    rows = []
    for model in ("lstm", "awd_lstm"):
        with tempfile.TemporaryDirectory() as run_dir:
            command = [sys.executable, "-m", "lmbench.cli.train"]
            overrides = [f"model={model}", *settings, f"hydra.run.dir={run_dir}"]
            subprocess.run([*command, *overrides], check=True)
            results = json.loads(Path(run_dir, "results.json").read_text("utf-8"))
        train = results["train"]
        row = {"model": model, "epochs": train["epochs"], "minutes": train["seconds"] / 60}
        row |= {"valid ppl": results["val"]["ppl"], "test ppl": results["test"]["ppl"]}
        row |= {"tokens/s": train["tokens_per_second"]}
        rows.append(row | {"peak memory, GiB": train["peak_memory_bytes"] / 2**30})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, some seconds")
    parser.add_argument("--steps", type=int, default=10, help="timed together; default 10")
    parser.add_argument("--epochs", type=int, default=3, help="of training; default 3")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    if args.output and not args.output.absolute().parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")
    main(args)

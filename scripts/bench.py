"""Measures the speed and memory of training and evaluation on this machine's processor.

lmbench's own step, through Trainer and config, is compared with the same step written plainly (all
logits at once, default settings) and with what the machine can do. Every variant runs in a process
of its own; they take turns, so that a change in the machine's speed affects all alike. Tokens are
random and windows of constant length; no files and no network are needed. Times are medians over
all steps of all rounds.

    python scripts/bench.py                                 model=awd_lstm, then model=lstm
    python scripts/bench.py model=awd_lstm batching.batch_size=40
    python scripts/bench.py --quick                         tiny sizes, to try the script
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import bench_variants as variants
import lightning
import torch
from hydra.errors import HydraException
from rich.console import Console
from rich.table import Table

from lmbench.machine import set_up_threads

PRECISIONS = {
    "highest": ("float32_matmul_precision=highest", "trainer.precision=32-true"),
    "high": ("float32_matmul_precision=high", "trainer.precision=32-true"),
    "medium": ("float32_matmul_precision=medium", "trainer.precision=32-true"),
    # Whoever chooses bf16 accepts a bf16 product in the head too, if the processor has it.
    "bf16-mixed": ("float32_matmul_precision=medium", "trainer.precision=bf16-mixed"),
}
PATHS = {
    "highest": "float32, precision highest",
    "high": "float32, precision high",
    "medium": "float32, precision medium",
    "onednn": "float32 by oneDNN, as nn.LSTM",
    "bf16": "bf16",
}
TINY = (
    "model.embedding_size=16",
    "model.core.hidden_size=16",
    "batching.batch_size=4",
    "batching.bptt=8",
    "evaluation.columns=4",
    "evaluation.burn_in=8",
    "evaluation.window=8",
)
TINY_VOCABULARY_SIZE = 100
TINY_STEPS = 100  # per turn: a step takes milliseconds


@dataclass
class Variant:
    """A process that takes turns, and what it has measured.

    Attributes:
        run: The function of ``bench_variants``.
        arguments: Its arguments.
        steps: Steps per turn.
        num_threads: None for PyTorch's choice.
        samples: Seconds of each step, by part.
        facts: What else the process reports.
    """

    run: Callable[..., None]
    arguments: dict[str, Any]
    steps: int = 1
    num_threads: int | None = None
    samples: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def median(self, part: str = "step") -> float:
        """Median of the seconds of a part."""
        return statistics.median(sample[part] for sample in self.samples)

    def spread(self) -> float:
        """Interquartile range of the seconds of a step, relative to their median."""
        seconds = [sample["step"] for sample in self.samples]
        lower, _, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return (upper - lower) / self.median()


def main(args: argparse.Namespace) -> None:
    """Measures one model after another."""
    set_up_threads()  # its environment variable is for the processes started below, all of them
    named = any(override.startswith(("model=", "experiment=")) for override in args.overrides)
    groups = [[]] if named else [["model=awd_lstm"], ["model=lstm"]]
    console = Console(width=None if sys.stdout.isatty() else 110)
    report: dict[str, Any] = {"environment": environment(), "settings": vars(args), "models": {}}
    console.print(describe(report["environment"]))
    for group in groups:
        overrides = [*group, *(TINY if args.quick else ()), *args.overrides]
        try:
            config = variants.compose_config(overrides)
        except HydraException as error:
            sys.exit(str(error))
        name = config.model.name
        print(f"{name}: setting up", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            measured = plan(overrides, args, Path(folder))
            take_turns(measured, args, name)
        for table in tables(measured, name):
            console.print(table)
        report["models"][name] = {
            "overrides": overrides,
            "variants": {key: as_json(variant) for key, variant in measured.items()},
        }
        if args.output:
            args.output.write_text(json.dumps(report, indent=1, default=str) + "\n", "utf-8")


def plan(overrides: list[str], args: argparse.Namespace, folder: Path) -> dict[str, Variant]:
    """The variants of a model, in the order of their turns."""

    def variant(run: Callable[..., None], *more: str, tiny: bool = False) -> Variant:
        steps = TINY_STEPS if tiny else args.steps
        arguments = {
            "overrides": [*overrides, *(TINY if tiny else ()), *more],
            "vocabulary_size": TINY_VOCABULARY_SIZE if tiny else args.vocabulary_size,
            "num_windows": variants.WARM_UP_STEPS + args.repeats * (1 + steps) + 2,
        }
        if run in (variants.lmbench_training, variants.lmbench_evaluation):
            arguments["run_dir"] = tempfile.mkdtemp(dir=folder)
        return Variant(run, arguments, steps, num_threads=1 if tiny else None)

    matrix_size, copy_bytes = (256, 2**26) if args.quick else (4096, 2**29)
    plain = PRECISIONS["highest"]
    chosen = {precision: PRECISIONS[precision] for precision in args.precisions}
    return {
        "machine": Variant(
            variants.machine, {"matrix_size": matrix_size, "copy_bytes": copy_bytes}
        ),
        "training/baseline": variant(variants.baseline_training, *plain),
        **{
            f"training/{p}": variant(variants.lmbench_training, *more) for p, more in chosen.items()
        },
        **{f"parts/{p}": variant(variants.lmbench_parts, *more) for p, more in chosen.items()},
        "evaluation/baseline": variant(variants.baseline_evaluation, *plain),
        **{
            f"evaluation/{p}": variant(variants.lmbench_evaluation, *more)
            for p, more in chosen.items()
        },
        "tiny/trainer": variant(variants.lmbench_training, *plain, tiny=True),
        "tiny/parts": variant(variants.lmbench_parts, *plain, tiny=True),
    }


def take_turns(measured: dict[str, Variant], args: argparse.Namespace, name: str) -> None:
    """Round-robin: every round gives each variant a turn; warm-ups come first."""
    # A fresh interpreter's peak memory is all its own. With --quick, processes are forked from one
    # that has already imported Lightning, which saves three seconds each.
    context: Any = get_context("forkserver" if args.quick else "spawn")
    if args.quick:
        context.set_forkserver_preload(["lmbench.instantiate"])
    connections, processes = {}, {}
    try:
        for key, variant in measured.items():
            connections[key], theirs = context.Pipe()
            as_lmbench = not key.endswith("/baseline")  # these have default settings
            arguments = (theirs, variant.run, variant.arguments, variant.steps, variant.num_threads)
            processes[key] = context.Process(
                target=variants.work, args=(*arguments, as_lmbench), daemon=True
            )
            processes[key].start()
            theirs.close()
            receive(connections[key], processes[key], key)
        for repeat in range(args.repeats):
            print(f"{name}: round {repeat + 1} of {args.repeats}", file=sys.stderr)
            for key, variant in measured.items():
                connections[key].send(None)
                samples, variant.facts = receive(connections[key], processes[key], key)
                variant.samples += samples
    finally:
        for process in processes.values():
            process.kill()  # on SIGTERM, Lightning would first finish the step
            process.join()


def receive(connection: Any, process: Any, key: str) -> Any:
    """What a process has measured in its turn."""
    try:
        return connection.recv()
    except EOFError:
        process.join()
        sys.exit(f"{key}: its process ended with exit code {process.exitcode}.")


def tables(measured: dict[str, Variant], name: str) -> list[Table]:
    """All tables of a model."""
    return [
        machine_table(measured["machine"], name),
        speed_table(measured, "training", f"{name}: training"),
        speed_table(measured, "evaluation", f"{name}: evaluation (tokens read, burn-in included)"),
        parts_table(measured, f"{name}: training, ms of a step"),
        overhead_table(measured, f"{name}: overhead of Lightning, ms of a step"),
    ]


def machine_table(machine: Variant, name: str) -> Table:
    """What the machine can do."""
    table = new_table(
        f"The machine, while {name} was measured", "GFLOP/s", "relative error", first="product"
    )
    for key, error in machine.facts["relative_error"].items():
        table.add_row(PATHS[key], f"{peaks(machine)[key]:,.1f}", f"{error:.1e}")
    num_bytes = machine.facts["bytes"]
    table.caption = (
        f"memory: {num_bytes / machine.median('copy') / 1e9:.1f} GB/s, read and written by a copy "
        f"of {num_bytes // 2**21} MiB; threads: {machine.facts['num_threads']}"
    )
    return table


def peaks(machine: Variant) -> dict[str, float]:
    """GFLOP/s of each path."""
    return {
        key: machine.facts["flop"] / machine.median(key) / 1e9
        for key in machine.facts["relative_error"]
    }


def speed_table(measured: dict[str, Variant], kind: str, title: str) -> Table:
    """Tokens per second and memory, against the baseline and the machine's peak."""
    columns = ("tokens/s", "speed-up", "ms/step", "spread", "peak memory", "GFLOP/s", "of peak")
    table = new_table(title, *columns)
    peak = peaks(measured["machine"])
    baseline = measured[f"{kind}/baseline"]
    for key, variant in measured.items():
        if not key.startswith(f"{kind}/"):
            continue
        name = key.removeprefix(f"{kind}/")
        seconds, gflop = variant.median(), variant.facts["flop"] / 1e9
        used = ({"baseline": "highest", "bf16-mixed": "bf16"}.get(name, name), "onednn")
        best = max(peak[path] for path in used if path in peak)
        table.add_row(
            name if variant is baseline else f"lmbench, {name}",
            f"{variant.facts['num_tokens'] / seconds:,.0f}",
            f"{baseline.median() / seconds:.2f}",
            f"{1e3 * seconds:,.1f}",
            f"{variant.spread():.0%}",
            f"{variant.facts['peak_memory_bytes'] / 2**30:.2f} GiB",
            f"{gflop / seconds:,.1f}",
            f"{gflop / seconds / best:.0%}",
        )
    table.caption = (
        f"{baseline.facts['num_tokens']:,} tokens and {baseline.facts['flop'] / 1e9:,.3f} GFLOP a "
        f"step, threads: {baseline.facts['num_threads']}; spread: interquartile range; of peak: of "
        "the faster of the two products in use, that of the precision and float32 of nn.LSTM"
    )
    return table


def parts_table(measured: dict[str, Variant], title: str) -> Table:
    """Where the time of a training step goes."""
    columns = {key: variant for key, variant in measured.items() if key.startswith("parts/")}
    table = new_table(title, *(key.removeprefix("parts/") for key in columns), first="part")
    for part in next(iter(columns.values())).samples[0]:
        cells = [
            f"{1e3 * variant.median(part):,.1f} {share(variant, part):>5}"
            for variant in columns.values()
        ]
        table.add_row("bare step" if part == "step" else part, *cells)
    return table


def share(variant: Variant, part: str) -> str:
    """What share of the bare step a part takes."""
    return f"{variant.median(part) / variant.median():.0%}"


def overhead_table(measured: dict[str, Variant], title: str) -> Table:
    """The Trainer's step against the bare loop of the same parts."""
    table = new_table(title, "Trainer", "bare loop", "overhead", "spread of Trainer")
    pairs = {
        key.removeprefix("parts/"): (measured[key.replace("parts", "training")], measured[key])
        for key in measured
        if key.startswith("parts/")
    }
    pairs["tiny, one thread"] = (measured["tiny/trainer"], measured["tiny/parts"])
    for name, (trainer, bare) in pairs.items():
        seconds = (trainer.median(), bare.median(), trainer.median() - bare.median())
        table.add_row(name, *(f"{1e3 * s:,.2f}" for s in seconds), f"{trainer.spread():.0%}")
    table.caption = "a difference of two medians: below their spread it is chance"
    return table


def new_table(title: str, *columns: str, first: str = "variant") -> Table:
    """A table whose first column is text, and the others numbers."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def environment() -> dict[str, Any]:
    """What the numbers depend on besides the settings."""
    git = [shutil.which("git") or "false", "describe", "--always", "--dirty"]
    here = Path(__file__).parent
    commit = subprocess.run(git, cwd=here, capture_output=True, text=True, check=False).stdout
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.strip() or None,
        "command": sys.argv,
        "cpu": cpu_name(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }


def cpu_name() -> str:
    """Name of the processor; Linux has it in a file."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(facts: dict[str, Any]) -> str:
    """One line about the machine, and a warning if it is busy."""
    line = (
        f"{facts['cpu']}, {facts['num_cores']} cores, {facts['num_threads']} threads, torch "
        f"{facts['torch']}, lightning {facts['lightning']}, commit {facts['commit']}"
    )
    busy = facts["load_average"] > 0.5
    return f"{line}\nThe machine is busy: load {facts['load_average']:.1f}." if busy else line


def as_json(variant: Variant) -> dict[str, Any]:
    """Medians first, then everything they come from."""
    parts = variant.samples[0]
    return {
        "median_seconds": {part: variant.median(part) for part in parts},
        **variant.facts,
        "seconds": {part: [sample[part] for sample in variant.samples] for part in parts},
    }


def parse_arguments() -> argparse.Namespace:
    """The command line; options and overrides in any order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="of the config, as lmbench-train takes them")
    parser.add_argument("--repeats", type=int, help="rounds; default 5, with --quick 2")
    parser.add_argument("--steps", type=int, help="of a turn; default 2")
    parser.add_argument("--vocabulary-size", type=int, help="default 33278, with --quick 1000")
    parser.add_argument(
        "--precisions",
        type=parse_precisions,
        default=",".join(PRECISIONS),
        help="of lmbench, with commas; default %(default)s",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, some seconds")
    parser.add_argument("--output", type=Path, help="JSON file, with every sample")
    args = parser.parse_intermixed_args()
    defaults = {"repeats": (5, 2), "steps": (2, 2), "vocabulary_size": (33278, 1000)}
    for name, (full, quick) in defaults.items():
        value = getattr(args, name)
        if value is None:
            setattr(args, name, quick if args.quick else full)
        elif value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if args.repeats * args.steps < 2:
        parser.error("--repeats times --steps must be at least 2: one step has no spread")
    if args.output and not args.output.absolute().parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")
    return args


def parse_precisions(value: str) -> list[str]:
    """Comma-separated names."""
    unknown = [name for name in value.split(",") if name not in PRECISIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown} not among {', '.join(PRECISIONS)}")
    return value.split(",")


if __name__ == "__main__":
    main(parse_arguments())

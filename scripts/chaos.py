"""Kills a short run again and again, resumes it, and compares it with one that was never killed.

A kill is a SIGKILL some milliseconds after a moment drawn at random: first a phase (the start, a
window, a validation, the writing of a checkpoint, the switch to averaged SGD, the test, the end),
then one of its moments. A run that ends is compared, and the next one begins. Everything must be
the same to the last bit: all tensors of the checkpoints, metrics.csv, the scalars of TensorBoard,
and results.json, times and memory aside.

    python scripts/chaos.py                 25 kills of an AWD-LSTM
    python scripts/chaos.py --kills 3 --model lstm
"""

import argparse
import contextlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from ctypes import Array, c_int
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

OVERRIDES = (
    "data=synthetic",
    "data.num_words=40",
    "data.num_train_tokens=2000",
    "data.num_valid_tokens=300",
    "data.num_test_tokens=200",
    "model.embedding_size=8",
    "model.core.hidden_size=12",
    "batching.batch_size=4",
    "batching.bptt=10",
    "batching.variable_windows=true",
    "evaluation.columns=2",
    "evaluation.burn_in=10",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=6",
    "trainer.log_every_n_steps=3",
    "callbacks.checkpoints.interval_minutes=0.0005",
)
MODEL_OVERRIDES = {
    "lstm": ("model=lstm",),
    # A learning rate this high makes validation stall in the middle of the run.
    "awd_lstm": ("model=awd_lstm", "callbacks.nt_asgd.non_monotone_interval=1", "optimizer.lr=40"),
}
PHASES = ("start", "window", "validation", "checkpoint", "switch", "test", "end")
NOT_COMPARED = ("seconds", "_per_second", "_bytes", "environment", "date")
SECONDS_TO_LIVE = 120
SECONDS_UNTIL_KILL = (0.002, 0.02)  # at most: the middle of a checkpoint, or some windows
MOST_MOMENTS = 60  # that a process passes before it is killed; the rest comes after the resume


def main(args: argparse.Namespace) -> None:
    """The run that is left alone, those that are killed until they end, and the comparison."""
    chance = random.Random(args.seed)
    deaths: Counter[str] = Counter()
    differences: list[str] = []
    num_resumes = num_victims = 0
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, "alone")
        last, moments, exit_code = run(alone, args.model, None)
        if exit_code:
            sys.exit(f"The run left alone ended in phase {last} with exit code {exit_code}.")
        if args.model == "awd_lstm" and "switch" not in moments:
            sys.exit("The run left alone did not switch to averaged SGD.")
        while deaths.total() < args.kills:
            num_victims += 1
            victim = Path(folder, f"victim{num_victims}")
            ended = False
            while not ended:
                kill = None
                if deaths.total() < args.kills:
                    phase = chance.choice(list(moments))
                    number = chance.randrange(min(moments[phase], MOST_MOMENTS))
                    kill = Kill(phase, number, chance.random() * chance.choice(SECONDS_UNTIL_KILL))
                num_resumes += (victim / "config.yaml").exists()
                last, _, exit_code = run(victim, args.model, kill)
                ended = exit_code == 0
                if not ended:
                    if exit_code != -signal.SIGKILL:
                        sys.exit(f"Victim {num_victims} ended in phase {last}: {exit_code}.")
                    deaths[last] += 1
                    print(f"kill {deaths.total()}: victim {num_victims}, {last}", file=sys.stderr)
            differing = compare(alone, victim)
            verdict = "DIFFERENT" if differing else "identical"
            print(f"victim {num_victims}: {verdict}", file=sys.stderr)
            differences += [f"victim {num_victims}: {difference}" for difference in differing]
    print(*(f"{number:4} in phase {phase}" for phase, number in deaths.most_common()), sep="\n")
    print(*differences, sep="\n")
    print(
        f"{deaths.total()} kills of {num_victims} runs, {num_resumes} resumes, end results "
        f"{'DIFFERENT' if differences else 'identical'}"
    )
    sys.exit(bool(differences))


class Kill(NamedTuple):
    """When a process kills itself: some seconds after the n-th moment of a phase."""

    phase: str
    number: int
    seconds: float


def run(run_dir: Path, model: str, kill: Kill | None) -> tuple[str, dict[str, int], int]:
    """Starts or resumes the run in a process of its own.

    Args:
        run_dir: The run's directory.
        model: The model's name.
        kill: When to kill it; None lets it end.

    Returns:
        The last phase, the number of moments of each phase, and the process's exit code.
    """
    context: Any = get_context("forkserver")
    context.set_forkserver_preload(["lmbench.instantiate.training"])
    # No locks: a killed process would keep one. Only it writes these; they are read afterwards.
    phase = context.Value("i", 0, lock=False)
    moments = context.Array("i", len(PHASES), lock=False)
    process = context.Process(target=work, args=(run_dir, model, kill, phase, moments))
    process.start()
    process.join(SECONDS_TO_LIVE)
    if process.exitcode is None:
        process.kill()
        sys.exit(f"A run did not end within {SECONDS_TO_LIVE} s; phase {PHASES[phase.value]}.")
    counts = {name: count for name, count in zip(PHASES, moments, strict=True) if count}
    return PHASES[phase.value], counts, process.exitcode


def work(
    run_dir: Path,
    model: str,
    kill: Kill | None,
    phase: c_int,
    moments: Array[c_int],
) -> None:
    """In the process of the run: what lmbench-train does, and the kill."""
    import lightning as L
    import torch
    from hydra import compose, initialize_config_dir

    from lmbench.callbacks.checkpoints import CheckpointIO
    from lmbench.callbacks.nt_asgd import NTASGD
    from lmbench.cli.train import train
    from lmbench.instantiate import training as build
    from lmbench.run.changes import resumed_config
    from lmbench.run.choice import ChosenRun
    from lmbench.run.config import plain_config
    from lmbench.run.targets import conf_dir

    torch.set_num_threads(1)
    logging.getLogger("lmbench").setLevel(logging.ERROR)

    def enter(name: str) -> None:
        phase.value = index = PHASES.index(name)
        if kill is not None and name == kill.phase and moments[index] == kill.number:
            threading.Timer(kill.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        moments[index] += 1

    class Phases(L.Callback):
        def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
            enter("window")

        def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
            enter("validation")

        def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
            enter("test")

        def on_test_end(self, *args: Any, **kwargs: Any) -> None:
            enter("end")

    def in_phase(name: str, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            enter(name)
            return function(*args, **kwargs)

        return wrapped

    def trainer(*args: Any, **kwargs: Any) -> L.Trainer:
        made: Any = make_trainer(*args, **kwargs)
        made.callbacks.insert(0, Phases())
        return made

    make_trainer, build.trainer = build.trainer, trainer
    CheckpointIO.save_checkpoint = in_phase("checkpoint", CheckpointIO.save_checkpoint)
    NTASGD._switch = in_phase("switch", NTASGD._switch)

    enter("start")
    if (run_dir / "config.yaml").exists():
        chosen = ChosenRun(resumed_config(run_dir, [])[0], resumes=True)
    else:
        run_dir.mkdir(exist_ok=True)
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("train", [*MODEL_OVERRIDES[model], *OVERRIDES])
        chosen = ChosenRun(plain_config(config))
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(chosen, run_dir)


def compare(alone: Path, killed: Path) -> list[str]:
    """What differs between two runs, one difference per line."""
    from lmbench.saved.checkpoint import read_checkpoint

    differences = []
    if (alone / "metrics.csv").read_bytes() != (killed / "metrics.csv").read_bytes():
        differences.append("metrics.csv")
    for name in ("last.ckpt", "best.ckpt"):
        contents = [read_checkpoint(run_dir / "checkpoints" / name) for run_dir in (alone, killed)]
        differences += [f"{name}: {key}" for key in unequal(contents[0], contents[1])]
    results = [
        json.loads((run_dir / "results.json").read_text("utf-8")) for run_dir in (alone, killed)
    ]
    differences += [f"results.json: {key}" for key in unequal(results[0], results[1])]
    differences += [f"TensorBoard: {key}" for key in unequal(scalars(alone), scalars(killed))]
    return differences


def unequal(left: Any, right: Any, key: str = "") -> list[str]:
    """Keys of nested values that are not the same; tensors to the last bit."""
    import torch

    if key.endswith(NOT_COMPARED) or key.endswith("csv[0].timing"):
        return []
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [k for name in left for k in unequal(left[name], right[name], f"{key}.{name}")]
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) == len(right):
            pairs = enumerate(zip(left, right, strict=True))
            return [k for i, (a, b) in pairs for k in unequal(a, b, f"{key}[{i}]")]
    elif isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        if left.dtype == right.dtype and torch.equal(left, right):
            return []
    elif left == right:
        return []
    return [key]


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag → steps and values, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = run_dir.glob("*_seed_*")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.endswith(NOT_COMPARED)
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=25, help="default %(default)s")
    parser.add_argument(
        "--model", choices=MODEL_OVERRIDES, default="awd_lstm", help="default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the kills; default %(default)s")
    main(parser.parse_args())

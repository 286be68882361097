"""Runs the study of cores that docs/cores.md describes, and writes its tables.

Each core is tuned with the same number of runs and then trained with several seeds; each of these
final runs is also evaluated with a cache. Every run has a folder of its own in DIR: the same
command leaves finished runs alone and resumes the others. After Ctrl-C, SIGTERM or a dropped
connection all runs save.

    python scripts/study_cores.py DIR --corpus synthetic --jobs 2
    python scripts/study_cores.py DIR data.path=PATH --cores gru,qrnn
    python scripts/study_cores.py DIR --speed       on an idle machine, after the seeds
    python scripts/study_cores.py DIR --tables      of what there is, without training
"""

import argparse
import json
import math
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

from lmbench.errors import UserError
from lmbench.files import read_json, replace_text
from lmbench.report.formats import estimate_text, p_text
from lmbench.report.statistics import estimate, holm, t_test
from lmbench.run.directory import quoted

COLUMNS = (
    "valid",
    "test",
    "bits above the floor, test",
    "against awd_lstm, test",
    "test with cache",
    "training, tokens/s",
    "training, GiB",
    "ms per word generated",
)

DIVERGED = "diverged.txt"
"""File in the folder of a run whose loss or score was not finite, with its error output."""

GENERATION = "generation.json"
"""File in the folder of a run: how long its model takes to draw a word."""

DIVERGENCE = "Lower optimizer.lr or trainer.gradient_clip_val"
"""What lmbench-train says then."""

LRS = (0.0015, 0.003, 0.006, 0.012, 0.024)
NUM_WHOLE_LRS = 3
"""The best learning rates of the short runs that are tried in whole ones: see docs/cores.md."""

CACHE = (
    "evaluation=cache",
    "evaluation.tune=true",
    "evaluation.cache.grid.windows=[3785]",
    "evaluation.cache.grid.thetas=[0.03,0.06,0.1,0.2,0.3,0.4,0.5,0.662,0.8,1.0]",
)
"""The outputs of some cores are larger than an LSTM's, and want a smaller theta."""

SPEED_ROUNDS = 3
"""Times that the speed of each core is measured, in turns."""

DROPOUTS = {
    "model.embedding_dropout": 0.05,
    "model.core.input_dropout": 0.3,
    "model.core.hidden_dropout": 0.2,
    "model.core.output_dropout": 0.3,
    "model.core.weight_dropout": 0.25,
}
OF_CORE = {
    "lstm": {  # ordinary dropout alone, without AR and TAR
        "model/core": "awd_lstm",
        "model.embedding_dropout": 0.0,
        "model.core.weight_dropout": 0.0,
        "model.core.locked_dropout": "false",
        "loss.ar_alpha": 0.0,
        "loss.tar_beta": 0.0,
    },
}


class Corpus(NamedTuple):
    """A corpus of the study.

    Attributes:
        experiment: The experiment that all runs share.
        seeds: Seeds of the final runs; the tuning has seed 1.
        dropout_factors: What all dropouts are multiplied by; the first while the rate is tuned.
        short: What shortens the first runs, of all learning rates.
        sizes: Core → ``hidden_size`` with which all have about the same number of parameters.
        options: Core → what else it needs at this size.
    """

    experiment: str
    seeds: Sequence[int]
    dropout_factors: Sequence[float]
    short: Mapping[str, Any]
    sizes: Mapping[str, int]
    options: Mapping[str, Mapping[str, Any]]


CORPORA = {
    "wikitext2": Corpus(
        "cores",
        (2, 3, 4),
        (0.25, 0.125),
        {"trainer.limit_train_batches": 0.2, "batching.shuffle_articles": "false"},
        {
            "lstm": 600,
            "awd_lstm": 600,
            "gru": 720,
            "qrnn": 1064,
            "mogrifier_lstm": 528,
            "min_gru": 312,
            "min_lstm": 296,
            "mlstm": 440,
            "slstm": 448,
            "hgrn2": 320,
            "gated_delta_net": 296,
        },
        {"hgrn2": {"model.core.num_heads": 2}},
    ),
    "synthetic": Corpus(
        "cores_synthetic",
        (2, 3, 4, 5, 6),
        (0.5, 0.25, 1.0),
        {},
        {
            "lstm": 198,
            "awd_lstm": 198,
            "gru": 244,
            "qrnn": 297,
            "mogrifier_lstm": 164,
            "min_gru": 115,
            "min_lstm": 109,
            "mlstm": 160,
            "slstm": 164,
            "hgrn2": 118,
            "gated_delta_net": 108,
        },
        {
            "mogrifier_lstm": {"model.core.rank": 24},
            "mlstm": {"model.core.num_heads": 2},
            "hgrn2": {"model.core.num_heads": 2},
        },
    ),
}


class Job(NamedTuple):
    """A run: its folder, the overrides of lmbench-train, and whether its weights stay there."""

    folder: Path
    overrides: Mapping[str, Any]
    keeps_weights: bool = True


class Stopped(Exception):
    """The study was asked to end."""


class Runner:
    """Starts processes of lmbench, and ends them together."""

    def __init__(self, num_threads: int, extra: Sequence[str]) -> None:
        self.extra = extra
        # What a resume and an evaluation need to be told again.
        self.places = [one for one in extra if one.startswith(("data.path=", "data.cache_dir="))]
        self.stopping = threading.Event()
        self._environment = os.environ | {"OMP_NUM_THREADS": str(num_threads)}
        self._processes: set[subprocess.Popen[str]] = set()
        self._starting = threading.Lock()

    def train(self, job: Job) -> None:
        """Trains a run to its end, from where it is."""
        if (job.folder / "config.yaml").exists():
            arguments = [f"resume={quoted(str(job.folder))}", *self.places]
        else:
            overrides = [f"{key}={value}" for key, value in job.overrides.items()]
            arguments = [*overrides, *self.extra, f"hydra.run.dir={quoted(str(job.folder))}"]
        if valid_perplexity(job) is None:
            self._run("lmbench.train", arguments, job.folder)
        if not job.keeps_weights:
            shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)

    def evaluate(self, job: Job) -> None:
        """Evaluates a run with a cache that is tuned on valid."""
        is_done = (job.folder / "evaluation-cache-test.json").exists()
        if is_done or valid_perplexity(job) in (None, math.inf):
            return
        self._run("lmbench.evaluate", [str(job.folder), *CACHE, *self.places], job.folder)

    def stop(self) -> None:
        """Makes everything that runs save and end; a second call does nothing.

        Of two SIGTERMs, the second ends a run unsaved, and a closed terminal can send two signals.
        """
        with self._starting:
            if self.stopping.is_set():
                return
            self.stopping.set()
            for process in list(self._processes):
                process.terminate()

    def _run(self, module: str, arguments: Sequence[str], folder: Path) -> None:
        begin = time.monotonic()
        with self._starting:
            if self.stopping.is_set():
                raise Stopped
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops them
            )
            self._processes.add(process)
        output, errors = process.communicate()
        self._processes.discard(process)
        if self.stopping.is_set():
            raise Stopped
        if process.returncode and DIVERGENCE in errors:
            replace_text(folder / DIVERGED, errors)
        elif process.returncode:
            raise UserError(f"{folder}: {module} {shlex.join(arguments)} failed:\n{errors[-2000:]}")
        print(f"{folder}: {module}, {(time.monotonic() - begin) / 60:.1f} min", flush=True)
        print(*re.findall(r".*at the edge of its grid.*\n", output), sep="", end="", flush=True)


def job_of(
    root: Path,
    corpus: str,
    core: str,
    *,
    lr: float,
    factor: float,
    seed: int | None = None,
    short: bool = False,
) -> Job:
    """A run of the study: a tuning run or, with ``seed=``, a final one."""
    setting = CORPORA[corpus]
    dropouts = {key: round(value * factor, 6) for key, value in DROPOUTS.items()}
    overrides = {
        "experiment": setting.experiment,
        "name": core,
        "model/core": core,
        "model.core.hidden_size": setting.sizes[core],
        "optimizer.lr": lr,
        **dropouts,
        **OF_CORE.get(core, {}),
        **setting.options.get(core, {}),
    }
    name = f"lr_{lr}_dropout_{factor}"
    if seed is not None:
        folder = root / corpus / "seeds" / f"{core}_{name}" / f"seed_{seed}"
        return Job(folder, {**overrides, "seed": seed})
    overrides |= {"seed": 1, "trainer.limit_test_batches": 0}
    if short and setting.short:
        overrides |= setting.short
        name = f"{name}_short"
    return Job(root / corpus / "tuning" / core / name, overrides, keeps_weights=False)


def valid_perplexity(job: Job) -> float | None:
    """What a run reached on valid, infinity if it diverged; None if it has not finished."""
    if (job.folder / DIVERGED).exists():
        return math.inf
    path = job.folder / "results.json"
    return read_json(path)["val"]["ppl"] if path.exists() else None


def best_of(jobs: Mapping[Any, Job]) -> list[Any]:
    """The settings, the best on valid first, without diverged ones; none until all have ended."""
    found = {setting: valid_perplexity(job) for setting, job in jobs.items()}
    if None in found.values():
        return []
    scores = {setting: ppl for setting, ppl in found.items() if ppl and ppl < math.inf}
    return sorted(scores, key=scores.__getitem__)


def trials_of_lr(root: Path, corpus: str, core: str) -> dict[float, Job]:
    """The first runs of the tuning: short ones on WikiText-2."""
    factor = CORPORA[corpus].dropout_factors[0]
    return {lr: job_of(root, corpus, core, lr=lr, factor=factor, short=True) for lr in LRS}


def whole_trials_of_lr(root: Path, corpus: str, core: str) -> dict[float, Job]:
    """Whole runs of the best rates: short ones may favour a rate that is too large later on."""
    factor = CORPORA[corpus].dropout_factors[0]
    lrs = best_of(trials_of_lr(root, corpus, core))[:NUM_WHOLE_LRS]
    return {lr: job_of(root, corpus, core, lr=lr, factor=factor) for lr in lrs}


def trials_of_dropout(root: Path, corpus: str, core: str) -> dict[float, Job]:
    """Whole runs with the best rate; short ones would choose too much: docs/measurements.md."""
    lrs = best_of(whole_trials_of_lr(root, corpus, core))
    factors = CORPORA[corpus].dropout_factors if lrs else ()
    return {factor: job_of(root, corpus, core, lr=lrs[0], factor=factor) for factor in factors}


def final_runs(root: Path, corpus: str, core: str) -> list[Job]:
    """The runs with several seeds, once the tuning has ended."""
    trials = trials_of_dropout(root, corpus, core)
    return [
        job_of(
            root,
            corpus,
            core,
            lr=trials[factor].overrides["optimizer.lr"],
            factor=factor,
            seed=seed,
        )
        for factor in best_of(trials)[:1]
        for seed in CORPORA[corpus].seeds
    ]


def speed_runs(root: Path, corpus: str, core: str) -> list[Job]:
    """Runs of 60 steps, whose speed is measured with nothing beside them."""
    overrides = {
        **job_of(root, corpus, core, lr=LRS[0], factor=1.0).overrides,
        "trainer.limit_train_batches": 60,
        "trainer.limit_val_batches": 1,
        "trainer.max_epochs": 1,
    }
    folder = root / corpus / "speed" / core
    return [Job(folder / f"round_{number}", overrides) for number in range(1, SPEED_ROUNDS + 1)]


def measure_speed(
    root: Path, corpus: str, cores: Sequence[str], runner: Runner, num_threads: int
) -> None:
    """Measures training and generation on an idle machine; the cores take turns.

    Raises:
        UserError: A run has failed.
        Stopped: The runner was stopped.
    """
    for number in range(SPEED_ROUNDS):
        for core in cores:
            job = speed_runs(root, corpus, core)[number]
            runner.train(job)
            if not (job.folder / GENERATION).exists():
                time_generation(job.folder, num_threads)
                shutil.rmtree(job.folder / "checkpoints")


def time_generation(run_dir: Path, num_threads: int) -> None:
    """Draws 220 words from a run's model, and writes the median time of the last 200."""
    from lmbench.machine import set_matmul_precision, set_up_threads

    set_up_threads()
    import torch

    import lmbench
    from lmbench.evaluation.text import encode_text, sample_words

    torch.set_num_threads(num_threads)
    set_matmul_precision("auto", "cpu")
    model, vocabulary = lmbench.load(run_dir)
    ids, _ = encode_text("", vocabulary)
    words = sample_words(model, vocabulary, torch.from_numpy(ids), torch.Generator())
    seconds = []
    for _ in range(220):
        begin = time.perf_counter()
        next(words)
        seconds.append(time.perf_counter() - begin)
    values = {"milliseconds_per_word": 1000 * statistics.median(seconds[20:])}
    replace_text(run_dir / GENERATION, json.dumps(values))


def study(root: Path, corpus: str, cores: Sequence[str], runner: Runner, num_jobs: int) -> None:
    """Runs everything that has not been run yet; a run that fails does not keep others from it.

    Raises:
        UserError: Runs have failed.
        Stopped: The runner was stopped.
    """

    def train_and_evaluate(job: Job) -> None:
        runner.train(job)
        runner.evaluate(job)

    failures = []
    stages = (
        (runner.train, lambda core: trials_of_lr(root, corpus, core).values()),
        (runner.train, lambda core: whole_trials_of_lr(root, corpus, core).values()),
        (runner.train, lambda core: trials_of_dropout(root, corpus, core).values()),
        (train_and_evaluate, lambda core: final_runs(root, corpus, core)),
    )
    for act, jobs_of in stages:
        with ThreadPoolExecutor(num_jobs) as pool:
            try:
                futures = [pool.submit(act, job) for core in cores for job in jobs_of(core)]
                for future in as_completed(futures):
                    if isinstance(error := future.exception(), UserError):
                        print(error, file=sys.stderr, flush=True)
                        failures.append(str(error))
                    elif error is not None:
                        raise error
            except BaseException:
                runner.stop()  # or the pool would wait for all that it has begun
                raise
    if failures:
        raise UserError("\n".join(["Failed:", *failures]))


def tables(root: Path, corpus: str) -> str:
    """What the tuning found and what the final runs reached, as Markdown."""
    both = (_tuning_rows(root, corpus), _final_rows(root, corpus))
    return "\n\n".join("\n".join(_lines(rows)) for rows in both)


def _tuning_rows(root: Path, corpus: str) -> list[list[str]]:
    factors = sorted(CORPORA[corpus].dropout_factors)
    has_whole = ["whole runs"] if CORPORA[corpus].short else []
    rows = [["core", *(f"lr {lr}" for lr in LRS), *has_whole, *map("dropout x {}".format, factors)]]
    for core in CORPORA[corpus].sizes:
        cells = [_perplexity_cell(job) for job in trials_of_lr(root, corpus, core).values()]
        if has_whole:
            whole = whole_trials_of_lr(root, corpus, core)
            best = ", ".join(f"lr {lr}: {_perplexity_cell(job)}" for lr, job in whole.items())
            cells.append(best or "—")
        trials = trials_of_dropout(root, corpus, core)
        cells += [_perplexity_cell(trials.get(factor)) for factor in factors]
        if set(cells) != {"—"}:
            rows.append([core, *cells])
    return rows


def _final_rows(root: Path, corpus: str) -> list[list[str]]:
    runs = {core: final_runs(root, corpus, core) for core in CORPORA[corpus].sizes}
    finished = {
        core: [job for job in jobs if (valid_perplexity(job) or math.inf) < math.inf]
        for core, jobs in runs.items()
    }
    differences = against_awd_lstm(
        {core: _values(jobs, "results.json", "test", "nll") for core, jobs in finished.items()}
    )
    rows = [["core", "size", "lr", "dropout x", *COLUMNS]]
    for core, jobs in runs.items():
        num_diverged = sum(valid_perplexity(job) == math.inf for job in jobs)
        name = f"{core} ({num_diverged} of {len(jobs)} diverged)" if num_diverged else core
        start = [name, str(CORPORA[corpus].sizes[core])]
        if done := finished[core]:
            timed = speed_runs(root, corpus, core)
            rows.append([*start, *_final_cells(done, timed, differences.get(core, "—"))])
        elif num_diverged:
            rows.append([*start, *["—"] * (len(rows[0]) - 2)])
    return rows


def against_awd_lstm(nats: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """How much higher each core's perplexity is than AWD-LSTM's, in percent, with 95% intervals.

    These are the study's primary comparisons: Welch's tests over seeds, p adjusted for all of them
    together (Holm 1979).

    Args:
        nats: Core → nats per token of each seed.
    """
    base = nats.get("awd_lstm", ())
    tests = {
        core: test
        for core, values in nats.items()
        if core != "awd_lstm" and (test := t_test(base, values, is_paired=False))
    }
    adjusted = holm([test.p for test in tests.values()])
    texts = {}
    for (core, test), p in zip(tests.items(), adjusted, strict=True):
        percent, low, high = (100 * math.expm1(value) for value in test[:3])
        texts[core] = f"{percent:+.1f}% ({low:+.1f} to {high:+.1f}), p {p_text(p)}"
    return texts


def _perplexity_cell(job: Job | None) -> str:
    perplexity = valid_perplexity(job) if job else None
    if perplexity is None:
        return "—"
    return "diverged" if perplexity == math.inf else f"{perplexity:.2f}"


def _final_cells(jobs: Sequence[Job], timed: Sequence[Job], difference: str) -> Iterable[str]:
    overrides = jobs[0].overrides
    yield f"{overrides['optimizer.lr']}"
    yield f"{overrides['model.core.input_dropout'] / DROPOUTS['model.core.input_dropout']:g}"
    results = [read_json(job.folder / "results.json") for job in jobs]
    for split in ("val", "test"):
        yield estimate_text(estimate([result[split]["ppl"] for result in results]))
    floor = results[0]["data"].get("perplexity_floor")
    bits = [math.log2(result["test"]["ppl"] / floor["test"]) for result in results if floor]
    yield f"{statistics.fmean(bits):.3f}" if bits else "—"
    yield difference
    found = _values(jobs, "evaluation-cache-test.json", "ppl")
    yield estimate_text(estimate(found)) if found else "—"
    speeds = _values(timed, "results.json", "train", "tokens_per_second")
    yield f"{statistics.median(speeds):,.0f}" if speeds else "—"
    yield f"{max(result['train']['peak_memory_bytes'] for result in results) / 2**30:.2f}"
    times = _values(timed, GENERATION, "milliseconds_per_word")
    yield f"{statistics.median(times):.2f}" if times else "—"


def _values(jobs: Sequence[Job], name: str, *keys: str) -> list[Any]:
    """A value of a JSON file in each job's folder that has it."""
    paths = [job.folder / name for job in jobs]
    values: list[Any] = [read_json(path) for path in paths if path.exists()]
    return [reduce(getitem, keys, value) for value in values]


def _lines(table: Sequence[Sequence[str]]) -> Iterable[str]:
    for row in (table[0], ["---"] * len(table[0]), *table[1:]):
        yield f"| {' | '.join(row)} |"


def main(args: argparse.Namespace, extra: Sequence[str]) -> None:
    """Runs the study, then prints its tables."""
    root = Path(args.dir).resolve()
    cores = args.cores.split(",") if args.cores else list(CORPORA[args.corpus].sizes)
    if unknown := set(cores) - CORPORA[args.corpus].sizes.keys():
        known = ", ".join(CORPORA[args.corpus].sizes)
        raise UserError(
            f"--cores: no size is known for {', '.join(sorted(unknown))}. Choose from {known}, or "
            "add it to CORPORA in this script."
        )
    if not args.tables:
        runner = Runner(args.threads, extra)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                signal.signal(number, signal.default_int_handler)
        try:
            if args.speed:
                measure_speed(root, args.corpus, cores, runner, args.threads)
            else:
                study(root, args.corpus, cores, runner, args.jobs)
        except BaseException:
            runner.stop()
            raise
    print(tables(root, args.corpus))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", help="folder of the study")
    parser.add_argument("--corpus", choices=list(CORPORA), default="wikitext2")
    parser.add_argument("--cores", help="some of them, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--speed", action="store_true", help="measure speed instead, one by one")
    parser.add_argument("--tables", action="store_true", help="print the tables, do not train")
    parser.add_argument("overrides", nargs="*", help="for every run, such as data.path=PATH")
    arguments = parser.parse_intermixed_args()
    try:
        main(arguments, arguments.overrides)
    except UserError as error:
        sys.exit(str(error))
    except (KeyboardInterrupt, Stopped):
        sys.exit("Stopped. The same command continues.")

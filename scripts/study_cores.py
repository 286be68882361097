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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from study_cores_plan import (
    CORPORA,
    GENERATION,
    SPEED_ROUNDS,
    Job,
    final_runs,
    speed_runs,
    trials_of_dropout,
    trials_of_lr,
    valid_perplexity,
    whole_trials_of_lr,
)
from study_cores_tables import tables

from lmbench.errors import UserError
from lmbench.files import replace_text
from lmbench.run.directory import DIVERGED, quoted

CACHE = (
    "evaluation=cache",
    "evaluation.tune=true",
    "evaluation.cache.grid.windows=[3785]",
    "evaluation.cache.grid.thetas=[0.03,0.06,0.1,0.2,0.3,0.4,0.5,0.662,0.8,1.0]",
)
"""The outputs of some cores are larger than an LSTM's, and want a smaller theta."""


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
            self._run("lmbench.cli.train", arguments, job.folder)
        if not job.keeps_weights:
            shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)

    def evaluate(self, job: Job) -> None:
        """Evaluates a run with a cache that is tuned on valid."""
        is_done = (job.folder / "evaluation-cache-test.json").exists()
        if is_done or valid_perplexity(job) in (None, math.inf):
            return
        self._run("lmbench.cli.evaluate", [str(job.folder), *CACHE, *self.places], job.folder)

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
        if process.returncode and not (folder / DIVERGED).exists():
            raise UserError(f"{folder}: {module} {shlex.join(arguments)} failed:\n{errors[-2000:]}")
        print(f"{folder}: {module}, {(time.monotonic() - begin) / 60:.1f} min", flush=True)
        print(*re.findall(r".*edge of its grid.*\n", output), sep="", end="", flush=True)


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
    """Runs everything that has not been run yet; a run that fails does not stop the others.

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


def main(args: argparse.Namespace, extra: Sequence[str]) -> None:
    """Runs the study, then prints its tables."""
    root = Path(args.dir).resolve()
    cores = args.cores.split(",") if args.cores else list(CORPORA[args.corpus].sizes)
    if unknown := set(cores) - CORPORA[args.corpus].sizes.keys():
        known = ", ".join(CORPORA[args.corpus].sizes)
        raise UserError(
            f"--cores: no size is known for {', '.join(sorted(unknown))}. Choose from {known}, or "
            "add it to CORPORA in study_cores_plan.py."
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

"""Runs the study of cores that docs/cores.md describes, and prints its tables.

Each core is tuned with the same number of runs. Then it is trained with several seeds, and these
runs are evaluated with a cache. The same command continues after any stop: finished runs are left
alone, others resumed. After Ctrl-C, SIGTERM or a dropped connection all runs save.

    python scripts/study_cores.py DIR --corpus synthetic --jobs 2
    python scripts/study_cores.py DIR data.path=PATH --cores gru,qrnn
    python scripts/study_cores.py DIR --speed                 afterwards, on an idle machine
    python scripts/study_cores.py results/cores --tables      of what there is, without training

DIR/CORPUS gets a folder CORE_lr_RATE_dropout_FACTOR of final runs for each core, tuning.csv,
speed.csv and study.log.
"""

import argparse
import csv
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from lmbench.errors import UserError
from lmbench.files import read_json, read_yaml
from lmbench.report.formats import estimate_text, p_text
from lmbench.report.groups import Group, group_runs
from lmbench.report.runs import read_runs
from lmbench.report.statistics import Estimate, holm, t_test
from lmbench.run.directory import DIVERGED, quoted

PLAN = read_yaml(Path(__file__).parents[1] / "results/cores/study.yaml")
NUM_WHOLE_LRS = 3
"""The best learning rates on a part of the text that are tried on all of it: docs/cores.md."""

SPEED_ROUNDS = 3


class Setting(NamedTuple):
    """What is tuned: a row of ``tuning.csv``, whose last column is the valid perplexity."""

    core: str
    text: str  # "part" or "whole"
    lr: float
    dropout: float


def overrides_of(corpus: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """The overrides of lmbench-train for a setting, without a seed."""
    core = setting.core
    return {
        "experiment": corpus["experiment"],
        "name": core,
        "model/core": core,
        "optimizer.lr": setting.lr,
        **{key: round(value * setting.dropout, 6) for key, value in PLAN["dropouts"].items()},
        **corpus["cores"][core],
        **(PLAN["plain_lstm"] if core == "lstm" else {}),
        **(corpus["part"] if setting.text == "part" else {}),
    }


def typed(overrides: Mapping[str, Any]) -> list[str]:
    """The overrides as words of a command line."""
    return [f"{key}={value}" for key, value in overrides.items()]


class Study:
    """The runs of one corpus, in a folder.

    Args:
        folder: Takes all that the study writes.
        corpus: What ``study.yaml`` says about the corpus.
        extra: Overrides for every run.
    """

    def __init__(self, folder: Path, corpus: Mapping[str, Any], extra: Sequence[str] = ()) -> None:
        self.folder, self.corpus = folder, corpus
        self._extra, self._log = extra, folder / "study.log"
        self._stopping = False
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run_core(self, core: str) -> None:
        """Tunes a core, then trains and evaluates it with each seed.

        Raises:
            UserError: A run has failed, or was stopped.
        """
        factors, lrs = self.corpus["factors"], PLAN["lrs"]
        if "part" in self.corpus:
            tried = self._ranked(Setting(core, "part", lr, factors[0]) for lr in lrs)
            lrs = [setting.lr for setting in tried[:NUM_WHOLE_LRS]]
        best = self._ranked(Setting(core, "whole", lr, factors[0]) for lr in lrs)[:1]
        best = self._ranked(x._replace(dropout=factor) for x in best for factor in factors)[:1]
        for setting in best:  # none if all diverged
            folder = self.folder / f"{core}_lr_{setting.lr}_dropout_{setting.dropout}"
            run_dirs = self._train(folder, setting, self.corpus["seeds"])
            places = [x for x in self._extra if x.startswith(("data.path=", "data.cache_dir="))]
            for run_dir in (x for x in run_dirs if (x / "results.json").exists()):
                evaluation = run_dir / "evaluation-cache-test.json"
                if not evaluation.exists():
                    self._start("evaluate", str(run_dir), *typed(PLAN["cache"]), *places)
                    self._require(evaluation)

    def measure_speed(self, cores: Iterable[str]) -> None:
        """Times training and generation in short runs, by turns.

        Raises:
            UserError: A run has failed, or was stopped.
        """
        path = self.folder / "speed.csv"
        for number in range(1, SPEED_ROUNDS + 1):
            for core in cores:
                done = {(row["core"], row["round"]) for row in rows_of(path)}
                if (core, str(number)) in done:
                    continue
                setting = Setting(core, "whole", PLAN["lrs"][0], 1.0)
                overrides = overrides_of(self.corpus, setting) | PLAN["speed"]
                with tempfile.TemporaryDirectory() as folder:
                    place = f"hydra.run.dir={quoted(folder)}"
                    self._start("train", *typed(overrides), *self._extra, place)
                    self._require(Path(folder, "results.json"))
                    train = read_json(Path(folder, "results.json"))["train"]
                    seconds = seconds_per_word(Path(folder))
                row = {"core": core, "round": number}
                row |= {"tokens_per_second": train["tokens_per_second"]}
                append_row(path, row | {"milliseconds_per_word": 1000 * seconds})

    def stop(self) -> None:
        """Makes every run save and end; of two signals, the second would end a run unsaved."""
        with self._lock:
            self._stopping = True
            for process in self._processes:
                process.terminate()

    def _ranked(self, settings: Iterable[Setting]) -> list[Setting]:
        """The settings, the best on valid first, without those that diverge."""
        perplexities = {setting: self._perplexity(setting) for setting in settings}
        finite = [setting for setting, ppl in perplexities.items() if ppl < math.inf]
        return sorted(finite, key=perplexities.__getitem__)

    def _perplexity(self, setting: Setting) -> float:
        """Valid perplexity of a setting with seed 1; infinite if it diverges."""
        path = self.folder / "tuning.csv"
        known = tuned(path)
        if setting in known:
            return known[setting]
        folder = self.folder / "tuning" / "_".join(map(str, setting))
        (run_dir,) = self._train(folder, setting, [1], "trainer.limit_test_batches=0")
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        results = run_dir / "results.json"
        ppl = read_json(results)["val"]["ppl"] if results.exists() else math.inf
        with self._lock:
            append_row(path, {**setting._asdict(), "valid": ppl})
        return ppl

    def _train(
        self, folder: Path, setting: Setting, seeds: Sequence[int], *more: str
    ) -> list[Path]:
        """Trains with each seed, as a sweep in ``folder``; returns the runs' folders."""
        overrides = typed(overrides_of(self.corpus, setting))
        run_dirs = ended(folder)
        if len(run_dirs) < len(seeds):
            seed = f"seed={','.join(map(str, seeds))}"
            place = (f"hydra.sweep.dir={quoted(str(folder))}", "sweep_resume=true")
            self._start("train", "-m", *overrides, *self._extra, *more, seed, *place)
            run_dirs = ended(folder)
        if len(run_dirs) < len(seeds):  # the command's exit code counts divergence as a failure
            raise UserError(f"{folder} is not finished. {self._log} says why.")
        return run_dirs

    def _require(self, result: Path) -> None:
        if not result.exists():
            raise UserError(f"{result} is missing. {self._log} says why.")

    def _start(self, command: str, *arguments: str) -> None:
        """Runs a command of lmbench; whoever calls checks what it has left behind."""
        with self._log.open("ab") as output, self._lock:
            if self._stopping:
                return
            process = subprocess.Popen(
                [sys.executable, "-m", f"lmbench.cli.{command}", *arguments],
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops them
            )
            self._processes.add(process)
        process.wait()
        self._processes.discard(process)


def ended(folder: Path) -> list[Path]:
    """The runs of a sweep that have finished or diverged."""
    files = sorted(folder.glob("*/*"))
    return [path.parent for path in files if path.name in ("results.json", DIVERGED)]


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no such file."""
    return list(csv.DictReader(path.read_text("utf-8").splitlines())) if path.exists() else []


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a CSV file."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def tuned(path: Path) -> dict[Setting, float]:
    """What a ``tuning.csv`` holds."""
    return {
        Setting(row["core"], row["text"], float(row["lr"]), float(row["dropout"])): float(
            row["valid"]
        )
        for row in rows_of(path)
    }


def seconds_per_word(run_dir: Path) -> float:
    """Median time that a run's model takes to draw a word, after 20 that warm up."""
    from lmbench.machine import set_matmul_precision, set_up_threads

    set_up_threads()
    import torch

    import lmbench
    from lmbench.evaluation.text import encode_text, sample_words

    set_matmul_precision("auto", "cpu")
    model, vocabulary = lmbench.load(run_dir)
    ids, _ = encode_text("", vocabulary)
    words = sample_words(model, vocabulary, torch.from_numpy(ids), torch.Generator())
    seconds = []
    for _ in range(220):
        begin = time.perf_counter()
        next(words)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[20:])


def final_table(folder: Path, corpus: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the final runs of each core reached: a row of titles and texts."""
    groups: dict[str, Group] = {}
    for core in corpus["cores"]:
        if finished := list(folder.glob(f"{core}_lr_*/*/results.json")):
            runs, _ = read_runs([(core, path.parent) for path in finished])
            ((section,), _) = group_runs(runs)
            (groups[core],) = section.groups
    differences = against_awd_lstm(
        {core: [run.scores["test"].nll for run in group.runs] for core, group in groups.items()}
    )
    speed = rows_of(folder / "speed.csv")
    rows = []
    for core, group in groups.items():
        (run, *_), floor = group.runs, group.runs[0].corpus.perplexity_floor
        bits = [math.log2(x.scores["test"].ppl / floor["test"]) for x in group.runs if floor]
        key = "model.core.input_dropout"
        row: dict[str, Any] = {
            "core": core,
            "size": corpus["cores"][core]["model.core.hidden_size"],
            "lr": run.config["optimizer.lr"],
            "dropout x": f"{run.config[key] / PLAN['dropouts'][key]:g}",
            "valid": group.perplexity("valid"),
            "test": group.perplexity("test"),
            "bits above the floor, test": f"{statistics.fmean(bits):.3f}" if bits else None,
            "against awd_lstm, test": differences.get(core),
            "test with cache": group.perplexity("test", "cache"),
        }
        memory = max(x.number("train", "peak_memory_bytes") or 0 for x in group.runs)

        def measured(column: str, digits: int, core: str = core) -> str | None:
            values = [float(x[column]) for x in speed if x["core"] == core]
            return f"{statistics.median(values):,.{digits}f}" if values else None

        row["training, tokens/s"] = measured("tokens_per_second", 0)
        row["training, GiB"] = f"{memory / 2**30:.2f}"
        row["ms per word generated"] = measured("milliseconds_per_word", 2)
        missing = len(corpus["seeds"]) - len(group.runs)
        row["core"] += f" ({missing} of {len(corpus['seeds'])} seeds missing)" * bool(missing)
        rows.append({k: estimate_text(v) if isinstance(v, Estimate) else v for k, v in row.items()})
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


def tuning_table(folder: Path, corpus: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Valid perplexities of the tuning; with each factor, those of the best rate."""
    known, first = tuned(folder / "tuning.csv"), corpus["factors"][0]
    text, prefix = ("part", "part, ") if "part" in corpus else ("whole", "")

    def cell(perplexities: Iterable[float]) -> str | None:
        best = min(perplexities, default=None)
        if best is None:
            return None
        return "diverged" if best == math.inf else f"{best:.2f}"

    rows = []
    for core in corpus["cores"]:
        own = {setting: ppl for setting, ppl in known.items() if setting.core == core}
        row: dict[str, Any] = {"core": core}
        for lr in PLAN["lrs"]:
            setting = Setting(core, text, lr, first)
            row[f"{prefix}lr {lr}"] = cell([own[setting]] if setting in own else [])
        whole = sorted((x, ppl) for x, ppl in own.items() if x.text == "whole")
        if "part" in corpus:
            by_lr = [f"{x.lr}: {cell([ppl])}" for x, ppl in whole if x.dropout == first]
            row["whole, by lr"] = ", ".join(by_lr)
        for factor in sorted(corpus["factors"]):
            row[f"dropout x {factor}"] = cell(ppl for x, ppl in whole if x.dropout == factor)
        rows += [row] if own else []
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table, without columns that are empty."""
    titles = [title for title in rows[0] if any(row[title] for row in rows)] if rows else []
    lines = [titles, ["---"] * len(titles)]
    lines += [[str(row[title] or "\N{EM DASH}") for title in titles] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(args: argparse.Namespace) -> None:
    """Runs the study, then prints its tables.

    Raises:
        UserError: Runs have failed or were stopped, or a core is not known.
    """
    if args.tables:
        for name, corpus in PLAN["corpora"].items():
            if (folder := Path(args.dir, name)).is_dir():
                for table in (final_table(folder, corpus), tuning_table(folder, corpus)):
                    print(f"{name}\n\n{markdown(table)}\n")
        return
    corpus = PLAN["corpora"][args.corpus]
    cores = args.cores.split(",") if args.cores else list(corpus["cores"])
    if unknown := set(cores) - corpus["cores"].keys():
        raise UserError(
            f"--cores: {', '.join(sorted(unknown))} not among {', '.join(corpus['cores'])}. "
            "Add the size of a new one to results/cores/study.yaml."
        )
    folder = Path(args.dir, args.corpus).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(folder, corpus, args.overrides)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, signal.default_int_handler)
    with ThreadPoolExecutor(1 if args.speed else args.jobs) as pool:
        if args.speed:
            futures = [pool.submit(study.measure_speed, cores)]
        else:
            futures = [pool.submit(study.run_core, core) for core in cores]
        try:
            wait(futures)
        except KeyboardInterrupt:
            study.stop()
            raise
    failures = [str(error) for future in futures if (error := future.exception())]
    if failures:
        raise UserError("\n".join(failures))
    print(
        markdown(final_table(folder, corpus)), "", markdown(tuning_table(folder, corpus)), sep="\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", help="folder of the study")
    parser.add_argument("--corpus", choices=list(PLAN["corpora"]), default="wikitext2")
    parser.add_argument("--cores", help="some of them, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="cores at a time")
    parser.add_argument("--speed", action="store_true", help="measure speed instead, one by one")
    parser.add_argument("--tables", action="store_true", help="print the tables, do not train")
    parser.add_argument("overrides", nargs="*", help="for every run, such as data.path=PATH")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        main(parser.parse_intermixed_args())
    except UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command continues.")

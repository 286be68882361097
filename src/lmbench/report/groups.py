"""Runs that differ only in their seed, as groups with short names."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmbench.errors import UserError
from lmbench.report._evaluations import Evaluation
from lmbench.report._group_names import (
    NOT_SET,
    differing_values,
    shortened,
    unique_names,
    value_text,
)
from lmbench.report.runs import Corpus, Run, Skipped
from lmbench.report.statistics import Estimate, estimate
from lmbench.run.config import MACHINE_KEYS

_NEUTRAL_KEYS = (
    *("name", "seed", *MACHINE_KEYS),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    "evaluation.window",
    *("trainer.log_every_n_steps", "callbacks.checkpoints.interval_minutes"),
)
"""What may differ between runs of a group; a resume on another machine may change most of it."""


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one config, each with weights drawn with a different seed.

    Attributes:
        number: Its rank by mean validation perplexity, from 1 on.
        name: Its name, unique within the section.
        runs: Its runs, by seed.
        origins: For each run, what its weights go back to through all runs that are compared: a
            config and its seed. Runs of several groups may share one.
        unit: What its runs are counted as: "seed", or "run" if they were grouped by a key.
    """

    number: int
    name: str
    runs: tuple[Run, ...]
    origins: tuple[Hashable, ...]
    unit: str = "seed"

    def perplexity(self, split: str, evaluation: str | None = None) -> Estimate | None:
        """Mean over its seeds.

        Args:
            split: "valid" or "test".
            evaluation: Name of an evaluation; None for that of the training run.

        Returns:
            None if no run was evaluated that way, or not all in the same way.
        """
        if self.protocol_of(split, evaluation) is None:
            return None
        values = [score.ppl for run in self.runs if (score := run.score(split, evaluation))]
        return estimate(values) if values else None

    def evaluations(self, name: str, split: str) -> list[Evaluation]:
        """The evaluations of that name, from those of its runs that have one."""
        evaluations = (run.evaluations.get((name, split)) for run in self.runs)
        return [evaluation for evaluation in evaluations if evaluation]

    @property
    def protocol(self) -> str:
        """How valid and test were read, the same for all of its runs."""
        return self.runs[0].protocol

    def protocol_of(self, split: str, evaluation: str | None = None) -> str | None:
        """How an evaluation read a split; None if no run has it, or not all read in the same way.

        For the evaluation of the training run, which is called None, it is :attr:`protocol`.
        """
        if evaluation is None:
            return self.protocol
        protocols = {run.protocol for run in self.evaluations(evaluation, split)}
        return protocols.pop() if len(protocols) == 1 else None

    @property
    def best_run(self) -> Run:
        """The run with the lowest validation perplexity."""
        return min(self.runs, key=lambda run: run.scores["valid"].ppl)


@dataclass(frozen=True)
class Section:
    """Groups that can be compared with each other: those on the same corpus.

    Attributes:
        corpus: The corpus that all were trained on.
        groups: The lowest mean validation perplexity first.
        differences: Every dotted key whose values differ → its value in each group.
    """

    corpus: Corpus
    groups: tuple[Group, ...]
    differences: Mapping[str, tuple[str, ...]]

    @property
    def evaluation_names(self) -> list[str]:
        """Names of all evaluations of its runs."""
        return sorted({name for g in self.groups for run in g.runs for name, _ in run.evaluations})


def group_runs(
    runs: Sequence[Run], group_by: Sequence[str] = ()
) -> tuple[list[Section], list[Skipped]]:
    """Groups runs by corpus and config.

    Configs count as equal if they differ only in the seed, the loggers, the devices, how often a
    run logs and saves, and where things are; a run that started from another run's weights counts
    as started from that run's group, if it is among the runs. Of several runs of a group with the
    same seed, the first counts: a repetition is not an independent value. A run that started from
    another run's weights has that run's seed here.

    Args:
        runs: The runs.
        group_by: Dotted keys of the config: runs with the same values of these are a group,
            whatever else differs.

    Returns:
        The sections, and the runs that repeat a seed or start from the same weights.

    Raises:
        UserError: No run has one of the keys.
    """
    for key in group_by:
        if all(_value(run, key) == NOT_SET for run in runs):
            inner = sorted(
                {name for run in runs for name in run.config if name.startswith(f"{key}.")}
            )
            hint = f" It has {inner[0]}, for example." if inner else ""
            raise UserError(f"--group-by {key}: no run's config.yaml has a value there.{hint}")
    places = {run.run_dir.resolve().parts: run for run in runs}
    corpora: dict[Corpus, dict[Hashable, dict[Hashable, Run]]] = {}
    skipped = []
    for run in runs:
        lineage = _lineage(run, places)
        kind, origin = (run.name, _kind(lineage)), _origin(lineage)
        if group_by and not run.is_ensemble:
            origin = (kind, origin)
            kind = (*(_value(run, key) for key in group_by), run.protocol)
        group = corpora.setdefault(run.corpus, {}).setdefault(kind, {})
        if origin in group:
            repeats = "Starts from the same weights as"
            if run.config.get("init_from") is None:
                repeats = f"Repeats seed {run.seed} of"
            reason = f"{repeats} {group[origin].run_dir}, and is not counted."
            skipped.append(Skipped(run.run_dir, reason))
        else:
            group[origin] = run
    ordered = sorted(corpora.items(), key=lambda item: (item[0].name, item[0].sha256))
    names = _corpus_names([next(iter(of.values())) for _, of in ordered])
    sections = [
        _section(replace(corpus, name=name), of.values(), places, group_by)
        for name, (corpus, of) in zip(names, ordered, strict=True)
    ]
    return sections, skipped


def _corpus_names(groups: Sequence[Mapping[Hashable, Run]]) -> list[str]:
    """Names of corpora, with options of the data where they coincide, such as the tokenizer."""
    runs = [next(iter(group.values())) for group in groups]
    neutral = ("data.path", "data.cache_dir")
    data = [
        {key: x for key, x in run.config.items() if key.startswith("data.") and key not in neutral}
        for run in runs
    ]
    return unique_names([run.corpus.name for run in runs], differing_values(data))


def _lineage(run: Run, places: Mapping[tuple[str, ...], Run]) -> list[Run]:
    """The run, and those it goes back to through ``init_from``, if they are among the runs."""
    lineage = [run]
    while len(lineage) < 9 and (parent := _parent(lineage[-1], places)):
        lineage.append(parent)
    return lineage


def _kind(lineage: Sequence[Run]) -> Hashable:
    """Everything that the first run's numbers follow from, except the seed."""
    kinds = []
    for run in lineage:
        settings = _settings(run)
        if run is not lineage[-1]:  # the path is not what matters
            del settings["init_from"]
        kinds.append((run.protocol, frozenset(settings.items())))
    return tuple(kinds)


def _origin(lineage: Sequence[Run]) -> Hashable:
    """The seed that drew the first weights, or the folder they came from if that is not known."""
    start = lineage[-1].config.get("init_from")
    return lineage[-1].seed if start is None else str(start)


def _first_weights(lineage: Sequence[Run]) -> Hashable:
    """What identifies the weights from which all began: a folder, or a config and its seed."""
    is_folder = lineage[-1].config.get("init_from") is not None
    return (None if is_folder else _kind(lineage[-1:]), _origin(lineage))


def _parent(run: Run, places: Mapping[tuple[str, ...], Run]) -> Run | None:
    """The run whose weights it started from, if it is among the runs."""
    start = run.config.get("init_from")
    if not isinstance(start, str):
        return None
    # The path is as it was typed, perhaps in another folder than this one.
    names = tuple(part for part in Path(start).parts if part not in ("..", "/"))
    parents = [other for parts, other in places.items() if parts[-len(names) :] == names]
    return parents[0] if len(parents) == 1 else None


def _value(run: Run, key: str) -> Any:
    """The value of a key; a list, of which a config has each item, as one text."""
    items = [(name, x) for name, x in run.config.items() if name.startswith(f"{key}[")]
    if not items:
        return run.config.get(key, NOT_SET)
    names = ["" if name.endswith("]") else f"{name.rpartition('.')[2]}=" for name, _ in items]
    return f"[{','.join(name + value_text(x) for name, (_, x) in zip(names, items, strict=True))}]"


def _settings(run: Run) -> dict[str, Any]:
    settings = {
        key: value
        for key, value in run.config.items()
        if key.partition("[")[0] not in _NEUTRAL_KEYS and not key.startswith("logger.")
    }
    for key, value in settings.items():
        if key.startswith(("trainer.limit_", "trainer.overfit_")) and type(value) in (int, float):
            settings[key] = repr(value)  # 1 is one window, and equals 1.0, which is all of them
    return settings


def _section(
    corpus: Corpus,
    by_origin: Iterable[Mapping[Hashable, Run]],
    places: Mapping[tuple[str, ...], Run],
    group_by: Sequence[str],
) -> Section:
    members = [tuple(sorted(group.values(), key=lambda run: run.seed)) for group in by_origin]
    members.sort(key=lambda group: estimate([run.scores["valid"].ppl for run in group]).mean)
    configs = [_settings(group[0]) for group in members]
    if group_by:
        configs = [{key: _value(group[0], key) for key in group_by} for group in members]
    differences = differing_values(configs)
    names = [group[0].name for group in members]
    for index, (run, *_) in enumerate(members):
        if group_by and not run.is_ensemble:
            values = [shortened(key, value_text(_value(run, key))) for key in group_by]
            names[index] = ", ".join(map("=".join, values))
    names = unique_names(names, {} if group_by else differences)
    unit, groups = "run" if group_by else "seed", []
    for number, (name, runs) in enumerate(zip(names, members, strict=True), start=1):
        origins = tuple(_first_weights(_lineage(run, places)) for run in runs)
        groups.append(Group(number, name, runs, origins, unit))
    # An ensemble has none of the keys of a trained run, so that all would differ.
    trained = [c for c, (run, *_) in zip(configs, members, strict=True) if not run.is_ensemble]
    telling = {*differing_values(trained), "ensemble"}
    differences = {key: values for key, values in differences.items() if key in telling}
    return Section(corpus, tuple(groups), differences)

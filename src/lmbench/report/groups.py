"""Runs that differ only in their seed, as groups with short names."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmbench.errors import UserError
from lmbench.printing import printable
from lmbench.report.evaluations import Evaluation
from lmbench.report.runs import Corpus, Run, Skipped
from lmbench.report.statistics import Estimate, estimate
from lmbench.run.config import OF_THE_MACHINE

LONGEST_NAME = 48
NOT_SET = "(not set)"
CLASS = "._target_"
"""End of the keys whose value is the dotted name of a class."""


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one config, each with weights drawn with a different seed.

    Attributes:
        number: Its rank by mean valid perplexity, from 1 on.
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
        if evaluation is None:
            values = [run.scores[split].ppl for run in self.runs if split in run.scores]
        else:
            found = self.evaluations(evaluation, split)
            alike = len({one.protocol for one in found}) == 1
            values = [one.score.ppl for one in found] if alike else []
        return estimate(values) if values else None

    def evaluations(self, name: str, split: str) -> list[Evaluation]:
        """The evaluations of that name, from those of its runs that have one."""
        found = (run.evaluations.get((name, split)) for run in self.runs)
        return [evaluation for evaluation in found if evaluation]

    @property
    def protocol(self) -> str:
        """How valid and test were read, the same for all of its runs."""
        return self.runs[0].protocol

    @property
    def best_run(self) -> Run:
        """The run with the lowest valid perplexity."""
        return min(self.runs, key=lambda run: run.scores["valid"].ppl)


@dataclass(frozen=True)
class Section:
    """Groups that can be compared with each other: those on the same corpus.

    Attributes:
        corpus: The corpus that all were trained on.
        groups: The lowest mean valid perplexity first.
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

    Configs count as equal if they differ only in the seed, the loggers and where things are; a run
    that started from another run's weights counts as started from that run's group, if it is among
    the runs. Of several runs of a group with the same seed, the first counts: a repetition is not
    an independent value. A run that started from another run's weights has that run's seed here.

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
        if not any(key in run.config for run in runs):
            raise UserError(f"--group-by {key}: no run's config.yaml has this key.")
    places = {run.run_dir.resolve().parts: run for run in runs}
    corpora: dict[Corpus, dict[Hashable, dict[Hashable, Run]]] = {}
    skipped = []
    for run in runs:
        lineage = _lineage(run, places)
        kind, origin = (run.name, _kind(lineage)), _origin(lineage)
        if group_by and not run.is_ensemble:
            origin = (kind, origin)
            kind = (*(run.config.get(key, NOT_SET) for key in group_by), run.protocol)
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
    sections = [_section(corpus, of.values(), places, group_by) for corpus, of in ordered]
    return sections, skipped


def _lineage(run: Run, places: Mapping[tuple[str, ...], Run]) -> list[Run]:
    """The run, and those it goes back to through ``init_from``, if they are among the runs."""
    found = [run]
    while len(found) < 9 and (parent := _parent(found[-1], places)):
        found.append(parent)
    return found


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


def _parent(run: Run, places: Mapping[tuple[str, ...], Run]) -> Run | None:
    """The run whose weights it started from, if it is among the runs."""
    start = run.config.get("init_from")
    if not isinstance(start, str):
        return None
    # The path is as it was typed, perhaps in another folder than this one.
    names = tuple(part for part in Path(start).parts if part not in ("..", "/"))
    parents = [other for parts, other in places.items() if parts[-len(names) :] == names]
    return parents[0] if len(parents) == 1 else None


def _settings(run: Run) -> dict[str, Any]:
    left_out = ("name", "seed", *OF_THE_MACHINE)
    settings = {
        key: value
        for key, value in run.config.items()
        if key not in left_out and not key.startswith("logger.")
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
        configs = [{key: group[0].config.get(key) for key in group_by} for group in members]
    differences = differing_values(configs)
    names = [group[0].name for group in members]
    for index, (run, *_) in enumerate(members):
        if group_by and not run.is_ensemble:
            values = [_shortened(k, _text(run.config.get(k, NOT_SET))) for k in group_by]
            names[index] = ", ".join(map("=".join, values))
    names = _names(names, {} if group_by else differences)
    unit, groups = "run" if group_by else "seed", []
    for number, (name, runs) in enumerate(zip(names, members, strict=True), start=1):
        lineages = [_lineage(run, places) for run in runs]
        origins = tuple((_kind(lineage[-1:]), _origin(lineage)) for lineage in lineages)
        groups.append(Group(number, name, runs, origins, unit))
    return Section(corpus, tuple(groups), differences)


def _names(names: Sequence[str], differences: Mapping[str, Sequence[str]]) -> list[str]:
    """Unique names for groups: with settings added where they coincide, cut if long."""
    found = list(names)
    for name in set(names):
        same = [index for index, other in enumerate(names) if other == name]
        columns = {key: [values[index] for index in same] for key, values in differences.items()}
        keys = telling_keys(columns)
        for index in same:
            pairs = [_shortened(key, differences[key][index]) for key in keys]
            shorts = [short for short, _ in pairs]
            for key, (short, value) in zip(keys, pairs, strict=True):
                unique = short if shorts.count(short) == 1 else key.removesuffix(CLASS)
                longer = f"{found[index]}, {unique}={value}"
                if len(longer) > LONGEST_NAME:  # then a number tells them apart
                    break
                found[index] = longer
    found = [n if len(n) <= LONGEST_NAME else f"{n[: LONGEST_NAME - 1]}…" for n in found]
    return [
        name if found.count(name) == 1 else f"{name} ({found[: index + 1].count(name)})"
        for index, name in enumerate(found)
    ]


def differing_values(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The values that are not the same in all configs, as short texts.

    Args:
        configs: Dotted key → value, of each config.

    Returns:
        Dotted key, short ones first → its text in each config; :data:`NOT_SET` if it is missing.
    """
    keys = sorted({key for config in configs for key in config}, key=lambda key: (len(key), key))
    columns = {key: [config.get(key, NOT_SET) for config in configs] for key in keys}
    return {k: tuple(map(_text, values)) for k, values in columns.items() if len(set(values)) > 1}


def telling_keys(columns: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A small set of keys whose values together tell configs apart as well as all keys do.

    Args:
        columns: Dotted key → its value in each config.

    Returns:
        What a greedy choice finds, a single key if one is enough; classes and readable keys are
        preferred.
    """

    def unreadable(key: str) -> tuple[bool, bool, bool, int, str]:
        return "[" in key, NOT_SET in columns[key], not key.endswith(CLASS), len(key), key

    def parts(keys: Sequence[str]) -> int:
        return len(set(zip(*(columns[key] for key in keys), strict=True)))

    candidates = sorted(columns, key=unreadable)
    found: list[str] = []
    while parts(found) < parts(candidates) > 1:
        found.append(max(candidates, key=lambda key: parts([*found, key])))
    return tuple(found)


def _shortened(key: str, value: str) -> tuple[str, str]:
    """The ends of the key and, if it is the name of a class, of its value."""
    if key.endswith(CLASS):
        key, value = key.removesuffix(CLASS), value.rpartition(".")[2]
    return key.rpartition(".")[2], value


def _text(value: Any) -> str:
    is_word = value is None or isinstance(value, bool)
    text = json.dumps(value) if is_word else printable(str(value))
    return text if len(text) <= LONGEST_NAME else f"{text[:24]}…{text[-23:]}"

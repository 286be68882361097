"""Runs that differ in nothing but their seed, as groups with readable names."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmbench.report.differences import differing_values, telling_keys
from lmbench.report.folders import LeftOut
from lmbench.report.runs import Corpus, Run
from lmbench.report.scores import Evaluation
from lmbench.report.statistics import Estimate, estimate
from lmbench.run.config import OF_THE_MACHINE

_MOST_ANCESTORS = 9


@dataclass(frozen=True)
class Group:
    """Runs of one config, whose weights were each drawn by another seed.

    Attributes:
        number: Its place by mean valid perplexity, from 1 on.
        model: Name of the model.
        settings: The dotted keys that tell it from the other groups of that model → their values.
        runs: Its runs, by seed.
        origins: For each of them, what its weights go back to, through all runs that are compared:
            a config and its seed. Runs of several groups may have the same.
    """

    number: int
    model: str
    settings: Mapping[str, str]
    runs: tuple[Run, ...]
    origins: tuple[Hashable, ...]

    @property
    def label(self) -> str:
        """The model and its settings."""
        return " ".join([self.model, *(f"{key}={value}" for key, value in self.settings.items())])

    def short_label(self, length: int) -> str:
        """Number, model and settings by the last names of their keys, in so many characters."""
        last = Counter(key.rpartition(".")[2] for key in self.settings)
        settings = [
            f"{name if last[name] == 1 else key}={value}"
            for key, value in self.settings.items()
            for name in [key.rpartition(".")[2]]
        ]
        text = " ".join([str(self.number), self.model, *settings])
        return text if len(text) <= length else f"{text[: length - 1]}…"

    def perplexity(self, split: str) -> Estimate | None:
        """Mean over the seeds that were scored on a split; None if none was."""
        values = [run.scores[split].ppl for run in self.runs if split in run.scores]
        return estimate(values) if values else None

    def evaluations(self, name: str, split: str) -> list[Evaluation]:
        """The evaluations of that name, of those of its runs that have one."""
        found = (run.evaluations.get((name, split)) for run in self.runs)
        return [evaluation for evaluation in found if evaluation]

    def evaluated_perplexity(self, name: str, split: str) -> Estimate | None:
        """Mean over the seeds that were evaluated so; None if none was, or not all alike."""
        found = self.evaluations(name, split)
        alike = len(protocols_of(found)) == 1
        return estimate([evaluation.score.ppl for evaluation in found]) if alike else None

    @property
    def protocol(self) -> str:
        """How valid and test were read: alike for all of its runs."""
        return self.runs[0].protocol

    @property
    def best_run(self) -> Run:
        """The run with the lowest valid perplexity."""
        return min(self.runs, key=lambda run: run.scores["valid"].ppl)


@dataclass(frozen=True)
class Section:
    """What can be compared with each other: groups on the same corpus.

    Attributes:
        corpus: The corpus that all were trained on.
        groups: The lowest mean valid perplexity first.
        differences: Every dotted key whose values differ → value by group.
    """

    corpus: Corpus
    groups: tuple[Group, ...]
    differences: Mapping[str, tuple[str, ...]]


def protocols_of(evaluations: Iterable[Evaluation]) -> list[str]:
    """How they were read; more than one if not all were read alike."""
    return sorted({evaluation.protocol for evaluation in evaluations})


def group_runs(runs: Sequence[Run]) -> tuple[list[Section], list[LeftOut]]:
    """Groups runs by corpus and config.

    Configs are alike if they are equal but for the seed and for where things lie; a run that
    started from another one's weights counts as started from that one's group, if it is among the
    runs. Of several runs of a group with the same seed, the first counts: a repetition is no
    independent value. The seed of a run that started from another one's weights is that one's, as
    two runs from the same weights are no independent values either.

    Returns:
        The sections, and the runs that repeat a seed or start from the same weights.
    """
    places = {run.run_dir.resolve().parts: run for run in runs}
    corpora: dict[Corpus, dict[Hashable, dict[int | str, Run]]] = {}
    left_out = []
    for run in runs:
        group = corpora.setdefault(run.corpus, {}).setdefault(_kind(run, places), {})
        origin = _origin(run, places)
        if origin in group:
            repeats = "Starts from the same weights as"
            if run.config.get("init_from") is None:
                repeats = f"Repeats seed {run.seed} of"
            reason = f"{repeats} {group[origin].run_dir}, and is not counted."
            left_out.append(LeftOut(run.run_dir, reason))
        else:
            group[origin] = run
    ordered = sorted(corpora.items(), key=lambda item: (item[0].name, item[0].sha256))
    sections = [_section(corpus, groups.values(), places) for corpus, groups in ordered]
    return sections, left_out


def _kind(run: Run, places: Mapping[tuple[str, ...], Run], depth: int = 0) -> Hashable:
    settings = _settings(run)
    parent = _parent(run, places) if depth < _MOST_ANCESTORS else None
    if parent is not None:
        settings["init_from"] = _kind(parent, places, depth + 1)
    return frozenset(settings.items()), run.protocol


def _origin(run: Run, places: Mapping[tuple[str, ...], Run]) -> int | str:
    """The seed that drew its first weights, or the folder they came from if that is not known."""
    root = _root(run, places)
    start = root.config.get("init_from")
    return root.seed if start is None else str(start)


def _root(run: Run, places: Mapping[tuple[str, ...], Run]) -> Run:
    for _ in range(_MOST_ANCESTORS):
        parent = _parent(run, places)
        if parent is None:
            break
        run = parent
    return run


def _parent(run: Run, places: Mapping[tuple[str, ...], Run]) -> Run | None:
    """The run whose weights it started from, if it is among the runs."""
    start = run.config.get("init_from")
    if not isinstance(start, str):
        return None
    # The path is as it was typed, in a folder that may not be this one.
    names = tuple(part for part in Path(start).parts if part not in ("..", "/"))
    parents = [other for parts, other in places.items() if parts[-len(names) :] == names]
    return parents[0] if len(parents) == 1 else None


def _settings(run: Run) -> dict[str, Any]:
    settings = {
        key: value for key, value in run.config.items() if key not in ("seed", *OF_THE_MACHINE)
    }
    for key, value in settings.items():
        if key.startswith(("trainer.limit_", "trainer.overfit_")) and type(value) in (int, float):
            settings[key] = repr(value)  # 1 is one window, and equals 1.0, which is all of them
    return settings


def _section(
    corpus: Corpus,
    by_origin: Iterable[dict[int | str, Run]],
    places: Mapping[tuple[str, ...], Run],
) -> Section:
    # In a group all origins are seeds, or there is but one: a folder is part of the config.
    runs = [tuple(run for _, run in sorted(group.items())) for group in by_origin]
    runs.sort(key=lambda group: estimate([run.scores["valid"].ppl for run in group]).mean)
    configs = [_settings(group[0]) for group in runs]
    differences = differing_values(configs)
    models = [group[0].model for group in runs]
    settings: list[dict[str, str]] = [{} for _ in runs]
    for model in set(models):
        members = [index for index, name in enumerate(models) if name == model]
        columns = {key: [texts[index] for index in members] for key, texts in differences.items()}
        for key in telling_keys(columns):
            for index in members:
                settings[index][key] = differences[key][index]
    groups = [
        Group(
            number,
            group[0].model,
            own,
            group,
            tuple((_kind(_root(run, places), places), _origin(run, places)) for run in group),
        )
        for number, (group, own) in enumerate(zip(runs, settings, strict=True), start=1)
    ]
    return Section(corpus, tuple(groups), differences)

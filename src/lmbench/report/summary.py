"""What the groups of a corpus came to, as a table for people."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, count

from lmbench.report.groups import Group, Section, protocols_of
from lmbench.report.runs import Run
from lmbench.report.scores import SPLITS
from lmbench.report.statistics import Estimate
from lmbench.report.table import Table

_SIGNS = "†‡§¶"
_MOST_PROTOCOLS = 6


def summary_table(section: Section, *, with_costs: bool = True) -> Table:
    """Each group's perplexities and costs, and the perplexity floor where the corpus has one.

    Args:
        section: The groups.
        with_costs: False for a terminal or a paper, which are narrow: evaluations are rows then.
    """
    names = evaluation_names(section.groups)
    marks = protocol_marks(section.groups)
    protocols = _protocols_of_evaluations(section.groups, names)
    columns = ["", "group", "seeds", "valid perplexity", "test perplexity"]
    if with_costs:
        columns.append("best run, valid / test")
        columns += [f"{name}, {split}" for name in names for split in SPLITS]
        columns += ["parameters", "epochs", "minutes", "tokens/s", "GiB"]
    rows = []
    for group in section.groups:
        mark = marks[group.protocol]
        row = [str(group.number), group.label, str(len(group.runs))]
        row += [estimate_text(group.perplexity(split)) + mark for split in SPLITS]
        evaluated = {
            name: [
                _evaluation(group, name, split, mark="*" * ((name, split) in protocols))
                for split in SPLITS
            ]
            for name in names
        }
        if with_costs:
            more = [cell for cells in evaluated.values() for cell in cells]
            rows.append([*row, _best(group), *more, *_costs(group)])
        else:
            rows.append(row)
            rows += [
                ["", f"· {name}", "", *cells]
                for name, cells in evaluated.items()
                if set(cells) != {"—"}
            ]
    floor = section.corpus.perplexity_floor
    if floor:
        floors = [f"{floor[split]:.2f}" if split in floor else "—" for split in SPLITS]
        rows.append(["", "perplexity floor", "", *floors, *[""] * (len(columns) - 5)])
    return Table(
        title=f"Perplexity on {section.corpus.name}",
        columns=columns,
        rows=rows,
        num_texts=2,
        name_column=1,
        notes=[
            *_notes(marks, with_costs),
            *_notes_on_tuning(section.groups, names),
            *_notes_on_evaluations(section.groups, protocols),
        ],
    )


def evaluation_names(groups: Iterable[Group]) -> list[str]:
    """Names of all evaluations of their runs."""
    return sorted({name for group in groups for run in group.runs for name, _ in run.evaluations})


def perplexity_text(perplexity: float) -> str:
    """A perplexity to the hundredth; of a run that has not learnt anything, its magnitude."""
    return f"{perplexity:,.2f}" if perplexity < 1e6 else f"{perplexity:.1e}"


def estimate_text(value: Estimate | None) -> str:
    """Mean and interval of a perplexity."""
    if value is None:
        return "—"
    half_width = "—" if value.half_width is None else perplexity_text(value.half_width)
    return f"{perplexity_text(value.mean)} ± {half_width}"


def _evaluation(group: Group, name: str, split: str, mark: str) -> str:
    num_found = len(group.evaluations(name, split))
    if not num_found:
        return "—"
    value = group.evaluated_perplexity(name, split)
    text = "not alike" if value is None else estimate_text(value)
    if num_found < len(group.runs):
        text += f" ({num_found} of {len(group.runs)})"
    return text + mark


def _protocols_of_evaluations(
    groups: Sequence[Group], names: Iterable[str]
) -> dict[tuple[str, str], list[str]]:
    """(name, split) → protocols, of those evaluations that were not all read alike."""
    protocols = {
        (name, split): protocols_of(chain(*(group.evaluations(name, split) for group in groups)))
        for name in names
        for split in SPLITS
    }
    return {key: found for key, found in protocols.items() if len(found) > 1}


def _best(group: Group) -> str:
    scores = group.best_run.scores
    return " / ".join(
        perplexity_text(scores[split].ppl) if split in scores else "—" for split in SPLITS
    )


def minutes_of(run: Run) -> float | None:
    """Wall-clock time of its training."""
    return None if run.seconds is None else run.seconds / 60


def peak_memory_bytes_of(group: Group) -> float | None:
    """The largest peak memory of its runs; None if it is known of none."""
    known = [run.peak_memory_bytes for run in group.runs if run.peak_memory_bytes is not None]
    return max(known, default=None)


def epochs_text(num_epochs: float) -> str:
    """A whole number as such, another with one digit behind the point."""
    return f"{num_epochs:,.1f}".removesuffix(".0")


def mean_over_runs(group: Group, value: Callable[[Run], float | None]) -> float | None:
    """Mean over the runs for which the value is known; None if it is for none."""
    values = [value(run) for run in group.runs]
    known = [number for number in values if number is not None]
    return sum(known) / len(known) if known else None


def _costs(group: Group) -> list[str]:
    epochs = [run.num_epochs for run in group.runs]
    low, high = min(epochs), max(epochs)
    minutes = mean_over_runs(group, minutes_of)
    tokens_per_second = mean_over_runs(group, lambda run: run.tokens_per_second)
    peak = peak_memory_bytes_of(group)
    return [
        f"{group.best_run.num_parameters:,}",
        epochs_text(low) if low == high else f"{epochs_text(low)} to {epochs_text(high)}",
        "—" if minutes is None else f"{minutes:,.1f}",
        "—" if tokens_per_second is None else f"{tokens_per_second:,.0f}",
        "—" if peak is None else f"{peak / 2**30:.2f}",
    ]


def protocol_marks(groups: Sequence[Group]) -> dict[str, str]:
    """Protocol → a sign; the empty one for the protocol of most groups."""
    protocols = Counter(group.protocol for group in groups).most_common()
    signs = chain([""], (sign * times for times in count(1) for sign in _SIGNS))
    return {protocol: sign for (protocol, _), sign in zip(protocols, signs, strict=False)}


def _notes(marks: Mapping[str, str], with_costs: bool) -> list[str]:
    notes = [
        "Groups hold the runs that differ in nothing but their seed, the lowest mean valid "
        "perplexity first. Mean over seeds ± 95% interval (Student's t); a dash where a single "
        "seed gives no interval.",
    ]
    if with_costs:
        notes.append(
            "Best run: the one with the lowest valid perplexity. Minutes and tokens per second are "
            "means over the runs, GiB the largest peak memory."
        )
    if len(marks) > 1:
        said = "; ".join(f"{mark or 'Without a mark'}: {how}" for how, mark in marks.items())
        notes.append(
            f"Not all were evaluated alike, and perplexities with different marks are not to be "
            f"compared. {said}."
        )
    return notes


def _notes_on_tuning(groups: Sequence[Group], names: Iterable[str]) -> list[str]:
    tuned = [
        name
        for name in names
        if any(one.is_tuned for group in groups for one in group.evaluations(name, "valid"))
    ]
    if not tuned:
        return []
    return [
        f"Settings of {' and '.join(tuned)} were tuned on valid: of these, only the test figures, "
        "and tests of them, are fair."
    ]


def _notes_on_evaluations(
    groups: Sequence[Group], protocols: Mapping[tuple[str, str], Sequence[str]]
) -> list[str]:
    notes = []
    for (name, split), found in protocols.items():
        said = "; ".join(found[:_MOST_PROTOCOLS])
        if len(found) > _MOST_PROTOCOLS:
            said += f"; and {len(found) - _MOST_PROTOCOLS} other ways"
        note = f"* {name}, {split}: not all were read alike ({said}), and are not to be compared."
        mixed = [
            str(group.number)
            for group in groups
            if len(protocols_of(group.evaluations(name, split))) > 1
        ]
        if mixed:
            note += (
                f" Not even the seeds of group {' and '.join(mixed)} were, so that there is no "
                "mean over them: evaluate them again with the same settings."
            )
        notes.append(note)
    return notes

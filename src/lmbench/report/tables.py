"""The tables of a comparison.

A column that is added here, to a group's row or a run's, appears in the terminal, on the page, and
in the Markdown, LaTeX and CSV files.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from statistics import fmean

from lmbench.report._significance import OWN_PREDICTIONS, Comparison
from lmbench.report.formats import Cell, Row, Table, estimate_text, p_text, perplexity_text
from lmbench.report.groups import Group, Section
from lmbench.report.runs import SPLITS, Run, Skipped
from lmbench.terminal.printing import printable


def group_table(section: Section) -> Table:
    """Each group's perplexities and costs."""
    rows = [_group_row(group, section) for group in section.groups]
    return Table(f"Perplexity on {section.corpus.name}", rows, [*_notes(section)])


def _group_row(group: Group, section: Section) -> Row:
    def over_runs(how: Callable[[list[float]], float], *keys: str) -> float | None:
        values = [x for run in group.runs if (x := run.number(*keys)) is not None]
        return how(values) if values else None

    def evaluated(name: str, split: str) -> Cell:
        is_wide = split == "valid" or name in OWN_PREDICTIONS
        return Cell(group.perplexity(split, name), f"{name}, {split}", estimate_text, is_wide)

    best, floor = group.best_run, section.corpus.perplexity_floor
    speed = over_runs(fmean, "train", "tokens_per_second")
    memory = over_runs(max, "train", "peak_memory_bytes")
    return {
        "corpus": Cell(section.corpus.name),
        "corpus_sha256": Cell(section.corpus.sha256),
        "group": Cell(group.number),
        "label": Cell(group.name, "name"),
        "num_seeds": Cell(len(group.runs), f"{group.unit}s"),
        **{f"{s}_ppl": Cell(group.perplexity(s), s, estimate_text) for s in SPLITS},
        **{
            f"{name}_{split}_ppl": evaluated(name, split)
            for name in section.evaluation_names
            for split in SPLITS
        },
        "best_run_dir": Cell(str(best.run_dir)),
        **{f"best_{s}_ppl": Cell(best.scores[s].ppl if s in best.scores else None) for s in SPLITS},
        "num_parameters": Cell(best.number("num_parameters"), "parameters", "{:,}".format, True),
        "epochs": Cell(over_runs(fmean, "train", "epochs"), "epochs", _epochs_text, True),
        "seconds": Cell(over_runs(fmean, "train", "seconds"), "minutes", _minutes_text, True),
        "tokens_per_second": Cell(speed, "tokens/s", "{:,.0f}".format, True),
        "peak_memory_bytes": Cell(memory, "GiB", lambda x: f"{x / 2**30:.2f}", True),
        "protocol": Cell(group.protocol),
        **{f"floor_{split}_ppl": Cell(floor.get(split)) for split in SPLITS},
    }


def run_table(section: Section) -> Table:
    """A row for each run."""
    rows = [_run_row(group, run, section) for group in section.groups for run in group.runs]
    return Table("Runs", rows)


def _run_row(group: Group, run: Run, section: Section) -> Row:
    environment = run.results.get("environment")
    device = environment.get("device") if isinstance(environment, Mapping) else None
    row = {
        "corpus": Cell(section.corpus.name),
        "corpus_sha256": Cell(section.corpus.sha256),
        "group": Cell(group.number),
        "label": Cell(group.name, "name"),
        "seed": Cell(run.seed, "seed"),
        "run_dir": Cell(str(run.run_dir), "run"),
    }
    for split in SPLITS:
        score = run.scores.get(split)
        row[f"{split}_nll"] = Cell(score and score.nll)
        row[f"{split}_ppl"] = Cell(score and score.ppl, split, perplexity_text)
    row |= {
        "best_epoch": Cell(run.number("best_epoch"), "best epoch, from 0"),
        "epochs": Cell(run.number("train", "epochs")),
        "num_parameters": Cell(run.number("num_parameters")),
        "seconds": Cell(run.number("train", "seconds"), "minutes", _minutes_text),
        "tokens_per_second": Cell(run.number("train", "tokens_per_second")),
        "peak_memory_bytes": Cell(run.number("train", "peak_memory_bytes")),
        "device": Cell(None if device is None else printable(str(device)), "device"),
        "protocol": Cell(run.protocol),
    }
    for name in section.evaluation_names:
        for split in SPLITS:
            evaluation = run.evaluations.get((name, split))
            row[f"{name}_{split}_ppl"] = Cell(evaluation and evaluation.score.ppl)
            row[f"{name}_{split}_protocol"] = Cell(evaluation and evaluation.protocol)
    return row


def pair_table(title: str, comparisons: Sequence[Comparison], split: str) -> Table:
    """A row for each tested pair of groups."""
    return Table(title, [_pair_row(comparison, split) for comparison in comparisons])


def _pair_row(pair: Comparison, split: str) -> Row:
    corpus, test, num_seeds = pair.first.runs[0].corpus, pair.test, pair.num_seeds
    return {
        "corpus": Cell(corpus.name),
        "corpus_sha256": Cell(corpus.sha256),
        "split": Cell(split),
        "test": Cell(pair.test_name),
        "first_label": Cell(pair.first.name, "first"),
        "second_label": Cell(pair.second.name, "second"),
        "first_group": Cell(pair.first.number),
        "second_group": Cell(pair.second.number),
        "evaluation": Cell(pair.evaluation, "evaluation"),
        "first_num_seeds": Cell(num_seeds[0], f"{pair.first.unit}s of the first"),
        "second_num_seeds": Cell(num_seeds[1], f"{pair.second.unit}s of the second"),
        "drawn": Cell(pair.unit),
        "num_drawn": Cell(pair.num_units, "articles or blocks"),
        "difference_nats_per_token": Cell(test.difference, "difference, nats/token", _nats_text),
        "low": Cell(test.low, "95% CI, low", _nats_text),
        "high": Cell(test.high, "95% CI, high", _nats_text),
        "perplexity_ratio": Cell(pair.ratio, "perplexity ratio", "{:.4f}".format),
        "p": Cell(test.p, "p", p_text),
        "p_holm": Cell(pair.adjusted_p, "p, all pairs (Holm)", p_text),
        "verdict": Cell(pair.significance_text, "verdict"),
    }


def skipped_table(skipped: Sequence[Skipped]) -> Table:
    """What was found but does not count."""
    rows = [
        {"path": Cell(str(item.path), "folder or file"), "reason": Cell(item.reason, "reason")}
        for item in skipped
    ]
    return Table("Left out", rows)


def config_difference_table(section: Section) -> Table:
    """The config keys in which the groups differ."""
    names = [group.name for group in section.groups]
    rows = [
        {"": Cell(key, "key"), **{n: Cell(x, n) for n, x in zip(names, values, strict=True)}}
        for key, values in section.differences.items()
    ]
    return Table("Config differences", rows)


def _epochs_text(epochs: float) -> str:
    return f"{epochs:,.2f}".removesuffix(".00")


def _minutes_text(seconds: float) -> str:
    return f"{seconds / 60:,.1f}"


def _nats_text(nats: float) -> str:
    return f"{nats:+.4f}".replace("-", "\N{MINUS SIGN}")


def _notes(section: Section) -> Iterator[str]:
    groups = section.groups
    if any(len(group.runs) > 1 for group in groups):
        yield f"Mean over {groups[0].unit}s ± 95% interval (Student's t)."
    if floor := section.corpus.perplexity_floor:
        values = " / ".join(f"{ppl:.2f}" for ppl in floor.values())
        yield f"Perplexity floor, {' / '.join(floor)}: {values}."
    (usual, _), *others = Counter(group.protocol for group in groups).most_common()
    if others:
        names = [f"{g.name} ({g.protocol})" for g in groups if g.protocol != usual]
        yield f"Not read like the others ({usual}), so not comparable: {'; '.join(names)}."
    for split, group in product(SPLITS, groups):
        if 0 < (number := sum(split in run.scores for run in group.runs)) < len(group.runs):
            yield f"{split}: {number} of {len(group.runs)} {group.unit}s of {group.name}."
    for name in section.evaluation_names:
        for split in SPLITS:
            evaluated = {group: group.evaluations(name, split) for group in groups}
            ways = sorted({run.protocol for seeds in evaluated.values() for run in seeds})
            if len(ways) > 1:
                yield f"{name}, {split}: not all were read alike ({'; '.join(ways[:6])})."
            if split == "valid" and any(
                run.is_tuned for seeds in evaluated.values() for run in seeds
            ):
                yield f"{name} was tuned on valid: only its test figures are fair."
            for group, seeds in evaluated.items():
                if 0 < len(seeds) < len(group.runs):
                    which = f"{len(seeds)} of {len(group.runs)} {group.unit}s of {group.name}"
                    yield f"{name}, {split}: {which}."

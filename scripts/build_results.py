"""Rebuilds ``results/README.md`` and its pictures from what runs have left in ``results/``.

    python scripts/build_results.py

A new recipe takes an entry in ``results/recipes.yaml``, and a folder with a run's ``results.json``,
``config.yaml``, ``metrics.csv``, ``evaluation-*.json`` and ``minimal_pairs-*.json``; or one such
folder for each seed, which also needs ``timing.csv``.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmbench.errors import UserError
from lmbench.files import read_yaml
from lmbench.report.formats import markdown
from lmbench.report.groups import Section, group_runs
from lmbench.report.literature import PUBLISHED, Published, published_table
from lmbench.report.minimal_pairs import accuracy_table, pair_results
from lmbench.report.plots import draw_plots
from lmbench.report.runs import read_runs
from lmbench.report.tables import group_table

RESULTS = Path(__file__).resolve().parents[1] / "results"
PICTURES = {
    "wikitext2": {"epochs": "wikitext2.png"},
    "synthetic": {"epochs": "training_curves.png"},
}
"""Corpus → what perplexity is drawn against → file, for all recipes."""

PICTURES_OF_SEVERAL_SEEDS = {
    "wikitext2": {"epochs": "wikitext2_epochs.png", "minutes": "wikitext2_minutes.png"}
}
GOALS = (
    Published("goal for AWD-LSTM", "", ("80.27", "77.11")),
    Published("goal for the LSTM", "", ("128.3", "121.7")),
)
"""What lmbench set out to reach, as dotted lines beside the recipes with several seeds."""


HEAD = """# Results

Written by `python scripts/build_results.py` from the folders here and `recipes.yaml`. Each folder
has the run's config, curve and results. Perplexities are those of the epoch with the best valid.

- **cache**: `lmbench-evaluate RUN_DIR evaluation=cache evaluation.tune=true split=valid,test`.
- **dynamic_cache**: with `evaluation.window=20` and `evaluation.dynamic.epsilon=2e-5`, tuned on the
  first 20,000 tokens of valid: `grid.lrs=[5e-5,1e-4,2e-4]`, then `grid.decays=[4e-3,8e-3]` (for
  45 epochs also 1.6e-2). In the runs of five epochs, the largest decay was best, so larger ones may
  be better.
- **Minimal pairs**: `lmbench-evaluate RUN_DIR evaluation=minimal_pairs evaluation.pairs=BLiMP.zip`.
  Warstadt et al. 2020 (arXiv 1912.00582) have 61.2 for a 5-gram model and 69.8 for an LSTM, both of
  far more text.
- [`cores`](cores): the [study of cores](../docs/cores.md#the-study).

Minutes depend on what else the machine had to do.
"""


def read_recipes(folder: Path) -> tuple[dict[str, Mapping[str, Any]], list[Section]]:
    """The entries of ``recipes.yaml`` by recipe, and their runs grouped by corpus and config.

    Raises:
        UserError: Results are missing or damaged, or a seed is there twice.
    """
    entries = read_yaml(folder / "recipes.yaml")
    paths = [(recipe, folder / entry["folder"]) for recipe, entry in entries.items()]
    runs, skipped = read_runs(paths)
    sections, repeated = group_runs(runs)
    for item in (*skipped, *repeated):
        raise UserError(f"{item.path}: {item.reason}")
    order = list(entries)
    return entries, sorted(sections, key=lambda x: min(order.index(g.name) for g in x.groups))


def page(folder: Path) -> str:
    """The whole README."""
    entries, sections = read_recipes(folder)
    return "\n".join([HEAD, *(line for x in sections for line in _section(x, entries))])


def _section(section: Section, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    own = {group.name: entries[group.name] for group in section.groups}
    yield markdown(group_table(section))
    for pairs in pair_results(section):
        yield markdown(accuracy_table(pairs))
    if published := {x["published"] for x in own.values() if "published" in x}:
        yield markdown(published_table([PUBLISHED[name] for name in sorted(published)]))
    for pictures in (PICTURES_OF_SEVERAL_SEEDS, PICTURES):
        for quantity, name in pictures.get(section.corpus.name, {}).items():
            yield f"![Validation perplexity against {quantity}]({name})\n"
    for recipe, entry in own.items():
        note = f" {entry['note']}" if "note" in entry else ""
        where = f"[`{entry['folder']}`]({entry['folder']}), {entry['hardware']}"
        yield f"- **{recipe}** ({where}): `{entry['command']}`{note}"
    yield ""


def draw(folder: Path) -> dict[str, bytes]:
    """The pictures by their names."""
    _, sections = read_recipes(folder)
    runs = [
        run for x in sections for group in x.groups if len(group.runs) > 1 for run in group.runs
    ]
    return {
        **_pictures(sections, PICTURES, ()),
        **_pictures(group_runs(runs)[0], PICTURES_OF_SEVERAL_SEEDS, GOALS),
    }


def _pictures(
    sections: Sequence[Section],
    names: Mapping[str, Mapping[str, str]],
    references: Sequence[Published],
) -> dict[str, bytes]:
    pictures = {}
    for section in sections:
        if wanted := names.get(section.corpus.name):
            plots = {plot.name: plot.png for plot in draw_plots(section, references)}
            pictures |= {name: plots[f"curves_{quantity}"] for quantity, name in wanted.items()}
    return pictures


if __name__ == "__main__":
    try:
        (RESULTS / "README.md").write_text(page(RESULTS), "utf-8")
        for name, content in draw(RESULTS).items():
            (RESULTS / name).write_bytes(content)
    except UserError as error:
        sys.exit(str(error))

"""Rebuilds ``results/README.md`` and the pictures there from what runs have left in ``results/``.

    python scripts/build_results.py

A new row takes a folder with the run's ``results.json``, ``config.yaml``, ``metrics.csv`` and
``evaluation-*.json``, and an entry in ``results/recipes.yaml``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from plot_curves import draw_curves, num_epochs

from lmbench.errors import UserError
from lmbench.report.folders import read_json
from lmbench.report.published import PUBLISHED, Published
from lmbench.report.scores import (
    SPLITS,
    MeasuredScore,
    Score,
    evaluation_files,
    measured_scores,
    read_results,
)
from lmbench.report.statistics import estimate
from lmbench.report.summary import estimate_text

RESULTS = Path(__file__).resolve().parents[1] / "results"
EVALUATIONS = ("", "cache", "dynamic", "dynamic_cache")
PICTURES = {"wikitext2": "wikitext2.png", "synthetic": "training_curves.png"}
TITLES = {"wikitext2": "WikiText-2", "synthetic": "The embedded corpus"}
HEAD = """# Results

Made by `python scripts/build_results.py` from the folders here and `recipes.yaml`; no figure is
typed by hand. Perplexities are valid / test, of the checkpoint that validation chose; where a
recipe ran with several seeds, the mean ± 95% interval (Student's t). Cache and dynamic evaluation
have settings tuned on valid, so only their test figures are fair. Published figures are what others
came to with the model in full, from the source named below; none was measured here. Epochs are
counted by tokens here; the `results.json` of `cpu_hour`, `cpu_night`, `cpu_night_90_minutes` and
`cpu_hour_10_epochs` are from before lmbench counted the share of an epoch that was cut short, and
have it whole.

Caches are those of `lmbench-evaluate run=RUN_DIR evaluation=cache evaluation.tune=true`, with
`split=valid` and `split=test`; the settings that were found stand in the `evaluation-*.json`.
"""


@dataclass(frozen=True)
class Row:
    """A recipe and what it came to.

    Attributes:
        folder: Name of its folder in ``results/``.
        recipe: The recipe in words.
        command: The command that trains it.
        hardware: The machine in words.
        published: Somebody else's result of the model in full; None if there is none.
        results: ``results.json`` of each seed.
        scores: The scores of each seed.
    """

    folder: str
    recipe: str
    command: str
    hardware: str
    published: Published | None
    results: Sequence[dict[str, Any]]
    scores: Sequence[Sequence[MeasuredScore]]

    @property
    def corpus(self) -> str:
        """Its name."""
        return self.results[0]["data"]["name"]

    def perplexities(self, evaluation: str) -> str:
        """Valid and test; empty where nothing was evaluated so."""
        found = {
            split: [
                score.score.ppl
                for of_run in self.scores
                for score in of_run
                if (score.evaluation, score.split) == (evaluation, split)
            ]
            for split in SPLITS
        }
        if not any(found.values()):
            return ""
        if {len(values) for values in found.values()} - {0, len(self.results)}:
            raise UserError(f"{self.folder}: not every seed was evaluated ({evaluation}).")
        return " / ".join(_perplexity(values) for values in found.values())


def read_rows(folder: Path) -> list[Row]:
    """The recipes of ``recipes.yaml`` with the results that lie beside it.

    Raises:
        UserError: Results are missing or damaged.
    """
    rows = []
    for entry in yaml.safe_load((folder / "recipes.yaml").read_text("utf-8")):
        own = folder / entry["folder"]
        is_one = (own / "results.json").exists()
        run_dirs = [own] if is_one else sorted(path for path in own.iterdir() if path.is_dir())
        results = [read_results(run_dir) for run_dir in run_dirs]
        published = entry.pop("published", None)
        rows.append(
            Row(
                **entry,
                published=PUBLISHED[published] if published else None,
                results=results,
                scores=[
                    [*measured_scores(run_dir, of_run), *_dynamic_alone(run_dir)]
                    for run_dir, of_run in zip(run_dirs, results, strict=True)
                ],
            )
        )
    return rows


def _dynamic_alone(run_dir: Path) -> Iterator[MeasuredScore]:
    """What dynamic evaluation came to before the cache was laid over it, if nothing else tells."""
    for path, name, split in evaluation_files(run_dir):
        if name == "dynamic_cache" and not (run_dir / f"evaluation-dynamic-{split}.json").exists():
            yield MeasuredScore(split, "dynamic", Score(**read_json(path)["without_cache"]))


def page(rows: Sequence[Row]) -> str:
    """The whole README."""
    corpora = dict.fromkeys(row.corpus for row in rows)
    return "\n".join([HEAD, *(_section([row for row in rows if row.corpus == c]) for c in corpora)])


def _section(rows: Sequence[Row]) -> str:
    evaluated = [name for name in EVALUATIONS if any(row.perplexities(name) for row in rows)]
    names = [name.replace("_", " and ") or "perplexity" for name in evaluated]
    columns = ["recipe", "seeds", *names, "parameters", "epochs", "minutes", "hardware"]
    cells = [
        [
            row.recipe,
            str(len(row.results)),
            *(row.perplexities(name) or "—" for name in evaluated),
            f"{row.results[0]['num_parameters']:,}",
            f"{_mean([num_epochs(results) for results in row.results]):.3g}",
            f"{_mean([results['train']['seconds'] for results in row.results]) / 60:.1f}",
            row.hardware,
        ]
        for row in rows
    ]
    if any(row.published for row in rows):
        columns.append("published")
        for row, cell in zip(rows, cells, strict=True):
            cell.append(_published(row.published) if row.published else "—")
    floor = rows[0].results[0]["data"].get("perplexity_floor")
    corpus = rows[0].corpus
    title = TITLES.get(corpus, corpus)
    lines = [f"## {title}", "", _line(columns), _line(["---"] * len(columns))]
    lines += [_line(cell) for cell in cells]
    if floor:
        lines += ["", f"The perplexity floor is {floor['valid']:.2f} / {floor['test']:.2f}."]
    has_picture = corpus in PICTURES
    lines += [f"\n![Valid perplexity by epoch]({PICTURES[corpus]})\n" if has_picture else ""]
    lines += [
        f"- **{row.recipe}**, [`{row.folder}`]({row.folder}): `{row.command}`" for row in rows
    ]
    sources = {row.published.model: row.published.source for row in rows if row.published}
    if sources:
        named = "; ".join(f"{model}: {source}" for model, source in sources.items())
        lines += ["", f"Published: {named}."]
    return "\n".join(lines).rstrip() + "\n"


def _published(result: Published) -> str:
    return f"{' / '.join(result.scores['standard'])} ({result.model})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _perplexity(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return estimate_text(estimate(values)) if values else "—"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Writes the page and the pictures."""
    rows = read_rows(RESULTS)
    (RESULTS / "README.md").write_text(page(rows), "utf-8")
    for corpus, picture in PICTURES.items():
        run_dirs = [
            min((RESULTS / row.folder).rglob("results.json")).parent  # the first seed
            for row in rows
            if row.corpus == corpus
        ]
        draw_curves(RESULTS / picture, run_dirs)


if __name__ == "__main__":
    main()

"""Published results on WikiText-2, to be shown beside measured ones and never among them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmbench.errors import UserError
from lmbench.files import read_yaml
from lmbench.report.formats import Cell, Table

CORPUS = "wikitext2"
"""Name of the one corpus that they belong to."""


@dataclass(frozen=True)
class Published:
    """An entry of ``published.yaml``: valid and test perplexity as somebody published them.

    Attributes:
        model: What was trained.
        source: Paper, repository, or where a user of the repository reported it.
        standard: Valid and test perplexity, with the digits that were published.
        cache: The same with a cache.
        dynamic: The same with dynamic evaluation.
        parameters: In millions; None if the source does not say.
    """

    model: str
    source: str
    standard: Sequence[str]
    cache: Sequence[str] = ()
    dynamic: Sequence[str] = ()
    parameters: float | None = None


PUBLISHED = {
    name: Published(**entry)
    for name, entry in read_yaml(Path(__file__).with_name("published.yaml")).items()
}


def choose_published(names: Iterable[str] | None) -> list[Published]:
    """The results by their names.

    Args:
        names: Keys of ``PUBLISHED``; "all" among them means all; None means none.

    Raises:
        UserError: No result has that name.
    """
    chosen = dict.fromkeys(names or ())
    for name in chosen:
        if name != "all" and name not in PUBLISHED:
            raise UserError(f"--published: there is no {name}. Choose from {', '.join(PUBLISHED)}.")
    return [PUBLISHED[name] for name in (PUBLISHED if "all" in chosen else chosen)]


def published_table(results: Sequence[Published]) -> Table:
    """Published perplexities, valid / test, with their sources."""
    kinds = {
        "standard": "valid / test",
        "cache": "with cache",
        "dynamic": "with dynamic evaluation",
    }
    rows = [
        {
            "model": Cell(result.model, "model"),
            **{
                k: Cell(" / ".join(getattr(result, k)) or None, title) for k, title in kinds.items()
            },
            "parameters": Cell(result.parameters, "parameters", "{:g}M".format),
            "source": Cell(result.source, "published in"),
        }
        for result in results
    ]
    return Table("Published results on WikiText-2, not measured here", rows)

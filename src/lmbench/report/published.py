"""Published results on WikiText-2, to stand beside measured ones and never among them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lmbench.errors import UserError
from lmbench.report.table import Table

CORPUS = "wikitext2"
"""The one corpus that they belong to, by its name."""

ALL = "all"


@dataclass(frozen=True)
class Published:
    """Valid and test perplexity as somebody else has published them.

    Attributes:
        model: What was trained.
        source: Paper, repository, or where a user of the repository has told it.
        scores: How it was evaluated ("standard", "cache" or "dynamic") → valid and test perplexity,
            with the digits that were published.
        num_parameters: Number of parameters in millions; None if the source does not say.
    """

    model: str
    source: str
    scores: Mapping[str, tuple[str, str]] = field(hash=False)
    num_parameters: float | None = None


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "lstm_200": Published(
            "LSTM 200, tied, 40 epochs",
            "a user's single run, pytorch/examples issue 281",
            {"standard": ("105.97", "100.33")},
        ),
        "lstm_650": Published(
            "LSTM 650, tied, 40 epochs",
            "a user's single run, pytorch/examples issue 281",
            {"standard": ("91.70", "86.68")},
        ),
        "awd_lstm": Published(
            "AWD-LSTM",
            "paper arXiv 1708.02182 (Merity et al. 2017); dynamic: 1709.07432 (Krause et al. 2018)",
            {"standard": ("68.6", "65.8"), "cache": ("53.8", "52.0"), "dynamic": ("46.4", "44.3")},
            33,
        ),
        "awd_lstm_repository": Published(
            "AWD-LSTM, before finetuning",
            "repository salesforce/awd-lstm-lm",
            {"standard": ("68.7", "65.6")},
            33.6,
        ),
        "awd_lstm_finetuned": Published(
            "AWD-LSTM, finetuned",
            "repository salesforce/awd-lstm-lm",
            {"standard": ("67.4", "64.7"), "cache": ("52.2", "50.6")},
            33.6,
        ),
        "awd_lstm_90": Published(
            "AWD-LSTM, 90 epochs of Adam",
            "repository sgugger/Adam-experiments",
            {"standard": ("68.7", "65.5"), "cache": ("52.9", "50.9")},
        ),
        "mos": Published(
            "AWD-LSTM-MoS",
            "paper arXiv 1711.03953 (Yang et al. 2018)",
            {"standard": ("63.88", "61.45"), "dynamic": ("42.41", "40.68")},
            35,
        ),
        "doc": Published(
            "AWD-LSTM-DOC",
            "paper arXiv 1808.10143 (Takase et al. 2018)",
            {"standard": ("60.29", "58.03")},
            37,
        ),
        "mogrifier": Published(
            "Mogrifier LSTM",
            "paper arXiv 1909.01792 (Melis et al. 2020)",
            {"standard": ("57.3", "55.1"), "dynamic": ("40.2", "38.6")},
            35,
        ),
        "rlstm": Published(
            "Mogrifier RLSTM",
            "paper arXiv 2211.01848 (Melis 2022)",
            {"standard": ("56.7", "55.0"), "dynamic": ("39.3", "38.0")},
        ),
    }
)


def choose_published(names: Iterable[str] | None) -> list[Published]:
    """The results by their names.

    Args:
        names: Keys of ``PUBLISHED``; nothing or "all" among them means all; None means none.

    Raises:
        UserError: No result has that name.
    """
    if names is None:
        return []
    chosen = list(names)
    for name in chosen:
        if name != ALL and name not in PUBLISHED:
            raise UserError(f"--published knows no {name}. It knows {', '.join(PUBLISHED)}.")
    if not chosen or ALL in chosen:
        return list(PUBLISHED.values())
    return [PUBLISHED[name] for name in dict.fromkeys(chosen)]


def published_table(results: Iterable[Published]) -> Table:
    """Published perplexities, valid / test, with their sources."""
    kinds = ("standard", "cache", "dynamic")
    rows = [
        [
            result.model,
            result.source,
            *(" / ".join(result.scores[kind]) if kind in result.scores else "—" for kind in kinds),
            f"{result.num_parameters:g}M" if result.num_parameters else "—",
        ]
        for result in results
    ]
    return Table(
        title="Published results on WikiText-2, not measured here",
        columns=[
            "model",
            "published in",
            "valid / test perplexity",
            "with cache",
            "with dynamic evaluation",
            "parameters",
        ],
        rows=rows,
        num_texts=2,
    )

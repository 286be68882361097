"""The evaluator of a config, from plain values."""

from pathlib import Path
from typing import Any

from lmbench.data.corpus import Corpus
from lmbench.errors import UserError
from lmbench.evaluation.cache import Cache
from lmbench.evaluation.dynamic import Dynamic
from lmbench.evaluation.evaluator import Evaluator, Phase
from lmbench.evaluation.tuning import CacheGrid, DynamicGrid, Grids
from lmbench.from_config.arguments import call, require_type
from lmbench.model import LanguageModel


def build_evaluator(
    node: dict[str, Any],
    model: LanguageModel,
    corpus: Corpus,
    *,
    statistics_path: Path,
    phase: Phase,
) -> tuple[Evaluator, Grids]:
    """What evaluates a model, and what its tuning tries.

    Args:
        node: ``evaluation`` of the config.
        model: The trained model.
        corpus: The corpus that it was trained on.
        statistics_path: See :class:`~lmbench.evaluation.evaluator.Evaluator`.
        phase: Likewise.

    Raises:
        UserError: A value is missing, or of a wrong type or size.
    """
    of_cache, of_dynamic = (node.get(name) for name in ("cache", "dynamic"))
    statistics = {}
    if of_dynamic:
        given = _pop(of_dynamic, "evaluation.dynamic", "statistics")
        for name in ("columns", "segments"):
            statistics[f"statistics_{name}"] = _pop(given, "evaluation.dynamic.statistics", name)
        _require_empty(given, "evaluation.dynamic.statistics")
    others = {"tune", "save_tokens", "cache", "dynamic"}
    of_reading = {
        name: _pop(node, "evaluation", name)
        for name in ("protocol", "columns", "burn_in", "window")
    }
    _require_empty({name: node[name] for name in node if name not in others}, "evaluation")
    cache, cache_grid = _with_grid(of_cache, "evaluation.cache", Cache, CacheGrid)
    dynamic, dynamic_grid = _with_grid(of_dynamic, "evaluation.dynamic", Dynamic, DynamicGrid)
    made = call(
        Evaluator,
        "evaluation",
        model,
        corpus,
        **of_reading,
        cache=cache,
        dynamic=dynamic,
        **statistics,
        statistics_path=statistics_path,
        phase=phase,
    )
    return made, (cache_grid, dynamic_grid)


def _with_grid(node: dict[str, Any] | None, key: str, settings: type, grid: type) -> Any:
    """Settings, and what their tuning tries, of a node that may not be there."""
    if not node:
        return None, None
    of_grid = _pop(node, key, "grid")
    require_type(f"{key}.grid", of_grid, dict)
    return call(settings, key, **node), call(grid, f"{key}.grid", **of_grid)


def _require_empty(node: dict[str, Any], key: str) -> None:
    for name in node:
        raise UserError(f"{key}.{name} is read by nothing. Leave it out.")


def _pop(node: Any, key: str, name: str) -> Any:
    """Takes a value out of a node that the user may have deleted or replaced."""
    require_type(key, node, dict)
    if name not in node:
        raise UserError(f"{key}.{name} is missing: leave it as it is, or give it a value.")
    return node.pop(name)

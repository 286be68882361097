"""The evaluator of a config, from plain values."""

from pathlib import Path
from typing import Any

from lmbench.data.columns import EvaluationSettings
from lmbench.data.corpus import Corpus
from lmbench.errors import UserError
from lmbench.evaluation.evaluator import Evaluator, ReadingMode, RescoringMode
from lmbench.instantiate.arguments import call, factory, parameters_of
from lmbench.model import LanguageModel


def build_evaluator(
    node: dict[str, Any], model: LanguageModel, corpus: Corpus, *, folder: Path
) -> Evaluator:
    """The evaluator of a model.

    Args:
        node: ``evaluation`` of the config. A value with a ``_target_`` makes a mode; a mode that is
            null is left out.
        model: The trained model.
        corpus: The corpus that it was trained on.
        folder: See :class:`lmbench.evaluation.evaluator.Evaluator`.

    Raises:
        UserError: A value is missing, or of the wrong type or size; or a target is not a mode.
    """
    modes, others = [], {}
    known = parameters_of(EvaluationSettings)
    for name, value in node.items():
        if isinstance(value, dict):
            mode = factory(value, f"evaluation.{name}")()
            if not isinstance(mode, (ReadingMode, RescoringMode)):
                raise UserError(
                    f"evaluation.{name}: {type(mode).__name__} is neither a ReadingMode nor a "
                    "RescoringMode of lmbench.evaluation.evaluator."
                )
            modes.append(mode)
        elif name in known:
            others[name] = value
        elif name not in ("tune", "save_tokens") and value is not None:
            raise UserError(
                f"evaluation.{name}={value}: evaluation has no such setting. If {name} is a mode, "
                f"set one of its keys (evaluation.{name}.KEY=…), or null to leave it out."
            )
    settings = call(EvaluationSettings, "evaluation", others)
    return Evaluator(model, corpus, folder, settings, modes)

"""What a config's evaluation measures, and the run that it is measured of."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmbench.data.columns import EvaluationSettings
from lmbench.data.corpus import Corpus
from lmbench.evaluation.measure import Measure, TrainedRun
from lmbench.evaluation.split_perplexity import SplitPerplexity
from lmbench.instantiate.arguments import call, factory, parameters_of
from lmbench.instantiate.model import build_saved
from lmbench.run.config import model_name, read_run_config, set_value
from lmbench.run.targets import DATA_PLACES, MODEL_PLACES, import_target
from lmbench.saved.checkpoint import read_run_model

SWITCHES = ("tune", "save_tokens")


def build_measure(node: Mapping[str, Any]) -> Measure:
    """The measure of a config.

    Args:
        node: ``evaluation`` of the config. Its ``_target_`` is the measure; without one, each value
            with a ``_target_`` is a mode in which splits are read, and one that is null is left
            out.

    Raises:
        UserError: A value is missing, unknown, or of the wrong type or size.
    """
    standard = parameters_of(EvaluationSettings).keys()
    if "_target_" in node:  # the standard evaluation's keys are in every config
        taken = parameters_of(import_target(node["_target_"]))
        unused = {key for key in (*standard, *SWITCHES) if node.get(key) is not True} - taken.keys()
        own = {key: value for key, value in node.items() if key not in unused}
        return factory(own, "evaluation")()
    modes, settings = [], {}
    for key, value in node.items():
        if isinstance(value, dict):
            modes.append(factory(value, f"evaluation.{key}")())
        elif key not in SWITCHES and (key in standard or value is not None):
            settings[key] = value
    switches = {key: node[key] for key in SWITCHES if key in node}
    read_as = call(EvaluationSettings, "evaluation", settings)
    return call(SplitPerplexity, "evaluation", switches, settings=read_as, modes=modes)


def trained_run(folder: Path, data: Mapping[str, str | None], device: Any) -> TrainedRun:
    """A run's best checkpoint, in float32 or float64.

    Args:
        folder: The run's directory.
        data: ``path`` and ``cache_dir`` of its corpus on this machine; None for the run's own.
        device: The torch device of the model.

    Raises:
        UserError: The folder holds no run, its config lacks a key, or a file is damaged.
    """
    config = read_run_config(folder, (*MODEL_PLACES, *DATA_PLACES))
    for key, place in data.items():
        if place is not None:
            set_value(config, f"data.{key}={place}", f"data.{key}", place)
    saved = read_run_model(folder)
    model = build_saved(saved).to(device)
    about = {
        "lmbench_version": version("lmbench"),
        "model": model_name(config["model"]),
        "seed": config.get("seed"),
        "weights_sha256": model.weights_sha256(),
        "device": str(device),
        "corpus_sha256": saved.corpus_sha256,
    }
    if model.embedding.weight.dtype.itemsize < 4:
        model.float()  # so that small steps of dynamic evaluation are not rounded away

    def load_corpus() -> Corpus:
        corpus = factory(config["data"], "data")()
        corpus.require_sha256(saved.corpus_sha256)
        return corpus

    return TrainedRun(folder, model, saved.vocabulary, load_corpus, about)

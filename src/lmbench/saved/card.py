"""The README of an exported model, in the form of a Hugging Face model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmbench.data import synthetic
from lmbench.data.benchmarks import BENCHMARKS
from lmbench.errors import UserError
from lmbench.files import reading
from lmbench.report.runs import read_run
from lmbench.run.config import MACHINE_KEYS

RECIPE = ("name", "seed", "data", "model", "batching", "loss", "optimizer", "scheduler", "trainer")
RECIPE += ("callbacks", "evaluation", "float32_matmul_precision")

_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def model_card(run_dir: Path, config: Mapping[str, Any], weights_sha256: str) -> tuple[str, str]:
    """The name of a finished run's corpus, and its model card.

    Args:
        run_dir: The run's directory, perhaps with ``evaluation-*.json`` from lmbench-evaluate.
        config: The run's config, as a plain dict.
        weights_sha256: Hash of the weights that are exported.

    Raises:
        UserError: A file is damaged, or does not belong to the run.
    """
    import yaml
    from huggingface_hub import EvalResult, ModelCardData
    from jinja2 import Environment, StrictUndefined

    run = read_run(run_dir)
    for item in run.skipped:
        if item.path.name.startswith("evaluation-"):
            raise UserError(item.reason)
    if run.results.get("weights_sha256") not in (None, weights_sha256):
        raise UserError(
            f"{run_dir / 'results.json'} is for weights other than those in checkpoints/best.ckpt. "
            "Let the run finish; that rewrites it."
        )
    name, results = run.corpus.name, run.results
    scores = [(split, "", score) for split, score in run.scores.items()]
    scores += [(split, of, evaluation.score) for (of, split), evaluation in run.evaluations.items()]
    title = f"{run.model} on {name}"
    about = {"synthetic": synthetic.ABOUT} | {key: one.about for key, one in BENCHMARKS.items()}
    benchmark = BENCHMARKS.get(name)
    repository, configuration = benchmark.hub if benchmark and benchmark.hub else (name, None)
    evaluated = [
        EvalResult(
            task_type="text-generation",
            task_name="Language modelling",
            dataset_type=repository,
            dataset_name=name,
            dataset_config=configuration,
            dataset_split={"valid": "validation"}.get(split, split),
            metric_type="perplexity",
            metric_name=f"{split} word-level perplexity{f' ({of})' if of else ''}",
            metric_value=round(score.ppl, 2),
        )
        for split, of, score in scores
    ]
    data = ModelCardData(
        model_name=title,
        eval_results=evaluated,
        library_name="lmbench",
        pipeline_tag="text-generation",
        tags=["language-modeling", "recurrent", "word-level"],
        metrics=["perplexity"],
        language=[benchmark.language] if benchmark else None,
        datasets=[repository] if configuration else None,
    )
    recipe = {key: config[key] for key in RECIPE if key in config}
    # Where the data was on the run's machine is nobody's business.
    recipe["data"] = {k: x for k, x in config["data"].items() if f"data.{k}" not in MACHINE_KEYS}
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(_TEMPLATE.read_text("utf-8"))
    targets = [config["model"][part]["_target_"] for part in ("core", "head")]
    with reading(run_dir / "results.json"):
        card = template.render(
            card_data=data.to_yaml(),
            name=title,
            config=config,
            results=results,
            scores=scores,
            run=run,
            targets=targets,
            about=about.get(name, "Text supplied by the user, under its own licence."),
            foreign=[target for target in targets if not target.startswith("lmbench.")],
            recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        )
    return name, card

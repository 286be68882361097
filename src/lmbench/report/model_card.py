"""The README of an exported model: what it is, what it scored, how it was trained and is used.

In the form of the Hugging Face hub's model cards: a head in YAML, and text in Markdown.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmbench.errors import UserError
from lmbench.report.scores import MeasuredScore, measured_scores, told_in_part
from lmbench.report.summary import epochs_text
from lmbench.run.config import OF_THE_MACHINE

RECIPE = ("seed", "data", "model", "batching", "loss", "optimizer", "scheduler", "trainer")
RECIPE += ("callbacks", "evaluation", "float32_matmul_precision")

DATA_SETS = {
    "wikitext2": (
        "WikiText-2 (Merity et al. 2016, arXiv 1609.07843): good and featured articles of the "
        "English Wikipedia, published under the Creative Commons Attribution-ShareAlike licence "
        "(CC BY-SA)."
    ),
    "penn_treebank": (
        "The Penn Treebank as Mikolov et al. 2010 prepared it: Wall Street Journal text of 1989. "
        "Its text is licensed by the Linguistic Data Consortium, and not free."
    ),
    "synthetic": (
        "lmbench's embedded corpus: text drawn from a hidden Markov grammar. Its words are "
        "numbered, and mean nothing; it serves to calibrate models."
    ),
    "text": "A text of the user's own. What may be done with it, and with the model, they know.",
}


def model_card(run_dir: Path, config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """The model card of a run.

    Args:
        run_dir: The run's directory, perhaps with ``evaluation-*.json`` of lmbench-evaluate.
        config: The run's config, in plain values.
        results: Its ``results.json``.

    Raises:
        UserError: One of the files is damaged.
    """
    scores = measured_scores(run_dir, results)
    try:
        name = results["data"]["name"]
        core, head = (config["model"][part]["_target_"] for part in ("core", "head"))
        sections = [
            f"---\n{_yaml(_front_matter(results, scores))}---",
            f"# {results['model']} on {name}",
            f"A recurrent language model over words, trained with lmbench "
            f"{results['lmbench_version']}: {results['num_parameters']:,} parameters, "
            f"{results['data']['vocabulary_size']:,} words, core `{core}`, head `{head}`, "
            f"{'tied' if config['model']['tied'] else 'untied'} weights.",
            "## Results",
            _table(scores),
            " ".join(_about_scores(results, scores)),
            "## Use",
            _use([target for target in (core, head) if not target.startswith("lmbench.")]),
            "## Training data",
            DATA_SETS.get(name, DATA_SETS["text"]),
            _counts(results["data"]),
            "## Recipe",
            _recipe(config, results),
            "## Limitations",
            _limitations(results["data"]),
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        path = run_dir / "results.json"
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}.") from error
    return "\n\n".join(sections) + "\n"


def _yaml(values: object) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _front_matter(results: Mapping[str, Any], scores: Sequence[MeasuredScore]) -> dict[str, Any]:
    name = results["data"]["name"]
    dataset, about = {"type": name, "name": name}, {}
    if name == "wikitext2":
        dataset |= {"type": "Salesforce/wikitext", "config": "wikitext-2-v1"}
        about["datasets"] = ["Salesforce/wikitext"]
    if name in ("wikitext2", "penn_treebank"):
        about["language"] = ["en"]
    entries = []
    for split, evaluation, score, _ in scores:
        kind = f" ({evaluation})" if evaluation else ""
        metric = {"type": "perplexity", "value": round(score.ppl, 2)}
        metric["name"] = f"{split} perplexity by word{kind}"
        of_hub = {"valid": "validation"}.get(split, split)
        entries.append(
            {
                "task": {"type": "text-generation", "name": "Language modelling"},
                "dataset": dataset | {"split": of_hub},
                "metrics": [metric],
            }
        )
    return {
        "library_name": "lmbench",
        "pipeline_tag": "text-generation",
        "tags": ["language-modeling", "lstm", "word-level"],
        **about,
        "metrics": ["perplexity"],
        "model-index": [{"name": f"{results['model']} on {name}", "results": entries}],
    }


def _table(scores: Sequence[MeasuredScore]) -> str:
    rows = ["| split | evaluation | perplexity | nats per token | tokens |", "|---" * 5 + "|"]
    rows += [
        f"| {split} | {evaluation or 'of the training run'} | {score.ppl:.2f} | "
        f"{score.nll:.4f} | {score.num_tokens:,} |"
        for split, evaluation, score, _ in scores
    ]
    return "\n".join(rows)


def _about_scores(results: Mapping[str, Any], scores: Sequence[MeasuredScore]) -> Iterator[str]:
    evaluation, floor = results["evaluation"], results["data"].get("perplexity_floor")
    columns = evaluation["columns"]
    if evaluation.get("protocol") == "awd_lstm_lm":
        yield (
            "The run's own evaluation is that of salesforce/awd-lstm-lm: valid in 10 columns "
            "without the targets between them, test in one, and sums divided by the tokens read."
        )
    elif columns == 1:
        yield "The run's own evaluation reads a split in one piece and scores each target once."
    else:
        if isinstance(columns, dict):  # split → number
            columns = " and ".join(f"{number} ({split})" for split, number in columns.items())
        yield (
            f"The run's own evaluation reads a split in {columns} columns side by side, each from "
            f"{evaluation['burn_in']} tokens before the first target that it scores, and scores "
            "each target once."
        )
    for split, _, score, _ in scores:
        part = told_in_part(score, split, results["data"]["num_tokens"][split])
        if part:
            yield f"{part.capitalize()} were scored, so that this number compares with no other."
    tuned = [one.evaluation for one in scores if one.split == "valid" and one.is_tuned]
    if tuned:
        yield (
            f"The settings of {' and '.join(tuned)} were tuned on valid: of these, only the test "
            "figures are fair."
        )
    yield (
        f"One run, seed {results['seed']}; the validation split chose the checkpoint, that of "
        f"epoch {results['best_epoch']}. Perplexities compare only with those of the same text, "
        "split into the same words, with the same vocabulary."
    )
    if floor:
        yield (
            "The corpus's true distribution, which no model can beat but by chance, has a "
            f"perplexity of {floor['valid']:.2f} on valid and {floor['test']:.2f} on test."
        )


def _use(of_others: Sequence[str]) -> str:
    text = """With lmbench installed, in Python and in a shell:

```python
import lmbench

model, vocabulary = lmbench.load("PATH_OF_THIS_FOLDER")
```

    lmbench-generate PATH_OF_THIS_FOLDER --prompt "some words"

The model is plain PyTorch: `output, _, state = model(tokens, state)` reads a window of word ids
`(T, B)`, and `model.head.log_probs(output)` gives the log-probabilities of the next words. Loading
runs nothing that this folder holds."""
    if of_others:
        text += f""" Parts of the model are not lmbench's: install them, and set
`LMBENCH_ALLOWED_TARGETS={",".join(of_others)}`."""
    return text


def _counts(data: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count:,} in {split}" for split, count in data["num_tokens"].items())
    return f"Tokens: {counts}. SHA-256 of words and ids: `{data['sha256']}`."


def _recipe(config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    recipe = {key: config[key] for key in RECIPE if key in config}
    # Where it lay on the machine of the run is nobody's business.
    recipe["data"] = {k: x for k, x in config["data"].items() if f"data.{k}" not in OF_THE_MACHINE}
    train, environment = results["train"], results["environment"]
    sentences = [
        f"{epochs_text(train['epochs'])} epochs, {train['steps']:,} steps, in precision "
        f"{results['precision']}, with torch {environment['torch']} on {environment['device']}."
    ]
    if results.get("init_from"):
        sentences.append("Training started from the weights of another run.")
    sentences.append("The config of `lmbench-train`:")
    return f"{' '.join(sentences)}\n\n```yaml\n{_yaml(recipe)}```"


def _limitations(data: Mapping[str, Any]) -> str:
    return f"""- It knows {data["vocabulary_size"]:,} words, as white space separates them in its
  training text; any other word is `<unk>` to it, if it has that.
- What it writes resembles its training text. It is not true, not safe and no answer to anything,
  and it repeats what is wrong or offensive in that text.
- It was trained on {data["num_tokens"]["train"]:,} tokens of one kind of text, and is much worse on
  any other."""

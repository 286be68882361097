"""Surprisal and entropy of the words of a text.

Shape letters: T time steps, B columns, H hidden, N targets, M of a batch, S sentences.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from lmbench.data.columns import IGNORE_INDEX, EvaluationSettings
from lmbench.errors import UserError
from lmbench.evaluation.progress import OnWindow
from lmbench.model import LanguageModel

LOG_PROBS_BYTES = 16 * 2**20
"""Size of the log-probabilities that are held at a time."""

BATCH_TOKENS = 4096
"""The most tokens in sentences that are read side by side, padding included."""


class WordScores(NamedTuple):
    """A model's scores for targets, in bits."""

    surprisal: Float[np.ndarray, " N"]
    """-log2 of the target's probability."""
    entropy: Float[np.ndarray, " N"]
    """Entropy of the distribution that predicted the target."""


def score_sentences(
    model: LanguageModel,
    sentences: Sequence[Int32[np.ndarray, " _"]],
    on_window: OnWindow = lambda num_scored, nats: None,
) -> WordScores:
    """Scores sentences, each from a zero state.

    Args:
        model: The model, in evaluation mode.
        sentences: Ids of each; the first id is only context, not a target.
        on_window: Called after each batch.

    Returns:
        The scores of all targets, in the order of the text.
    """
    scores = np.empty((2, sum(len(ids) - 1 for ids in sentences)))
    for places, outputs, targets in read_sentences(model, sentences):
        scores[:, places] = part = score_outputs(model, outputs, targets)
        on_window(len(places), float(part[0].sum()) * math.log(2))
    return WordScores(*scores)


def sentence_surprisals(
    model: LanguageModel,
    sentences: Sequence[Int32[np.ndarray, " _"]],
    on_window: OnWindow = lambda num_scored, nats: None,
) -> Float[np.ndarray, " S"]:
    """Surprisal of each sentence, in bits; several times as fast as :func:`score_sentences`."""
    lengths = [len(ids) - 1 for ids in sentences]
    nats = np.zeros(sum(lengths))
    for places, outputs, targets in read_sentences(model, sentences):
        with torch.no_grad():
            losses = model.head.loss(outputs, targets.to(outputs.device), reduction="none")
        nats[places] = losses.double().cpu().numpy()
        require_numbers(nats[places])
        on_window(len(places), float(nats[places].sum()))
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(sentence, weights=nats, minlength=len(lengths)) / math.log(2)


def read_sentences(
    model: LanguageModel, sentences: Sequence[Int32[np.ndarray, " _"]]
) -> Iterator[tuple[Int[np.ndarray, " M"], Float[Tensor, "M H"], Int[Tensor, " M"]]]:
    """Reads sentences, each from a zero state; those of similar length side by side.

    Yields:
        For each batch: places of the targets in the text, the outputs that predict them, and the
        targets.
    """
    lengths = np.array([len(ids) - 1 for ids in sentences], int)
    starts = lengths.cumsum() - lengths
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        num_steps = int(lengths[order[0]])
        batch, order = np.split(order, [max(1, BATCH_TOKENS // num_steps)])
        state = None
        for start in range(0, num_steps, BATCH_TOKENS):  # a sentence can be a whole text
            steps = np.arange(start, min(start + BATCH_TOKENS, num_steps))[:, None]
            padded = np.zeros((len(steps) + 1, len(batch)), np.int64)
            for column, index in enumerate(batch):
                ids = sentences[index][start : start + len(steps) + 1]
                padded[: len(ids), column] = ids
            tokens = torch.from_numpy(padded)
            with torch.no_grad():
                output, _, state = model(tokens[:-1].to(model.device), state)  # (T, B, H)
            inside = steps < lengths[batch]
            mask = torch.from_numpy(inside)
            yield (starts[batch] + steps)[inside], output[mask.to(output.device)], tokens[1:][mask]


def score_stream(
    model: LanguageModel,
    ids: Int32[np.ndarray, " T"],
    on_window: OnWindow = lambda num_scored, nats: None,
) -> WordScores:
    """Scores a text in one stream, as the standard evaluation reads a split.

    Entropies are computed window by window: the outputs of a whole text would fill the memory.

    Args:
        model: The model, in evaluation mode.
        ids: ``(N + 1,)``; the first id is only context, not a target.
        on_window: Called after each window.
    """
    settings = EvaluationSettings()
    columns = settings.arrange(ids, "test")
    scores, state = np.empty((2, len(ids) - 1)), None
    for rows in columns.windows(settings.window):
        tokens, targets = columns.read(*rows)
        here = targets != IGNORE_INDEX
        with torch.no_grad():
            output, _, state = model(tokens.to(model.device), state)
        places = columns.places(*rows)[here.numpy()]
        part = score_outputs(model, output[here.to(output.device)], targets[here])
        scores[:, places] = part
        on_window(len(places), float(part[0].sum()) * math.log(2))
    return WordScores(*scores)


def score_outputs(
    model: LanguageModel, outputs: Float[Tensor, "N H"], targets: Int[Tensor, " N"]
) -> Float[np.ndarray, "2 N"]:
    """Surprisal and entropy of targets, in bits, from the outputs that predict them."""
    nats = in_parts(model, outputs, targets, model.head.surprisal_and_entropy)
    require_numbers(nats)
    return nats / math.log(2)


def in_parts(
    model: LanguageModel,
    outputs: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Float[np.ndarray, "2 N"]:
    """Two scores of each target, with the distributions of a part of them at a time in memory."""
    size = max(1, LOG_PROBS_BYTES // (4 * model.head.vocabulary_size))
    parts = zip(outputs.split(size), targets.to(outputs.device).split(size), strict=True)
    with torch.no_grad():
        scores = [torch.stack(score(*part)) for part in parts]
    return torch.cat(scores, 1).double().cpu().numpy()


def require_numbers(values: Float[np.ndarray, "*N"]) -> None:
    """Refuses what a model makes of a text if any of it is nan or infinite.

    Raises:
        UserError: It is.
    """
    if not np.isfinite(values).all():
        raise UserError(
            "The model's probabilities are not numbers: it has diverged, or its file is damaged."
        )

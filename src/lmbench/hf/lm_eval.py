"""A model for lm-evaluation-harness: ``pip install -e '.[hf]' lm_eval`` in a checkout.

    python -m lmbench.hf.lm_eval --model lmbench --model_args path=DIR --tasks blimp

is the harness's own command, with lmbench's models registered. In Python, pass ``LMBench(DIR)`` to
``lm_eval.simple_evaluate`` as its ``model``.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from torch import Tensor

import lmbench
from lmbench.data.tokenizer.choice import cut_continuation, tokenizer_for
from lmbench.evaluation.surprisal import in_parts, read_sentences

log = logging.getLogger(__name__)


@register_model("lmbench")
class LMBench(LM):
    """A run or an export; each text is read from a zero state, after an ``<eos>``.

    Args:
        path: See :func:`lmbench.load`.
        tokenizer: Name of what cuts texts; see
            :func:`lmbench.data.tokenizer.choice.tokenizer_for`.
        device: See :func:`lmbench.load`; None for a CUDA device if there is one.
        batch_size: Does nothing: texts of similar length are read side by side.
        max_batch_size: Does nothing either.

    Raises:
        lmbench.errors.UserError: See :func:`lmbench.load`.
        ValueError: The tokenizer is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: str = "auto",
        device: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        if device == "cuda:0" and not torch.cuda.is_available():  # the harness's default
            log.warning("There is no CUDA device: lmbench reads on the CPU.")
            device = "cpu"
        self.model, self.vocabulary = lmbench.load(path, device=device or "auto")
        self.model.float()
        self.cutter = tokenizer_for(self.vocabulary, tokenizer)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Natural log-probability of each continuation, and whether each word is the likeliest."""
        sentences, lengths = [], []
        for request in requests:
            context, words = cut_continuation(self.cutter, *request.args)
            sentences.append(self.vocabulary.encode([self.cutter.eos, *context, *words]))
            lengths.append(len(words))
        return self._scores(sentences, lengths)

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Natural log-probability of each text."""
        words = [self.cutter.cut(request.args[0]) for request in requests]
        sentences = [self.vocabulary.encode([self.cutter.eos, *text]) for text in words]
        return [log_prob for log_prob, _ in self._scores(sentences, list(map(len, words)))]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Generation is not supported.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("lmbench scores texts here; lmbench-generate continues them.")

    def _scores(
        self, sentences: Sequence[np.ndarray], lengths: Sequence[int]
    ) -> list[tuple[float, bool]]:
        """Scores of the last words of each sentence, as many as ``lengths`` says."""

        def score(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = self.model.head.log_probs(outputs)
            is_likeliest = log_probs.argmax(1) == targets
            return log_probs.gather(1, targets[:, None])[:, 0], is_likeliest.to(log_probs.dtype)

        ends = np.cumsum([len(ids) - 1 for ids in sentences], dtype=int)
        scores = np.empty((2, ends[-1] if len(ends) else 0))
        for places, outputs, targets in read_sentences(self.model, sentences):
            scores[:, places] = in_parts(self.model, outputs, targets, score)
        last = [scores[:, end - size : end] for end, size in zip(ends, lengths, strict=True)]
        return [(float(log_probs.sum()), bool(likeliest.all())) for log_probs, likeliest in last]


def main() -> None:
    """Entry point: the command of lm-evaluation-harness."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()


if __name__ == "__main__":
    main()

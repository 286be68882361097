"""A model and its words with the interfaces of Hugging Face's transformers.

For tools that expect these, such as minicons. After ``pip install -e '.[hf]' minicons`` in a
checkout:

    model, tokenizer = lmbench.hf.load(DIR)
    scorer = IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    scorer.token_score("The game was played .", surprisal=True, base_two=True, bos_token=True)

Shape letters: B texts, T words, V vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

try:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizer
    from transformers.modeling_outputs import CausalLMOutput
except ImportError as error:
    raise ImportError(
        "lmbench.hf needs transformers: pip install -e '.[hf]' in lmbench's checkout"
    ) from error

import lmbench
from lmbench.data.tokenizer.choice import tokenizer_for
from lmbench.data.vocabulary import Vocabulary
from lmbench.model import LanguageModel

__all__ = ["CausalLM", "WordTokenizer", "load"]  # hf.lm_eval is for another tool

PAD = "<pad>"
"""The padding token; its id follows those of all words, and no model reads it."""


def load(
    path: str | Path, *, tokenizer: str | None = None, device: str | torch.device = "cpu"
) -> tuple["CausalLM", "WordTokenizer"]:
    """A run or an export as a causal language model and its tokenizer.

    Args:
        path: See :func:`lmbench.load`.
        tokenizer: Name of what cuts texts; see
            :func:`lmbench.data.tokenizer.choice.tokenizer_for`.
        device: See :func:`lmbench.load`.

    Raises:
        lmbench.errors.UserError: See :func:`lmbench.load`.
        ValueError: The tokenizer is unknown.
    """
    model, vocabulary = lmbench.load(path, device=device)
    return CausalLM(model.float()), WordTokenizer(vocabulary, tokenizer)


class CausalLM(PreTrainedModel):
    """Gives logits of each next word; each text is read from a zero state, in float32.

    Args:
        model: The model, in evaluation mode.
    """

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(PretrainedConfig.from_dict({"vocab_size": model.head.vocabulary_size}))
        self.model = model
        self.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: None = None,
        **unused: Any,
    ) -> CausalLMOutput:
        """Reads texts side by side.

        Args:
            input_ids: ``(B, T)``, padded on either side.
            attention_mask: ``(B, T)``, 0 where a text is padded.
            labels: ``(B, T)``, for the mean nats per word; −100 for those that do not count. Label
                t is predicted by the words before t.
            past_key_values: Not supported.
            unused: Other arguments that tools pass to transformers, such as ``use_cache``.

        Returns:
            ``logits``, ``(B, T, V)``, which are log-probabilities; ``loss`` if there are labels.

        Raises:
            ValueError: There are past key values: a recurrent model has none.
        """
        if past_key_values is not None:
            raise ValueError("past_key_values: a recurrent model has none; pass whole texts")
        num_words = self.model.head.vocabulary_size
        ids = torch.where(input_ids < num_words, input_ids, 0)
        steps = torch.arange(ids.shape[1], device=ids.device)
        start = torch.zeros_like(ids[:, :1])
        if attention_mask is not None:  # padding on the left is moved to the right
            start = attention_mask.long().argmax(dim=1, keepdim=True)
        ids = ids.gather(1, (steps + start) % len(steps))
        log_probs = self.model.head.log_probs(self.model(ids.T).output).transpose(0, 1)
        back = ((steps - start) % len(steps))[..., None].expand_as(log_probs)
        log_probs = log_probs.gather(1, back) if start.any() else log_probs
        loss = None
        if labels is not None:
            loss = functional.nll_loss(log_probs[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=log_probs)


class WordTokenizer(PreTrainedTokenizer):
    """Splits texts into the words of a vocabulary, as lmbench's commands do.

    A line end becomes ``<eos>``, which is also what precedes a text: tools call that ``bos``.

    Args:
        vocabulary: The words.
        tokenizer: See :func:`load`.

    Raises:
        ValueError: The tokenizer is unknown.
    """

    def __init__(self, vocabulary: Vocabulary, tokenizer: str | None = None) -> None:
        self.cutter = tokenizer_for(vocabulary, tokenizer)
        self.vocabulary = vocabulary
        super().__init__(
            bos_token=self.cutter.eos,
            eos_token=self.cutter.eos,
            unk_token=None if vocabulary.unk_id is None else self.cutter.unk,
            pad_token=PAD,
            model_input_names=["input_ids", "attention_mask"],
        )

    @property
    def vocab_size(self) -> int:
        """Number of words, without the padding token."""
        return len(self.vocabulary)

    def get_vocab(self) -> dict[str, int]:
        """Id of each word, and of the padding token."""
        return {**self.vocabulary.ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **unused: Any) -> list[str]:
        return self.cutter.cut(text)

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.vocabulary.encode([token])[0])

    def _convert_id_to_token(self, index: int) -> str:
        return self.vocabulary.words[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The words with spaces between them."""
        return " ".join(tokens)

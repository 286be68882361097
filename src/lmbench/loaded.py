"""A model and its vocabulary: reads texts, scores them and continues them."""

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from lmbench.data.tokenizer.choice import tokenizer_for
from lmbench.data.vocabulary import Vocabulary
from lmbench.evaluation.progress import progress_of
from lmbench.evaluation.text import cut_lines, encode_text, sample_words, score_words
from lmbench.model import LanguageModel

if TYPE_CHECKING:
    import pandas as pd


class Loaded(NamedTuple):
    """A model and its words: reads texts, scores them and continues them.

    A text is split into words as the commands split it, with the word ``<eos>`` at its line ends;
    words outside the vocabulary are read as ``<unk>``. Every method raises
    :class:`lmbench.errors.UserError` if there are such words and the vocabulary has no ``<unk>``.

    Any model and vocabulary will do, such as those trained in Python:
    ``Loaded(model.eval(), corpus.vocabulary)``.
    """

    model: LanguageModel
    """The model, in evaluation mode."""
    vocabulary: Vocabulary
    """Its words."""

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        """Ids of ``<eos>``, which precedes every text, and of the text's words.

        Returns:
            int64 ids, ``(T,)``, on the model's device; ``model(ids[:, None])`` reads them.
        """
        ids, _ = encode_text(text, self.vocabulary)
        return torch.from_numpy(ids).long().to(self.model.device)

    def score(
        self, text: str, *, stream: bool = False, tokenizer: str | None = None
    ) -> "pd.DataFrame":
        """Surprisal and entropy of each word of a text, and of the ``<eos>`` of each line.

        Args:
            text: One sentence per line; a last line without a line end is given one.
            stream: Whether the text is read in one stream, as the standard evaluation reads a
                split. Otherwise each sentence is read by itself, after an ``<eos>``.
            tokenizer: Name of what cuts the text, see
                :func:`lmbench.data.tokenizer.choice.tokenizer_for`.

        Returns:
            The table of :func:`lmbench.evaluation.text.score_words`.

        Raises:
            ValueError: The tokenizer is unknown.
            UserError: The model's probabilities are not numbers.
        """
        cutter = tokenizer_for(self.vocabulary, tokenizer)
        words = cut_lines(text, cutter)
        with progress_of("scoring", len(words)) as on:
            return score_words(
                self.model, self.vocabulary, words, cutter, stream=stream, on_window=on
            )

    def generate(
        self,
        prompt: str = "",
        *,
        num_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        allow_unk: bool = False,
    ) -> str:
        """Continues a prompt: the text that ``lmbench-generate`` draws with the same options.

        Args:
            prompt: What to continue.
            num_tokens: Words to draw.
            temperature: What log-probabilities are divided by; with 0, each word is the likeliest.
            top_k: Draws only from this many of the most probable words; 0 for all.
            top_p: Draws only from the fewest words whose probabilities sum to this or more.
            seed: The same seed gives the same text; None draws a different one each time.
            allow_unk: Whether ``<unk>`` may be drawn.

        Returns:
            The drawn words, with spaces between them and line ends for ``<eos>``.

        Raises:
            ValueError: ``temperature``, ``top_k`` or ``top_p`` is out of its range.
        """
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        drawn = sample_words(
            self.model,
            self.vocabulary,
            self.encode(prompt),
            generator,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            allow_unk=allow_unk,
        )
        words = list(islice(drawn, num_tokens))
        tokenizer = self.vocabulary.tokenizer
        text = "".join(tokenizer.join(words))  # which ends its last line
        return text if words[-1:] == [tokenizer.eos] else text.removesuffix("\n")

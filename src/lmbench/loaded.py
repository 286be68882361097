"""A model and its vocabulary: reads texts, scores them and continues them."""

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from lmbench.data.vocabulary import EOS, Vocabulary
from lmbench.evaluation.text import encode_text, pieces, read_text, sample_words
from lmbench.model import LanguageModel

if TYPE_CHECKING:
    import pandas as pd


class Loaded(NamedTuple):
    """A model and its words: reads texts, scores them and continues them.

    A text is split into words as the commands split it, with the word ``<eos>`` at its line ends;
    words outside the vocabulary are read as ``<unk>``. Every method raises
    :class:`lmbench.errors.UserError` where there are such words and the vocabulary has no
    ``<unk>``.

    Any model and vocabulary will do, such as those of a training in Python:
    ``Loaded(model.eval(), corpus.vocabulary)``.
    """

    model: LanguageModel
    """The model, in evaluation mode."""
    vocabulary: Vocabulary
    """Its words."""

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        """Ids of ``<eos>``, which stands before every text, and of the text's words.

        Returns:
            int64 ids, ``(T,)``, on the model's device; ``model(ids[:, None])`` reads them.
        """
        ids, _ = encode_text(text, self.vocabulary)
        return torch.from_numpy(ids).long().to(self.model.device)

    def log_probs(self, text: str) -> "pd.Series":
        """Log-probability of each word of a text, given all words before it.

        The words are those that ``lmbench-generate --score`` adds up: the first one follows
        ``<eos>``, and the ``<eos>`` of the last line is among them, with or without its line end.

        Returns:
            Nats, by word, in the order of the text. ``-log_probs / math.log(2)`` is the surprisal
            in bits, and ``math.exp(-log_probs.mean())`` the perplexity.
        """
        import pandas as pd  # slow to import

        reading, _ = read_text(self.model, self.vocabulary, text)
        words = [] if reading is None else self.vocabulary.decode(reading.targets)
        values = [] if reading is None else reading.log_probs.numpy()
        return pd.Series(values, pd.Index(words, dtype="str", name="word"), "float64", "log_prob")

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
            top_k: Draws only from so many most probable words; 0 for all.
            top_p: Draws only from the most probable words, as few as have this probability
                together.
            seed: The same seed gives the same text; None draws another one each time.
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
        text = "".join(pieces(words))  # which ends with a line end for the terminal
        return text if words[-1:] == [EOS] else text.removesuffix("\n")

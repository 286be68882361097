"""Words in lower case."""

from dataclasses import dataclass

from lmbench.data.tokenizer.moses import Moses


@dataclass(frozen=True)
class LowerCase(Moses):
    """Moses's words in lower case: a smaller vocabulary, and fewer ``<unk>``."""

    name = "lower_case"

    def separate(self, text: str) -> str:
        """The text in lower case, with spaces between its words."""
        return super().separate(text).lower()

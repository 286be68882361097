"""What every tokenizer of ``conf/`` must do; a new one is found by itself."""

import numpy as np
import pytest

from lmbench.data.tokenizer.auto import Auto
from lmbench.data.tokenizer.choice import (
    cut_continuation,
    make_tokenizer,
    plain_tokenizer,
    tokenizer_for,
)
from lmbench.data.tokenizer.contract import Tokenizer
from lmbench.data.tokenizer.moses import Moses, Penn
from lmbench.data.tokenizer.words import WhiteSpace
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.run.targets import conf_dir

NAMES = sorted(path.stem for path in (conf_dir() / "data/tokenizer").glob("*.yaml"))
TEXT = "\x85a\u2028b. Mr. Ray isn't.\n\n\"It's\t1,000 red-hot,\" he said  \r\nna日本 <unk> ..."


@pytest.fixture(params=[*NAMES, "moses-de"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make_tokenizer(request.param).fit([TEXT.encode()])


def test_a_saved_tokenizer_is_made_again(tokenizer: Tokenizer):
    assert make_tokenizer(plain_tokenizer(tokenizer)) == tokenizer
    assert isinstance(tokenizer, Tokenizer)


def test_a_text_that_is_joined_has_the_same_pieces(tokenizer: Tokenizer):
    pieces = tokenizer.cut(TEXT)
    assert pieces.count(tokenizer.eos) == TEXT.count("\n")
    assert tokenizer.cut("".join(tokenizer.join(pieces))) == [*pieces, tokenizer.eos]
    assert all(tokenizer.num_characters(piece) > 0 for piece in pieces)


def test_a_corpus_is_cut_like_a_text(tokenizer: Tokenizer):
    """Also by the method that a tokenizer without a faster one inherits."""
    for text in (TEXT, f"{TEXT}\n", "", "\n"):
        pieces = tokenizer.cut(text)
        pieces += [tokenizer.eos] * (text != "" and not text.endswith("\n"))
        for cut_block in (tokenizer.cut_block, lambda x: Tokenizer.cut_block(tokenizer, x)):
            types, places = cut_block(text.encode())
            assert types == list(dict.fromkeys(pieces))
            assert np.array(types, object)[places].tolist() == pieces


def test_tokenizers_by_name_as_in_old_runs():
    expected = {"none": WhiteSpace(), "moses": Moses(), "moses-de": Moses("de"), "penn": Penn()}
    for name, tokenizer in expected.items():
        assert make_tokenizer(name) == tokenizer
        assert tokenizer.name == name
    assert make_tokenizer("moses-en") == Moses()
    for name in ("", "Moses", "none-de", "spacy", None, 5):
        with pytest.raises(ValueError, match=r"^tokenizer must be one of auto, moses, none, penn"):
            make_tokenizer(name)
    for name in ("moses-", "moses-xx"):
        with pytest.raises(ValueError, match=r"^language must be one of "):
            make_tokenizer(name)


def test_a_strangers_class_is_refused():
    for target in ("os.mkdir", "lmbench.data.corpus.load_text", ["os.mkdir"]):
        with pytest.raises(UserError, match=r"^my\.ckpt: data\.tokenizer names .*LMBENCH_ALLOWED"):
            make_tokenizer({"_target_": target}, "my.ckpt")


def test_a_model_reads_texts_as_its_training_text_unless_told_otherwise():
    vocabulary = Vocabulary(("<eos>", "isn", "'t", "A", "."))
    assert tokenizer_for(vocabulary) == WhiteSpace()
    assert tokenizer_for(vocabulary, "penn") == Penn()
    assert tokenizer_for(vocabulary, "auto") == Auto().fit_vocabulary(vocabulary) == Moses()


@pytest.mark.parametrize(
    ("context", "text", "words"),
    [
        ("About 1", ",000 dogs", "@,@ 000 dogs"),  # alone, it would be ",000 dogs"
        ("", "It isn't", "It isn 't"),
        ("The red dog", " ran.", "ran ."),
        ("The red do", "g ran.", "g ran ."),  # "dog" spans the place where they meet
    ],
)
def test_a_text_that_continues_another(context: str, text: str, words: str):
    assert cut_continuation(Moses(), context, text) == (context.split(), words.split())
    assert Moses().cut(",000 dogs") == [",000", "dogs"]

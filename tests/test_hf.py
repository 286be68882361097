"""lmbench's models behind Hugging Face's interfaces, against lmbench's own scores."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from small import change_words

import lmbench
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError

pytestmark = pytest.mark.slow  # transformers takes seconds to import


@pytest.fixture
def hf() -> ModuleType:
    import lmbench.hf

    return lmbench.hf


@pytest.fixture
def run_dir(make_run: Callable[..., Path]) -> Path:
    folder = make_run("model=awd_lstm", "model/head=adaptive_softmax")
    change_words(folder, 1, "<unk>")
    return folder


def test_minicons_gives_the_surprisals_of_score(hf: ModuleType, run_dir: Path):
    from minicons.scorer import IncrementalLMScorer

    loaded = lmbench.load(run_dir)
    words = loaded.vocabulary.words
    sentences = [f"{words[5]} Dog {words[9]}", f"{words[7]} {words[5]} {words[30]} {words[3]} x"]
    model, tokenizer = hf.load(run_dir)
    scorer = IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    found = scorer.token_score(sentences, surprisal=True, base_two=True, bos_token=True)
    for sentence, pairs in zip(sentences, found, strict=True):
        expected = loaded.score(sentence)[:-1]
        assert [word for word, _ in pairs[1:]] == [
            word if word in words else "<unk>" for word in sentence.split()
        ]
        bits = [value for _, value in pairs[1:]]
        np.testing.assert_allclose(bits, expected["surp"], rtol=0, atol=1e-5)
    sums = scorer.sequence_score(sentences, reduction=lambda x: -x.sum().item(), bos_token=True)
    nats = [loaded.score(sentence)["surp"][:-1].sum() * np.log(2) for sentence in sentences]
    np.testing.assert_allclose(sums, nats, rtol=1e-5)


def test_texts_may_be_padded_on_either_side(hf: ModuleType, run_dir: Path):
    model, tokenizer = hf.load(run_dir)
    words = lmbench.load(run_dir).vocabulary.words
    texts = [" ".join(words[5:12]), " ".join(words[20:22]), words[4]]
    read = {}
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        assert batch["input_ids"].shape == (3, 7)
        read[side] = model(**batch).logits
        assert read[side].shape == (3, 7, len(words))
    alone = [model(tokenizer(text, return_tensors="pt")["input_ids"]).logits for text in texts]
    for row, (text, expected) in enumerate(zip(texts, alone, strict=True)):
        length = len(text.split())
        torch.testing.assert_close(read["left"][row, -length:], expected[0])
        torch.testing.assert_close(read["right"][row, :length], expected[0])
    torch.testing.assert_close(alone[0].exp().sum(-1), torch.ones(1, 7))


def test_the_loss_is_the_mean_of_the_words_that_count(hf: ModuleType, run_dir: Path):
    model, tokenizer = hf.load(run_dir)
    loaded = lmbench.load(run_dir)
    words = loaded.vocabulary.words
    text = " ".join(words[5:12])
    ids = tokenizer(f"<eos>{text}", return_tensors="pt")["input_ids"]
    labels = ids.clone()
    labels[0, 3] = -100
    nats = loaded.score(text)["surp"][:-1] * np.log(2)
    assert model(ids, labels=ids).loss.item() == pytest.approx(nats.mean(), rel=1e-5)
    expected = nats.drop(2).mean()
    assert model(ids, labels=labels).loss.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"^past_key_values"):
        model(ids, past_key_values=())


def test_words_are_those_of_the_vocabulary(hf: ModuleType):
    vocabulary = Vocabulary(("<eos>", "<unk>", "isn", "'t", "it", "."))
    raw, like_words = hf.WordTokenizer(vocabulary), hf.WordTokenizer(vocabulary, "auto")
    assert raw.tokenize("it isn't.") == ["it", "isn't."]
    assert like_words("it isn't.\nno")["input_ids"] == [4, 2, 3, 5, 0, 1]
    assert like_words.decode([4, 2, 3]) == "it isn 't"
    assert (raw.vocab_size, len(raw), raw.pad_token_id) == (6, 7, 6)
    assert raw.get_vocab() == {**vocabulary.ids, "<pad>": 6}
    with pytest.raises(ValueError, match="tokenizer must be one of"):
        hf.WordTokenizer(vocabulary, "bert")
    without = hf.WordTokenizer(Vocabulary(("<eos>", "it")))
    with pytest.raises(UserError, match="'dog': not among the 2 words"):
        without("it dog")

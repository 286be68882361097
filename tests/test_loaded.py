"""A model loaded in Python, against the commands and against sums over all possible texts."""

import csv
import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small import exact_log_probs

from lmbench import load
from lmbench.cli import generate, score
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.loaded import Loaded
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax

TEXT = "b <unk> a\n\nc a b dog"
WORDS = ["b", "<unk>", "a", "<eos>", "<eos>", "c", "a", "b", "<unk>", "<eos>"]


@pytest.fixture
def loaded() -> Loaded:
    torch.manual_seed(0)
    vocabulary = Vocabulary(("a", "<eos>", "b", "<unk>", "c"))
    model = LanguageModel(Embedding(5, 4), LSTM(4, 6, 4, 2), Softmax(4, 5)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    return Loaded(model, vocabulary)


def log2_probs(loaded: Loaded, text: str) -> pd.Series:
    """The log-probability of each word after all before it."""
    return -loaded.score(text, stream=True)["surp"]


def test_each_word_has_its_surprisal_after_all_before_it(loaded: Loaded):
    ids = np.array([loaded.vocabulary.ids[word] for word in ["<eos>", *WORDS]])
    found = log2_probs(loaded, TEXT)
    expected = exact_log_probs(loaded.model, ids) / math.log(2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_sentence_knows_nothing_of_those_before_it(loaded: Loaded):
    table = loaded.score(TEXT)
    assert table["word"].tolist() == [*WORDS[:8], "dog", "<eos>"]
    assert table["sentid"].tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert table["sentpos"].tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4]
    assert table["wlen"].tolist() == [1, 5, 1, 5, 5, 1, 1, 1, 3, 5]
    assert loaded.score("red @-@ hot", tokenizer="none")["wlen"].tolist()[:3] == [3, 1, 3]
    assert table.index[table["unknown"]].tolist() == [8]
    for number, sentence in table.groupby("sentid"):
        alone = loaded.score(TEXT.split("\n")[number] or "\n")
        columns = ["word", "sentpos", "unknown"]
        assert sentence[columns].values.tolist() == alone[columns].values.tolist()
        for column in ("surp", "entropy", "entred"):
            np.testing.assert_allclose(sentence[column], alone[column], rtol=1e-5, atol=1e-6)
    streamed = loaded.score(TEXT, stream=True)
    assert streamed["entropy"][0] == pytest.approx(table["entropy"][0])
    assert abs(streamed["surp"] - table["surp"])[4:].min() > 1e-4


def test_the_entropy_falls_by_the_reduction_or_rises(loaded: Loaded):
    table = loaded.score(TEXT)
    for _, sentence in table.groupby("sentid"):
        entropy, reduction = sentence["entropy"].tolist(), sentence["entred"].tolist()
        assert reduction[0] == 0
        for place in range(1, len(entropy)):
            assert reduction[place] == max(0, entropy[place - 1] - entropy[place])
    assert (table["entred"] > 0).sum() > 1


def test_a_final_line_end_adds_no_words(loaded: Loaded):
    for text in ("a b\n", "a b"):
        assert loaded.score(text)["word"].tolist() == ["a", "b", "<eos>"]
    for stream in (False, True):
        empty = loaded.score("", stream=stream)
        assert len(empty) == 0
        assert empty["surp"].sum() == 0


def test_encoded_texts_are_what_the_model_reads(loaded: Loaded):
    ids = loaded.encode("b dog\nc")
    assert ids.tolist() == [1, 2, 3, 1, 4]
    assert ids.dtype == torch.int64
    with torch.no_grad():
        log_probs = loaded.model.head.log_probs(loaded.model(ids[:, None]).output)[:, 0]
    chosen = log_probs[:-1].gather(1, ids[1:, None])[:, 0]
    found = log2_probs(loaded, "b dog\nc")[:-1] * math.log(2)
    np.testing.assert_allclose(found, chosen, rtol=1e-5)


def test_it_gives_the_same_as_the_commands(
    make_run: Callable[..., Path],
    tmp_path: Path,
    matmul_precision: None,
    capsys: pytest.CaptureFixture,
):
    run_dir, text_path = make_run(), tmp_path / "text.txt"
    loaded = load(run_dir)
    words = loaded.vocabulary.words

    prompt = f"{words[5]} {words[9]}"
    options = {"num_tokens": 40, "temperature": 1.5, "top_k": 30, "top_p": 0.9}
    as_typed = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    for seed in (1, 2):
        typed_options = [f"--prompt={prompt}", f"--seed={seed}", *as_typed]
        generate.generate(generate.parse_options([str(run_dir), *typed_options]))
        typed = capsys.readouterr().out
        drawn = loaded.generate(prompt, seed=seed, **options)
        assert typed.removesuffix("\n").endswith(drawn.removesuffix("\n"))
        assert len(drawn.replace("\n", " <eos> ").split()) == 40
        text_path.write_text(drawn, "utf-8")
        score.score(score.parse_options([str(run_dir), str(text_path), "--eos"]))
        table = pd.read_table(StringIO(capsys.readouterr().out), quoting=csv.QUOTE_NONE)
        expected = loaded.score(drawn)
        np.testing.assert_allclose(table["surp"], expected["surp"], rtol=1e-8)
        assert table["word"].tolist() == expected["word"].tolist()


def test_a_text_can_be_continued_where_it_ends(loaded: Loaded):
    """Word by word, it gives the same as all at once: no line end is added."""
    at_once = loaded.generate("b", num_tokens=30, temperature=0)
    text, separator = "b", " "
    for _ in range(30):
        word = loaded.generate(text, num_tokens=1, temperature=0)
        text += word if word == "\n" else separator + word
        separator = "" if word == "\n" else " "
    assert text.removeprefix("b").lstrip(" ") == at_once
    assert loaded.generate(num_tokens=0) == ""


def test_seeds_and_unknown_words(loaded: Loaded):
    texts = {loaded.generate(num_tokens=50) for _ in range(3)}
    assert len(texts) == 3
    assert "<unk>" not in " ".join(texts)
    assert "<unk>" in loaded.generate(num_tokens=200, seed=1, temperature=9, allow_unk=True)
    without = Loaded(loaded.model, Vocabulary(("a", "<eos>", "b", "d", "c")))
    for method in (without.encode, without.score, without.generate):
        with pytest.raises(UserError, match="'dog'"):
            method("a dog")


@pytest.mark.parametrize(
    "option", [{"top_p": 90}, {"top_p": 0.0}, {"temperature": -1}, {"top_k": -1}]
)
def test_options_out_of_their_range_are_refused(loaded: Loaded, option: dict):
    with pytest.raises(ValueError, match=f"^{next(iter(option))} must be"):
        loaded.generate(**option)

"""Benchmarks from folders and from the hub, whose answers are made up here."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import datasets
import huggingface_hub
import pytest
from texts import write_splits

from lmbench.data.benchmarks import BENCHMARKS, Benchmark, load_benchmark
from lmbench.data.corpus import load_text
from lmbench.errors import UserError

ROWS = {
    "train": ["", " = Title = \n", "", " a b <unk> \n"],
    "valid": ["", " a c \n"],
    "test": [" b \n"],
}
TEXTS = {split: "".join(row or " \n" for row in rows) for split, rows in ROWS.items()}
COUNTS = {"train": 10, "valid": 4, "test": 2, "types": 6}
NAMES_ON_THE_HUB = {"train": "train", "valid": "validation", "test": "test"}


def as_dataset(rows: dict[str, list[str]]) -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {NAMES_ON_THE_HUB[s]: datasets.Dataset.from_dict({"text": r}) for s, r in rows.items()}
    )


@pytest.fixture
def hub(monkeypatch):
    """Stands in for ``datasets.load_dataset``: its answer can be set, and its calls are counted."""
    monkeypatch.delenv("LMBENCH_DATA_DIR", raising=False)
    load_dataset = Mock(return_value=as_dataset(ROWS))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", Mock())
    tiny = Benchmark("Tiny", "tiny-1", COUNTS, about="", hub=("somebody/tiny", "v1"))
    monkeypatch.setitem(BENCHMARKS, "tiny", tiny)
    return load_dataset


def test_hub_folder_and_data_dir_give_the_same_corpus(hub, tmp_path, monkeypatch):
    for _ in range(2):
        from_hub = load_benchmark("tiny", cache_dir=tmp_path / "cache")
        hub.assert_called_once_with("somebody/tiny", "v1")
    assert from_hub.name == "tiny"
    assert {**from_hub.num_tokens, "types": len(from_hub.vocabulary)} == COUNTS
    folder = write_splits(tmp_path / "tiny-1", TEXTS, "wiki.{}.tokens")
    text = load_text(folder, cache_dir=tmp_path / "cache")
    by_path = load_benchmark("tiny", folder, cache_dir=tmp_path / "cache")
    monkeypatch.setenv("LMBENCH_DATA_DIR", str(tmp_path))
    by_variable = load_benchmark("tiny", cache_dir=tmp_path / "other cache")
    assert from_hub.sha256 == text.sha256 == by_path.sha256 == by_variable.sha256
    assert by_path.name == by_variable.name == "tiny"


def test_wrong_rows_are_not_cached(hub, tmp_path):
    hub.return_value = as_dataset({**ROWS, "test": [" b b \n"]})
    with pytest.raises(UserError, match=r"^somebody/tiny .* is not Tiny .*it has 10 / 4 / 3 token"):
        load_benchmark("tiny", cache_dir=tmp_path)
    hub.return_value = as_dataset(ROWS)
    assert load_benchmark("tiny", cache_dir=tmp_path).num_tokens["test"] == 2


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("wikitext2", "2,088,628 / 217,646 / 245,569 tokens and 33,278 types"),
        ("wikitext103", "103,227,021 / 217,646 / 245,569 tokens and 267,735 types"),
        ("penn_treebank", "929,589 / 73,760 / 82,430 tokens and 10,000 types"),
    ],
)
def test_another_corpus_is_refused(name, counts, tmp_path):
    folder = write_splits(tmp_path / "text", TEXTS)
    with pytest.raises(UserError, match=rf"^{folder} .* 10 / 4 / 2 tokens .* {counts}.*data=text"):
        load_benchmark(name, folder, cache_dir=tmp_path / "cache")


def test_a_corpus_that_cannot_be_found_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LMBENCH_DATA_DIR", str(tmp_path))
    with pytest.raises(
        UserError, match=r"Penn Treebank is not free .*data\.path=.*-treebank/.*ptb\.\*"
    ):
        load_benchmark("penn_treebank", cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"^name must be .*wikitext2.* not 'wikitext1'"):
        load_benchmark("wikitext1", cache_dir=tmp_path)
    monkeypatch.setenv("LMBENCH_DATA_DIR", str(tmp_path / "typo"))
    with pytest.raises(UserError, match=r"typo/wikitext-2 cannot be read: No such file"):
        load_benchmark("wikitext2", cache_dir=tmp_path)


def test_the_genuine_wikitext2(wikitext2_dir, hub, tmp_path):
    corpus = load_benchmark("wikitext2", wikitext2_dir, cache_dir=tmp_path)
    assert corpus.name == "wikitext2"
    assert corpus.sha256 == "47c6c0f9cd73207f7ab2e1a60bbcef72f55d560312a9258bd49f38529e2da4b3"
    texts = {split: (wikitext2_dir / f"{split}.txt").read_bytes().decode() for split in ROWS}
    words = texts["valid"].replace("\n", " <eos> ").split()
    assert corpus.vocabulary.decode(corpus.valid) == words
    # On the hub blank lines have lost their white space and line feed.
    lines = {split: text.splitlines(keepends=True) for split, text in texts.items()}
    rows = {split: [line if line.strip() else "" for line in ls] for split, ls in lines.items()}
    hub.return_value = as_dataset(rows)
    assert load_benchmark("wikitext2", cache_dir=tmp_path).sha256 == corpus.sha256
    hub.assert_called_once_with("Salesforce/wikitext", "wikitext-2-v1")


def test_a_hub_that_does_not_answer_is_asked_once(hub, tmp_path, monkeypatch):
    asked = Mock(side_effect=OSError("no route"))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", asked)
    offline = []
    hub.side_effect = lambda *_: offline.append(datasets.config.HF_HUB_OFFLINE) or as_dataset(ROWS)
    load_benchmark("tiny", cache_dir=tmp_path)
    assert asked.call_args.args == ("somebody/tiny",)
    assert [*offline, datasets.config.HF_HUB_OFFLINE] == [True, False]


LOAD = """
import sys
from lmbench.data.benchmarks import load_benchmark
from lmbench.errors import UserError

try:
    print(load_benchmark("wikitext2", cache_dir=sys.argv[1]))
except UserError as error:
    print(error)
"""


def load_without_hub(tmp_path: Path) -> str:
    """What another process prints, with its own cache of the datasets library and no hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LMBENCH_"))}
    kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
    with socket.create_server(("127.0.0.1", 0)) as server:  # a port that nobody listens on
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    environment = {**kept, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint}
    command = [sys.executable, "-c", LOAD, str(tmp_path / "cache")]
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    ).stdout.rstrip("\n")


def test_hub_out_of_reach(tmp_path):
    message = load_without_hub(tmp_path)
    assert "\n" not in message
    for part in ("WikiText-2", "hub", "refused", "data.path=", "LMBENCH_DATA_DIR", "synthetic"):
        assert part in message
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_the_cache_of_the_datasets_library_is_used_without_the_hub(tmp_path):
    folder = tmp_path / "hf/datasets/Salesforce___wikitext/wikitext-2-v1/0.0.0/0123456789abcdef"
    folder.mkdir(parents=True)
    rows = as_dataset(ROWS)
    info = datasets.DatasetInfo(
        features=rows["train"].features,
        dataset_name="wikitext",
        config_name="wikitext-2-v1",
        version="0.0.0",
        splits=datasets.SplitDict(),
    )
    for name, split in rows.items():
        path = str(folder / f"wikitext-{name}.arrow")
        with datasets.arrow_writer.ArrowWriter(path=path, features=split.features) as writer:
            writer.write_table(split.data.table)
            writer.finalize()
        info.splits[name] = datasets.SplitInfo(
            name=name, num_examples=len(split), num_bytes=1, dataset_name="wikitext"
        )
    info.write_to_directory(str(folder))
    assert "it has 10 / 4 / 2 tokens and 6 types" in load_without_hub(tmp_path)

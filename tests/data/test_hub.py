import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from lmbench.data import hub, published
from lmbench.data.corpus import load_text
from lmbench.data.published import load_wikitext2
from lmbench.errors import UserError

WIKITEXT2 = Path(__file__).parents[2] / ".." / "shared" / "data" / "wikitext-2"
ROWS = {"train": ["", " = Title = \n", "", " a b <unk> \n"], "valid": ["", " a c \n"]}
ROWS["test"] = [" b \n"]


def as_rows(text: str) -> list[str]:
    """Lines as the hub has them: blank ones lose their white space and line feed."""
    return [line if line.strip() else "" for line in text.splitlines(keepends=True)]


def as_dataset(rows: dict[str, list[str]]) -> datasets.DatasetDict:
    hub_name = {"train": "train", "valid": "validation", "test": "test"}
    return datasets.DatasetDict(
        {hub_name[split]: datasets.Dataset.from_dict({"text": r}) for split, r in rows.items()}
    )


@pytest.fixture
def hub_has(monkeypatch):
    """Puts rows in place of what the datasets library would load."""
    monkeypatch.delenv("LMBENCH_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def answer(rows):
        def load_dataset(repository, configuration):
            assert (repository, configuration) == ("Salesforce/wikitext", "wikitext-2-v1")
            if rows is None:
                raise AssertionError("asked the hub again")
            return as_dataset(rows)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return answer


def test_rows_keep_blank_lines():
    assert hub.join_rows(ROWS["train"]) == b"\n = Title = \n\n a b <unk> \n"
    assert hub.join_rows([]) == b""


def test_rows_and_files_give_the_same_corpus(hub_has, tmp_path, monkeypatch):
    counts = {"train": 10, "valid": 4, "test": 2, "types": 6}
    monkeypatch.setattr(published, "WIKITEXT2_COUNTS", counts)
    hub_has(ROWS)
    from_hub = load_wikitext2(cache_dir=tmp_path / "cache")
    for split, rows in ROWS.items():
        text = "".join(row or " \n" for row in rows)
        (tmp_path / f"wiki.{split}.tokens").write_text(text)
    from_files = load_text(tmp_path, cache_dir=tmp_path / "cache")
    assert from_hub.sha256 == from_files.sha256
    assert from_hub.num_tokens == from_files.num_tokens

    hub_has(None)
    assert load_wikitext2(cache_dir=tmp_path / "cache").sha256 == from_hub.sha256


@pytest.mark.skipif(not WIKITEXT2.is_dir(), reason="WikiText-2 is not at hand")
def test_genuine_rows(hub_has, tmp_path):
    rows = {split: as_rows((WIKITEXT2 / f"{split}.txt").read_bytes().decode()) for split in ROWS}
    hub_has(rows)
    from_hub = load_wikitext2(cache_dir=tmp_path)
    assert from_hub.sha256 == load_wikitext2(WIKITEXT2, cache_dir=tmp_path).sha256


def test_wrong_rows_are_not_kept(hub_has, tmp_path):
    hub_has(ROWS)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"Salesforce/wikitext .*it has 10 / 4 / 2 tokens and 6 types"
        ):
            load_wikitext2(cache_dir=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


LOAD = """
import sys, time
from lmbench.data.published import load_wikitext2
from lmbench.data.hub import wikitext2_blocks
from lmbench.errors import UserError

start = time.perf_counter()
try:
    if sys.argv[1] == "corpus":
        load_wikitext2(cache_dir=sys.argv[2])
    else:
        print(wikitext2_blocks())
except UserError as error:
    print(error)
print(time.perf_counter() - start)
"""


def load_elsewhere(tmp_path, what, **environment):
    """What another process prints, with a fresh cache of the datasets library and no hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LMBENCH_"))}
    environment = {**kept, "HF_HOME": str(tmp_path / "hf"), **environment}
    command = [sys.executable, "-c", LOAD, what, str(tmp_path / "cache")]
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    *lines, seconds = result.stdout.splitlines()
    return "\n".join(lines), float(seconds)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_hub_out_of_reach(tmp_path):
    message, seconds = load_elsewhere(tmp_path, "corpus", HF_ENDPOINT=closed_port())
    assert "cannot be had from the Hugging Face hub" in message
    assert "refused" in message
    for way_out in ("data.path=", "LMBENCH_DATA_DIR", "data=synthetic"):
        assert way_out in message
    assert "\n" not in message
    assert seconds < 5
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_hub_that_never_answers(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        limited = {"HF_ENDPOINT": endpoint, "HF_HUB_ETAG_TIMEOUT": "2"}
        message, seconds = load_elsewhere(tmp_path, "corpus", **limited)
    assert "no answer in 2 seconds" in message
    assert "data=synthetic" in message
    assert seconds < 5


def test_library_cache_serves_without_the_hub(tmp_path):
    parent = tmp_path / "hf" / "datasets" / "Salesforce___wikitext" / "wikitext-2-v1" / "0.0.0"
    rows = as_dataset(ROWS)
    builder_folder = parent / "0123456789abcdef"
    builder_folder.mkdir(parents=True)
    info = datasets.DatasetInfo(
        features=rows["train"].features,
        dataset_name="wikitext",
        config_name="wikitext-2-v1",
        version="0.0.0",
        splits=datasets.SplitDict(),
    )
    for name, split in rows.items():
        path = builder_folder / f"wikitext-{name}.arrow"
        with datasets.arrow_writer.ArrowWriter(path=str(path), features=split.features) as writer:
            writer.write_table(split.data.table)
            writer.finalize()
        info.splits[name] = datasets.SplitInfo(
            name=name, num_examples=len(split), num_bytes=1, dataset_name="wikitext"
        )
    info.write_to_directory(str(builder_folder))

    printed, seconds = load_elsewhere(tmp_path, "blocks", HF_ENDPOINT=closed_port())
    assert printed == str({split: [hub.join_rows(rows)] for split, rows in ROWS.items()})
    assert seconds < 5

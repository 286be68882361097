"""What a user sees after a mistake: exit code 1, one paragraph, no traceback, nothing broken."""

import hashlib
import json
import os
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COMMAND = Path(sysconfig.get_path("scripts"), "lmbench-train")
TINY = (
    "model=lstm",
    "model.embedding_size=8",
    "model.core.hidden_size=8",
    "batching.batch_size=4",
    "batching.bptt=5",
    "evaluation.columns=2",
    "evaluation.burn_in=8",
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
)
TINY_SYNTHETIC = (
    "data=synthetic",
    "data.num_words=40",
    "data.num_train_tokens=1000",
    "data.num_valid_tokens=200",
    "data.num_test_tokens=200",
)
SENTENCES = "the cat sat on the mat <unk>\n\nthe mat was on the cat\n" * 10

Train = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def train(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs the command in an empty folder, without corpora, caches or settings of the user's."""
    home = tmp_path / "home"
    home.mkdir()
    ours = ("LMBENCH_", "HYDRA_", "HF_", "PL_", "XDG_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment = inherited | {
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(home / "hf"),
        "XDG_CACHE_HOME": str(home / "cache"),
        # Where matplotlib is there, torchmetrics imports it, and it would list all fonts each time.
        "MPLCONFIGDIR": str(tmp_path_factory.getbasetemp() / "matplotlib"),
    }

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def paragraph(result: "subprocess.CompletedProcess[str]") -> str:
    """The message, which is all that there is beside Hydra's own first and last line."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    first, *message, last = result.stderr.strip().splitlines()
    assert first.startswith("Error executing job with overrides: ")
    assert last.startswith("Set the environment variable HYDRA_FULL_ERROR=1")
    lines = "\n".join(message).strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def write_corpus(folder: Path, **changes: str | bytes | None) -> Path:
    """A corpus of three files; ``changes`` replaces one by other content, or by nothing."""
    folder.mkdir()
    contents = dict.fromkeys(("train", "valid", "test"), SENTENCES) | changes
    for split, content in contents.items():
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            (folder / f"{split}.txt").write_bytes(data)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "overrides", "parts"),
    [
        ({"valid": None}, (), ("no valid split", "valid.txt", "train.txt", "data.path")),
        ({"train": ""}, (), ("train", "empty")),
        ({"test": ""}, (), ("test", "empty")),
        ({"test": b"a b\n\xff c\n"}, (), ("test.txt", "UTF-8", "0xff", "offset 4")),
        ({}, ("batching.batch_size=1000",), ("too few", "batching.batch_size=1000")),
        (
            {"train": "the cat\n" * 20, "valid": "the dog\n", "test": "a cat\n"},
            (),
            ("'dog'", "<unk>", "data.min_count="),
        ),
    ],
    ids=["missing split", "empty train", "empty test", "not UTF-8", "too few tokens", "no <unk>"],
)
def test_a_bad_corpus(train: Train, tmp_path: Path, changes, overrides, parts):
    folder = write_corpus(tmp_path / "corpus", **changes)
    message = paragraph(train("data=text", f"data.path={folder}", *TINY, *overrides))
    for part in parts:
        assert part in message
    # Whole or not there: of the refused corpora only the one that can be read may be in the cache.
    cache = tmp_path / "home/cache/lmbench"
    entries = [path.name for path in cache.glob("*") if path.suffix != ".lock"]
    if "files" in entries:  # hashes of what was read, remembered once a file is two seconds old
        entries.remove("files")
        hashes = {hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        remembered = [json.loads(file.read_text("utf-8")) for file in cache.glob("files/*")]
        assert {memory["sha256"] for memory in remembered} <= hashes
    assert len(entries) == (1 if "batching.batch_size=1000" in overrides else 0), entries
    assert not list(tmp_path.glob("outputs/*/*/config.yaml"))
    assert not list(tmp_path.glob("outputs/*/*/checkpoints"))


@pytest.mark.slow
def test_a_missing_folder(train: Train, tmp_path: Path):
    message = paragraph(train("data=text", f"data.path={tmp_path}/nowhere", *TINY))
    assert f"{tmp_path}/nowhere does not exist" in message
    assert "data.path=" in message
    # WikiText-2 is looked for in the environment's folder first.
    message = paragraph(train(*TINY, LMBENCH_DATA_DIR=str(tmp_path)))
    assert f"{tmp_path}/wikitext-2" in message
    assert "LMBENCH_DATA_DIR" in message


@pytest.mark.slow
def test_text_without_a_path(train: Train):
    assert "data.path=" in paragraph(train("data=text", *TINY))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_a_hub_out_of_reach(train: Train, tmp_path: Path, silent_server: str):
    def seconds(*overrides: str, **variables: str) -> tuple[float, str]:
        start = time.perf_counter()
        message = paragraph(train(*TINY, *overrides, **variables))
        return time.perf_counter() - start, message

    start_up, _ = seconds(f"data.path={tmp_path}/nowhere")
    whole, message = seconds(HF_ENDPOINT=silent_server, HF_HUB_ETAG_TIMEOUT="2")
    for part in ("WikiText-2", "hub", "data.path=", "LMBENCH_DATA_DIR", "data=synthetic"):
        assert part in message
    # 23 s when the datasets library is left to itself. The import of that library is in here too.
    assert whole - start_up < 5 + 3
    assert not [path for path in tmp_path.glob("home/cache/lmbench/*") if path.suffix != ".lock"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed=abc", "seed='abc' has the wrong type: str instead of int"),
        ("model.core.dropout=1.5", "model.core.dropout must be"),
        ("model.head.kernel=foo", "model.head.kernel must be 'chunked' or 'liger'"),
        ("trainer.accelerator=foo", "trainer.accelerator=foo is none"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0"),
    ],
)
def test_a_bad_value(train: Train, tmp_path: Path, override: str, part: str):
    assert part in paragraph(train(*TINY_SYNTHETIC, *TINY, override))
    assert not list(tmp_path.glob("outputs/*/*/config.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("optimizer.lr=-1",), "learning rate: -1"),
        (("optimizer=adam", "optimizer.fused=true"), "`fused` and `foreach` cannot be `True`"),
        (("optimizer=adam", "callbacks=nt_asgd"), "callbacks.nt_asgd=null"),
        (("trainer.limit_val_batches=0.001",), "trainer.limit_val_batches=0.001 is less than one"),
        (("trainer.limit_train_batches=0.001",), "trainer.limit_train_batches=0.001 is less than"),
    ],
)
def test_a_value_that_only_the_fit_can_refuse(train: Train, tmp_path: Path, overrides, part):
    result = train(*TINY_SYNTHETIC, *TINY, *overrides)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert part in result.stderr
    assert not list(tmp_path.glob("outputs/*/*/results.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lr", "max_steps", "part"),
    [
        # finite losses, whose perplexity is not
        ("1e30", 20, "No validation gave a finite perplexity"),
        ("inf", 20, "The loss of step 2 is nan (epoch 0, lr inf, window of 5 steps, gradient norm"),
        ("inf", 1, "A weight is nan or infinite after step 1 (epoch 0, lr inf, gradient norm"),
    ],
)
def test_a_run_that_diverges_has_no_results(
    train: Train, tmp_path: Path, lr: str, max_steps: int, part: str
):
    diverge = ("optimizer=sgd", "scheduler=constant", f"optimizer.lr={lr}")
    unclipped = ("trainer.gradient_clip_val=null", f"trainer.max_steps={max_steps}")
    result = train(*TINY_SYNTHETIC, *TINY, *diverge, *unclipped)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert part in result.stderr
    assert "Set optimizer.lr or trainer.gradient_clip_val lower" in result.stderr
    assert not list(tmp_path.glob("outputs/*/*/results.json"))


@pytest.mark.slow
def test_an_unknown_key_and_an_unknown_option(train: Train):
    result = train("batching.bptt_length=3")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "Could not override 'batching.bptt_length'" in result.stderr
    result = train("model=gru")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    available = result.stderr.split("Available options in 'model':")[1].split()
    assert {"awd_lstm", "lstm"} <= set(available)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("hydra.run.dir=file",), ("hydra.run.dir=file/below",), ("-m", "hydra.sweep.dir=file")],
)
def test_a_folder_that_cannot_be_written(train: Train, tmp_path: Path, options: tuple[str, ...]):
    (tmp_path / "file").write_text("of the user's")
    result = train(*options, *TINY_SYNTHETIC, *TINY)  # -m before the overrides
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{options[-1].partition('=')[2]} cannot be the folder to write into: ")
    assert (tmp_path / "file").read_text() == "of the user's"


@pytest.mark.slow
def test_the_traceback_is_there_for_those_who_ask(train: Train):
    result = train(*TINY_SYNTHETIC, *TINY, "model.core.dropout=1.5", HYDRA_FULL_ERROR="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "require_probabilities" in result.stderr  # down to where it was found


@pytest.mark.slow
def test_a_failing_job_does_not_stop_the_others_of_a_sweep(train: Train, tmp_path: Path):
    result = train("-m", *TINY_SYNTHETIC, *TINY, "model.core.dropout=1.5,0.1")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "model.core.dropout must be" in result.stderr
    (sweep,) = tmp_path.glob("multirun/*/*")
    assert not (sweep / "0/results.json").exists()
    assert (sweep / "1/results.json").exists()
    assert "Not finished: 0. To go on: the same command with" in result.stdout

"""What a user sees after a mistake: exit code 1, one paragraph, no traceback, nothing broken."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trainings
from small import SMALL

TINY = ("model=lstm", *(one for one in SMALL if not one.startswith("data")), "trainer.max_steps=2")
TINY_SYNTHETIC = ("model=lstm", *SMALL, "trainer.max_steps=2")
SENTENCES = "the cat sat on the mat <unk>\n\nthe mat was on the cat\n" * 10

Environment = Callable[..., dict[str, str]]
pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The environment of a user without corpora, caches or settings, except those given."""
    ours = ("LMBENCH_", "HYDRA_", "HF_", "PL_", "XDG_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    of_home = {"HF_HOME": f"{tmp_path}/home/hf", "XDG_CACHE_HOME": f"{tmp_path}/home/cache"}
    # If matplotlib is installed, torchmetrics imports it, and it would list all fonts each time.
    fonts = {"MPLCONFIGDIR": str(tmp_path_factory.getbasetemp() / "matplotlib")}
    return lambda **given: inherited | {"OMP_NUM_THREADS": "1"} | of_home | fonts | given


@pytest.fixture
def refusal(tmp_path: Path, environment: Environment) -> Callable[..., str]:
    """Runs the command in an empty folder; returns its one paragraph."""

    def run(*arguments: str, **variables: str) -> str:
        return trainings.refusal(tmp_path, *arguments, env=environment(**variables))

    return run


@pytest.fixture
def failure(tmp_path: Path, environment: Environment) -> Callable[..., str]:
    """Runs the command in an empty folder, where it fails; returns its stderr."""

    def run(*arguments: str, **variables: str) -> str:
        with trainings.start(tmp_path, *arguments, env=environment(**variables)) as process:
            _, stderr = process.communicate(timeout=300)
        assert process.returncode == 1
        assert ("Traceback" in stderr) == ("HYDRA_FULL_ERROR" in variables)
        return stderr

    return run


def write_corpus(folder: Path, **changes: str | bytes | None) -> Path:
    """A corpus of three files; ``changes`` gives a split other content, or None to omit it."""
    folder.mkdir()
    contents = dict.fromkeys(("train", "valid", "test"), SENTENCES) | changes
    for split, content in contents.items():
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            (folder / f"{split}.txt").write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("changes", "overrides", "parts"),
    [
        ({"test": b"a b\n\xff c\n"}, (), ("test.txt", "UTF-8", "0xff", "offset 4")),
        ({}, ("batching.batch_size=1000",), ("too few", "batching.batch_size to")),
        (
            {"train": "the cat\n" * 20, "valid": "the dog\n", "test": "a cat\n"},
            (),
            ("'dog'", "<unk>", "data.min_count="),
        ),
    ],
    ids=["not UTF-8", "too few tokens", "no <unk>"],
)
def test_a_bad_corpus(refusal: Callable, tmp_path: Path, changes, overrides, parts):
    folder = write_corpus(tmp_path / "corpus", **changes)
    message = refusal("data=text", f"data.path={folder}", *TINY, *overrides)
    for part in parts:
        assert part in message
    # Of the refused corpora, only the one that can be read may be in the cache, and as a whole.
    cache = tmp_path / "home/cache/lmbench"
    entries = [path.name for path in cache.glob("*") if path.suffix != ".lock"]
    assert len(entries) == (1 if "batching.batch_size=1000" in overrides else 0), entries
    assert not list(tmp_path.glob("outputs/*/*/config.yaml"))
    assert not list(tmp_path.glob("outputs/*/*/checkpoints"))


def test_a_missing_folder(refusal: Callable, tmp_path: Path):
    message = refusal("data=text", f"data.path={tmp_path}/nowhere", *TINY)
    assert f"{tmp_path}/nowhere cannot be read" in message
    assert "data.path=" in message
    assert "data.path=" in refusal("data=text", *TINY)


@pytest.fixture
def silent_server() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server's address and the connections that it has accepted and never answers."""
    accepted: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):  # the end of the test
            while True:
                accepted.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", accepted
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in accepted:
        connection.close()


def test_a_hub_out_of_reach(
    refusal: Callable, tmp_path: Path, silent_server: tuple[str, list[socket.socket]]
):
    address, accepted = silent_server
    message = refusal(*TINY, HF_ENDPOINT=address, HF_HUB_ETAG_TIMEOUT="2")
    for part in ("WikiText-2", "hub", "data.path=", "LMBENCH_DATA_DIR", "data=synthetic"):
        assert part in message
    assert len(accepted) < 4  # left to itself, the datasets library tries for 23 s
    assert not [path for path in tmp_path.glob("home/cache/lmbench/*") if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed=abc", 'seed="abc" has the wrong type'),
        ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0"),
    ],
)
def test_a_bad_value(refusal: Callable, tmp_path: Path, override: str, part: str):
    assert part in refusal(*TINY_SYNTHETIC, override)
    assert not list(tmp_path.glob("outputs/*/*/config.yaml"))


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("trainer.limit_val_batches=0.001",), "Please increase the `limit_val_batches` argument"),
        # finite losses, whose perplexity is not
        (("optimizer.lr=1e30", "trainer.max_steps=20"), "Lower optimizer.lr or trainer"),
        (("optimizer.lr=inf", "trainer.max_steps=20"), "The loss of step 2 is nan"),
        (("optimizer.lr=inf", "trainer.max_steps=1"), "A weight is not finite after step 1"),
    ],
)
def test_what_only_the_fit_can_refuse_leaves_no_results(
    failure: Callable, tmp_path: Path, overrides: tuple, part: str
):
    """And no folder, unless the training had begun."""
    plain = ("scheduler=constant", "trainer.gradient_clip_val=null")
    assert part in failure(*TINY_SYNTHETIC, *plain, *overrides)
    assert not list(tmp_path.glob("outputs/*/*/results.json"))
    has_begun = "trainer.max_steps=" in str(overrides)
    assert bool(list(tmp_path.glob("outputs/*"))) == has_begun
    said = [path.read_text() for path in tmp_path.glob("outputs/*/*/diverged.txt")]
    assert [part in text for text in said] == ([True] if has_begun else [])


def test_an_unknown_key_and_an_unknown_option(failure: Callable):
    assert "no key batching.bptt_length" in failure("batching.bptt_length=3")
    assert "Did you mean trainer.max_epochs?" in failure("trainer.max_epoch=3")
    (line,) = failure("model=gru").splitlines()
    assert line.endswith(" awd_lstm, lstm.")


@pytest.mark.parametrize(
    "options",
    [("hydra.run.dir=file",), ("hydra.run.dir=file/below",), ("-m", "hydra.sweep.dir=file")],
)
def test_a_folder_that_cannot_be_written(failure: Callable, tmp_path: Path, options: tuple):
    (tmp_path / "file").write_text("of the user's")
    (line,) = failure(*options, *TINY_SYNTHETIC).splitlines()  # -m before the overrides
    assert line.startswith(options[-1].partition("=")[2])
    assert (tmp_path / "file").read_text() == "of the user's"


def test_a_disk_that_is_full_as_tensorboard_starts(tmp_path: Path, environment: Environment):
    """Its writer, in a thread of its own, is the first to notice."""
    script = """
from tensorboard.summary.writer.record_writer import RecordWriter
from lmbench.cli.train import main
def write(self, data):
    raise OSError(28, "No space left on device")
RecordWriter.write = write
main()
"""
    arguments = ("-c", script, *TINY_SYNTHETIC, "hydra.run.dir=run")
    message = trainings.refusal(tmp_path, *arguments, command="python", env=environment())
    assert "No space left on device" in message
    assert f"resume={tmp_path}/run" in message


def test_the_traceback_is_there_for_those_who_ask(failure: Callable):
    said = failure(*TINY_SYNTHETIC, "model.core.dropout=1.5", HYDRA_FULL_ERROR="1")
    assert "require_probabilities" in said  # down to where it was found


def test_a_failing_job_does_not_stop_the_others_of_a_sweep(failure: Callable, tmp_path: Path):
    said = failure("-m", *TINY_SYNTHETIC, "model.core.dropout=1.5,0.1")
    assert "model.core: dropout must be" in said
    (results,) = tmp_path.glob("multirun/*/*/*/results.json")
    assert "dropout: 0.1" in (results.parent / "config.yaml").read_text("utf-8")

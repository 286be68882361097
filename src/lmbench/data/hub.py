"""WikiText-2 from the Hugging Face hub."""

import queue
import threading
from collections.abc import Iterable

from lmbench.errors import UserError

REPOSITORY = "Salesforce/wikitext"
CONFIGURATION = "wikitext-2-v1"


def wikitext2_blocks() -> dict[str, list[bytes]]:
    """Text of the splits train, valid and test of the word-level WikiText-2, in blocks of lines.

    Taken from the cache of the datasets library where the hub does not answer.

    Raises:
        UserError: It is neither on the hub nor in that cache.
    """
    from datasets import config, load_dataset

    offline = config.HF_HUB_OFFLINE
    trouble = None if offline else _hub_trouble()
    # Left to itself load_dataset tries for 23 seconds before it looks into its cache.
    config.HF_HUB_OFFLINE = offline or trouble is not None
    try:
        splits = load_dataset(REPOSITORY, CONFIGURATION)
    except Exception as error:  # those of three libraries, and of the network below them
        raise UserError(
            f"WikiText-2 ({REPOSITORY}, {CONFIGURATION}) cannot be had from the Hugging Face hub: "
            f"{trouble or error}. Set data.path=… to a folder that has it, or the environment "
            "variable LMBENCH_DATA_DIR to a folder with wikitext-2/ in it (files train.txt, "
            "valid.txt, test.txt or wiki.*.tokens); data=synthetic needs no files at all."
        ) from error
    finally:
        config.HF_HUB_OFFLINE = offline
    names = {"train": "train", "valid": "validation", "test": "test"}
    return {split: [join_rows(splits[name]["text"][:])] for split, name in names.items()}


def join_rows(rows: Iterable[str]) -> bytes:
    r"""Text of a dataset that has a line a row, with or without its ``\n``; blank lines count."""
    return "".join(row.removesuffix("\n") + "\n" for row in rows).encode()


def _hub_trouble() -> str | None:
    """Why the hub does not answer within the library's own time limit, or None if it does."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT as TIMEOUT_SECONDS

    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            HfApi().dataset_info(REPOSITORY, timeout=TIMEOUT_SECONDS)
            answers.put(None)
        except Exception as error:
            answers.put(str(error) or type(error).__name__)

    # Name look-up has no time limit, and a connection has one for each address of the host.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=TIMEOUT_SECONDS)
    except queue.Empty:
        return f"no answer in {TIMEOUT_SECONDS} seconds (HF_HUB_ETAG_TIMEOUT)"

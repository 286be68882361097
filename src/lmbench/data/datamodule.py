"""A corpus as BPTT windows for Lightning."""

from collections.abc import Mapping
from typing import Any

import lightning as L

from lmbench.data.batching import Batch, EvaluationWindows, TrainingWindows
from lmbench.data.columns import (
    IGNORE_INDEX,
    Columns,
    columns_by_protocol,
    columns_for_training,
)
from lmbench.data.corpus import Corpus
from lmbench.errors import UserError


class LanguageModelDataModule(L.LightningDataModule):
    """Streams BPTT windows of a corpus; one "batch" of a loader is one window.

    Training windows are drawn anew for each epoch from ``(seed, epoch)``, so the trainer must be
    built with ``reload_dataloaders_every_n_epochs=1``.

    Args:
        corpus: The token streams.
        batch_size: Training columns over all devices.
        bptt: Base length of a training window.
        variable_windows: Whether the lengths of windows are drawn (see ``TrainingWindows``).
        scale_lr: Whether a window's learning rate is scaled by its drawn length.
        partial_shuffle: Whether each training column starts at another of its rows in every epoch
            (Press 2019, arXiv 1903.04167).
        evaluation_protocol: "standard" scores each target of valid and test once; "published" is
            the evaluation of salesforce/awd-lstm-lm: 10 columns for valid and one for test, without
            the targets between columns, and the sum divided by the tokens read, of which there are
            more than targets. The next two arguments are then not used.
        evaluation_columns: Columns in which valid and test are read; 1 is the exact evaluation.
        burn_in: Unscored tokens at the start of each evaluation column but the first.
        evaluation_window: Length of an evaluation window; it moves memory and time, not results.
        seed: Seed of the window lengths and of the partial shuffle.

    Attributes:
        evaluation: How valid and test are read, for a run's results; the columns by split where
            they differ, as under the published protocol, or where one is too short for as many.
        extra_divisor: Stage → what the protocol's divisor has on top of the number of targets.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        batch_size: int,
        bptt: int,
        variable_windows: bool = False,
        scale_lr: bool = True,
        partial_shuffle: bool = False,
        evaluation_protocol: str = "standard",
        evaluation_columns: int = 64,
        burn_in: int = 512,
        evaluation_window: int = 70,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("bptt", bptt, 1),
            ("evaluation_columns", evaluation_columns, 1),
            ("burn_in", burn_in, 0),
            ("evaluation_window", evaluation_window, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        self.corpus = corpus
        self._bptt = bptt
        self._variable_windows = variable_windows
        self._scale_lr = scale_lr
        self._partial_shuffle = partial_shuffle
        self._evaluation_window = evaluation_window
        self._seed = seed
        self._training = columns_for_training(corpus.train, batch_size)
        self._evaluation: dict[str, Columns] = {}
        self.extra_divisor: dict[str, int] = {}
        for split, stage in (("valid", "val"), ("test", "test")):
            columns = columns_by_protocol(
                getattr(corpus, split),
                split,
                protocol=evaluation_protocol,
                columns=evaluation_columns,
                burn_in=burn_in,
            )
            self._evaluation[split] = columns
            self.extra_divisor[stage] = columns.extra_divisor
        used = {split: columns.num_columns for split, columns in self._evaluation.items()}
        self._evaluation_columns = evaluation_columns
        self.evaluation: Mapping[str, Any] = {
            "protocol": evaluation_protocol,
            "columns": used if used["valid"] != used["test"] else used["valid"],
            "burn_in": 0 if evaluation_protocol == "published" else burn_in,
        }

    def num_training_steps(
        self, max_epochs: int, limit_train_batches: float | None = None, max_steps: int = -1
    ) -> int:
        """Exact number of windows in ``max_epochs`` epochs, for schedules over the whole run.

        Args:
            max_epochs: Epochs of the run.
            limit_train_batches: Lightning's limit: an int counts windows, a float is a share.
            max_steps: Where to stop counting; -1 for no such limit.
        """
        total = 0
        for epoch in range(max_epochs):
            num_windows = len(self._training_windows(self._training, epoch))
            if isinstance(limit_train_batches, int):
                num_windows = min(num_windows, limit_train_batches)
            elif limit_train_batches is not None:
                num_windows = int(num_windows * limit_train_batches)
            total += num_windows
            if 0 <= max_steps <= total:
                return max_steps
        return total

    def setup(self, stage: str) -> None:
        """Finds out before the training, not after it, whether all splits can be read.

        Raises:
            UserError: A split's columns do not divide by the number of processes; or the trainer's
                limit leaves nothing of one.
        """
        names = {"train": "limit_train_batches", "valid": "limit_val_batches"}
        if getattr(self.trainer, "overfit_batches", 0) > 0:  # Lightning takes it for both of them
            names = dict.fromkeys(names, "overfit_batches")
        windows = (self.train_dataloader(), self.val_dataloader(), self.test_dataloader())
        names["test"] = "limit_test_batches"
        for (split, name), num_windows in zip(names.items(), map(len, windows), strict=True):
            limit = getattr(self.trainer, name, None)
            if isinstance(limit, float) and 0 < limit * num_windows < 1:
                raise UserError(
                    f"trainer.{name}={limit:g} is less than one of the {num_windows} window(s) in "
                    f"which {split} is read. Set it to a whole number of windows."
                )

    def train_dataloader(self) -> TrainingWindows:
        """The windows of the trainer's current epoch, in this process's columns."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        return self._training_windows(self._of_this_process("train", epoch), epoch)

    def val_dataloader(self) -> EvaluationWindows:
        """The windows of the validation split, in this process's columns."""
        return self._evaluation_windows("valid")

    def test_dataloader(self) -> EvaluationWindows:
        """The windows of the test split, in this process's columns."""
        return self._evaluation_windows("test")

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Refuses ids that the vocabulary does not have: on a GPU they would end the process.

        Raises:
            UserError: The window holds such an id.
        """
        num_words = len(self.corpus.vocabulary)
        negative = (batch.tokens < 0) | ((batch.targets < 0) & (batch.targets != IGNORE_INDEX))
        if negative.any() or max(batch.tokens.max(), batch.targets.max()) >= num_words:
            raise UserError(
                f"The corpus {self.corpus.name!r} holds an id outside its vocabulary of "
                f"{num_words:,} words: its files in the cache are damaged. Set "
                "data.cache_dir=… to an empty folder, or delete them."
            )
        return batch

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint must know to be read by itself: the words and the corpus's hash."""
        return {"sha256": self.corpus.sha256, "words": list(self.corpus.vocabulary.words)}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Refuses to go on with a checkpoint of another corpus.

        Raises:
            UserError: The hashes differ.
        """
        self.corpus.require_sha256(state_dict["sha256"])

    def _training_windows(self, columns: Columns, epoch: int) -> TrainingWindows:
        return TrainingWindows(
            columns,
            self._bptt,
            variable=self._variable_windows,
            seed=self._seed,
            epoch=epoch,
            scale_lr=self._scale_lr,
        )

    def _evaluation_windows(self, split: str) -> EvaluationWindows:
        columns = self._of_this_process(split)
        return EvaluationWindows(columns, window=self._evaluation_window)

    def _of_this_process(self, split: str, epoch: int = 0) -> Columns:
        columns = self._training if split == "train" else self._evaluation[split]
        if split == "train" and self._partial_shuffle:
            columns = columns.partially_shuffled(self._seed, epoch)
        num_processes = self.trainer.world_size if self.trainer else 1
        if columns.num_columns % num_processes:
            raise UserError(
                f"{split} is read in {columns.num_columns} column(s), which cannot be shared out "
                f"evenly to {num_processes} devices. {self._remedy(split, num_processes)}"
            )
        return columns.share(self.trainer.global_rank if self.trainer else 0, num_processes)

    def _remedy(self, split: str, num_processes: int) -> str:
        if split == "train":
            return f"Set batching.batch_size to a multiple of {num_processes}."
        if self.evaluation["protocol"] == "published":
            return "Set evaluation.protocol=standard, or trainer.devices=1."
        if self._evaluation[split].num_columns < self._evaluation_columns:
            return "It is too short for more: set evaluation.burn_in lower, or trainer.devices=1."
        return f"Set evaluation.columns to a multiple of {num_processes}."

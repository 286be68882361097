"""A corpus as BPTT windows for Lightning."""

from dataclasses import replace
from functools import partial

import lightning as L

from lmbench.data.articles import article_starts, shuffled_articles
from lmbench.data.batching import EvaluationWindows, TrainingWindows
from lmbench.data.columns import Columns, EvaluationSettings, columns_for_training
from lmbench.data.corpus import Corpus
from lmbench.data.tokenizer.choice import plain_tokenizer
from lmbench.errors import UserError


class LanguageModelDataModule(L.LightningDataModule):
    """Streams BPTT windows of a corpus; one "batch" of a loader is one window.

    Training windows are drawn anew for each epoch from ``(seed, epoch)``, so the trainer must be
    built with ``reload_dataloaders_every_n_epochs=1``, as lmbench.training.module.TRAINER_OPTIONS
    says.

    Args:
        corpus: The token streams.
        batch_size: Training columns across all devices.
        bptt: Base length of a training window.
        variable_windows: See ``variable`` of ``TrainingWindows``.
        scale_lr: See ``TrainingWindows``.
        partial_shuffle: Whether an epoch reads the columns ``partially_shuffled``.
        shuffle_articles: Whether an epoch reads ``shuffled_articles``, a copy in memory.
        evaluation: How valid and test are read.
        seed: Seed of the window lengths and of the shuffles.

    Attributes:
        plain_evaluation: How valid and test are read, for a run's results; ``columns`` is by split
            if they differ, as under awd_lstm_lm or if one split is too short for that many.
        extra_divisor: Stage → what the protocol adds to the number of targets in a mean's divisor.

    Raises:
        ValueError: A number is out of range.
        UserError: A split is too short; or there are no articles to shuffle.
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
        shuffle_articles: bool = False,
        evaluation: EvaluationSettings,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("bptt", bptt)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.corpus = corpus
        self._training_windows = partial(
            TrainingWindows, bptt=bptt, variable=variable_windows, seed=seed, scale_lr=scale_lr
        )
        self._partial_shuffle = partial_shuffle
        self._evaluation_window = evaluation.window
        self._seed = seed
        self._training = columns_for_training(corpus.train, batch_size)
        self._article_starts = None
        if shuffle_articles:
            self._article_starts = article_starts(corpus.train, corpus.vocabulary)
            if self._article_starts is None:
                raise UserError(
                    "batching.shuffle_articles=true needs articles, but the training split has no "
                    "title: a line like = Robert Boulter = between two empty ones. Set it to false."
                )
        valid = evaluation.arrange(corpus.valid, "valid")
        test = evaluation.arrange(corpus.test, "test")
        self._evaluation = {"valid": valid, "test": test}
        self.extra_divisor = {"val": valid.extra_divisor, "test": test.extra_divisor}
        used = {"valid": valid.num_columns, "test": test.num_columns}
        is_one = used["valid"] == used["test"]
        self.plain_evaluation = evaluation.plain(used["valid"] if is_one else used)

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
            num_windows = len(self._training_windows(self._training, epoch=epoch))
            if isinstance(limit_train_batches, int):
                num_windows = min(num_windows, limit_train_batches)
            elif limit_train_batches is not None:
                num_windows = int(num_windows * limit_train_batches)
            total += num_windows
            if 0 <= max_steps <= total:
                return max_steps
        return total

    def setup(self, stage: str) -> None:
        """Checks before training, rather than after it, that all splits can be read.

        Raises:
            UserError: A split's columns cannot be divided evenly among the processes.
        """
        for split, columns in {"train": self._training, **self._evaluation}.items():
            self._share(columns, split)

    def train_dataloader(self) -> TrainingWindows:
        """The windows of the trainer's current epoch, in this process's columns."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        columns = self._training
        if self._article_starts is not None:
            ids = shuffled_articles(self.corpus.train, self._article_starts, self._seed, epoch)
            columns = replace(columns, ids=ids)
        if self._partial_shuffle:
            columns = columns.partially_shuffled(self._seed, epoch)
        return self._training_windows(self._share(columns, "train"), epoch=epoch)

    def val_dataloader(self) -> EvaluationWindows:
        """The windows of the validation split, in this process's columns."""
        return self._evaluation_windows("valid")

    def test_dataloader(self) -> EvaluationWindows:
        """The windows of the test split, in this process's columns."""
        return self._evaluation_windows("test")

    def state_dict(self) -> dict[str, object]:
        """What makes a checkpoint readable on its own: words, tokenizer, and the corpus's hash."""
        vocabulary = self.corpus.vocabulary
        return {
            "sha256": self.corpus.sha256,
            "words": list(vocabulary.words),
            "tokenizer": plain_tokenizer(vocabulary.tokenizer),
        }

    def _evaluation_windows(self, split: str) -> EvaluationWindows:
        columns = self._share(self._evaluation[split], split)
        return EvaluationWindows(columns, window=self._evaluation_window)

    def _share(self, columns: Columns, split: str) -> Columns:
        num_processes = self.trainer.world_size if self.trainer else 1
        if columns.num_columns % num_processes:
            key, also = "batching.batch_size", ""
            if split != "train":
                key = "evaluation.columns"
                also = ", with evaluation.protocol=standard and evaluation.burn_in below its length"
            raise UserError(
                f"{split} is read in {columns.num_columns} column(s), which cannot be divided "
                f"evenly among {num_processes} devices. Set trainer.devices=1, or {key} to a "
                f"multiple of {num_processes}{also}."
            )
        return columns.share(self.trainer.global_rank if self.trainer else 0, num_processes)

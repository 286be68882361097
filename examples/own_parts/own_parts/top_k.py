"""How often the right word is among the likeliest k."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lmbench.data.columns import columns_for_evaluation
from lmbench.evaluation.measure import Measure, Outcome, TrainedRun
from lmbench.evaluation.reading import read_stream


@dataclass
class TopK(Measure):
    """The share of targets that are among the k words to which the model gives most.

    Args:
        k: How many words the model may name.
    """

    k: int = 5

    def outcomes(self, run: TrainedRun, splits: Sequence[str], name: str) -> Iterator[Outcome]:
        """Reads each split once, in one column."""
        head = run.model.head
        for split in splits:
            columns = columns_for_evaluation(getattr(run.corpus, split), columns=1, burn_in=0)
            reading = read_stream(run.model, columns, window=200, keep_outputs=True)
            targets = torch.from_numpy(reading.targets).long()
            hits = 0
            for output, target in zip(
                reading.outputs.split(1000), targets.split(1000), strict=True
            ):
                with torch.no_grad():
                    likeliest = head.log_probs(output.to(run.model.device)).topk(self.k).indices
                hits += int((likeliest.cpu() == target[:, None]).sum())
            accuracy = hits / len(targets)
            yield Outcome(
                name=f"{name}-{split}",
                results={**run.about, "split": split, "settings": {"k": self.k}, "top_k": accuracy},
                settings="settings",
                figure=accuracy,
                table=f"{split}: {accuracy:.1%} of the words are among the likeliest {self.k}",
            )

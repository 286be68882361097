"""Adaptive softmax. Shape letters: N tokens (any number of dimensions), H hidden, V vocabulary.

K tail clusters; C words in the head; cluster k has V_k words and reads H_k features.
"""

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lmbench.loss.linear_cross_entropy import autocast_dtype, linear_cross_entropy
from lmbench.model.head.base import Head
from lmbench.perplexity import IGNORE_INDEX


class AdaptiveSoftmax(Head):
    """Two-level softmax for large vocabularies: rare words are predicted within their cluster.

    The head is a softmax over the C most frequent words and the K tail clusters; each cluster has
    a softmax over its own words, computed only for the targets in it. Its words have vectors of
    H_k = H // div_value^k features, applied after a projection H → H_k. After :meth:`tie` the
    words' vectors are rows of the embedding instead, H wide, and there is no projection.

    Word ids stay as they are outside; inside, words are ordered by frequency, and ``word_ranks``
    (part of ``state_dict``) maps ids to places in that order.

    Source: Grave et al. 2017 (arXiv 1609.04309); as ``torch.nn.AdaptiveLogSoftmaxWithLoss``,
    except for the biases of the tail words. Vectors from U(−0.1, 0.1), projections from
    U(−1/√H, 1/√H), bias 0.

    Args:
        input_size: Size of the core's output, H.
        vocabulary_size: Number of words, V.
        cutoffs: Number of words in the head, C, then the number up to the end of each cluster but
            the last. Those that are not below V are dropped, so that a recipe for a large
            vocabulary works with a small one; if none is left, this is a plain softmax. None for
            V // 20 and V // 5.
        div_value: Factor by which each cluster's vectors are narrower than those of the one before
            it, down to 1 feature. No effect on tied weights.
        bias: Whether words and clusters have a bias.
        unigram_bias: Whether the bias starts so that, with all else zero, a word would have the
            probability (count + 1) / (sum of counts + V). Without counts it starts at 0.
        counts: How often each word occurs in training, ``(V,)``, by id; None if ids are ordered
            by frequency already. Equally frequent words keep the order of their ids.
        autocast: Whether, under autocast to bfloat16 (``trainer.precision=bf16-mixed``), the
            training loss is computed in bfloat16 rather than float32. Without gradients it is
            always computed in float32.

    Raises:
        ValueError: If ``cutoffs`` are not increasing whole numbers of at least 1; if ``div_value``
            is below 1; if ``unigram_bias`` is true without ``bias``.
    """

    layout_arguments = ("cutoffs",)
    word_ranks: Tensor

    def __init__(
        self,
        input_size: int,
        vocabulary_size: int,
        *,
        cutoffs: list[float] | None = None,
        div_value: float = 4.0,
        bias: bool = True,
        unigram_bias: bool = False,
        counts: Int[Tensor, " V"] | Int[np.ndarray, " V"] | None = None,
        autocast: bool = True,
    ) -> None:
        super().__init__()
        if cutoffs is None:
            cutoffs = sorted({max(1, vocabulary_size // share) for share in (20, 5)})
        if not cutoffs or any(a >= b or b % 1 for a, b in pairwise([0, *cutoffs])):
            raise ValueError(
                f"cutoffs must be increasing whole numbers of at least 1, not {cutoffs}"
            )
        cutoffs = [int(cutoff) for cutoff in cutoffs if cutoff < vocabulary_size]
        borders = [0, *cutoffs, vocabulary_size]
        if not div_value >= 1:
            raise ValueError(f"div_value must be at least 1, not {div_value}")
        if unigram_bias and not bias:
            raise ValueError("unigram_bias=True needs bias=True")
        ranks = torch.arange(vocabulary_size)
        if counts is not None:
            by_frequency = torch.as_tensor(counts).argsort(descending=True, stable=True)
            ranks[by_frequency] = ranks.clone()
        self.input_size = input_size
        self.vocabulary_size = vocabulary_size
        self.cutoffs = cutoffs
        self.autocast = autocast
        self._sizes = [stop - start for start, stop in pairwise(borders)]
        widths = [max(1, int(input_size // div_value**k)) for k in range(len(self._sizes))]

        self.register_buffer("word_ranks", ranks)
        self.register_parameter("weight", None)
        self.word_weights = nn.ParameterList(
            torch.empty(size, width) for size, width in zip(self._sizes, widths, strict=True)
        )
        self.projections = nn.ParameterList(torch.empty(width, input_size) for width in widths[1:])
        clusters = nn.Parameter(torch.empty(len(cutoffs), input_size)) if cutoffs else None
        self.cluster_weight = clusters
        # In the order of the logits: head (words, then clusters), first cluster, second, …
        self.bias = nn.Parameter(torch.zeros(vocabulary_size + len(cutoffs))) if bias else None
        for weight in (*self.word_weights, *([] if clusters is None else [clusters])):
            nn.init.uniform_(weight, -0.1, 0.1)
        for projection in self.projections:
            nn.init.uniform_(projection, -(input_size**-0.5), input_size**-0.5)
        if unigram_bias and self.bias is not None and counts is not None:
            logs = torch.empty(vocabulary_size)
            logs[ranks] = (torch.as_tensor(counts) + 1).float().log()
            words, *tails = logs.split(self._sizes)
            head = torch.cat([words, *(tail.logsumexp(0, keepdim=True) for tail in tails)])
            with torch.no_grad():
                self.bias.copy_(torch.cat([part.log_softmax(0) for part in (head, *tails)]))

    def tie(self, weight: Float[nn.Parameter, "V H"]) -> None:
        """Replaces the word vectors with the embedding's, ordered as in :meth:`embedding_rows`."""
        self.weight = weight
        self.word_weights, self.projections = nn.ParameterList(), nn.ParameterList()

    def embedding_rows(self, words: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        """Rows of a tied weight for ``words``: those of a cluster are contiguous."""
        return self.word_ranks.index_select(0, words.reshape(-1)).view(words.shape)

    def loss(
        self,
        output: Float[Tensor, "*N H"],
        targets: Int[Tensor, "*N"],
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Float[Tensor, "..."]:
        """Negative log-likelihood of ``targets`` in nats, without ever holding all logits.

        Arguments, precision (except for ``autocast``) and errors are those of
        :func:`lmbench.loss.linear_cross_entropy.linear_cross_entropy`, which computes the head and
        each cluster.
        """
        part = "sum" if reduction == "mean" else reduction
        flat_targets = targets.reshape(-1)
        scored = flat_targets != IGNORE_INDEX
        ranks = self.word_ranks.index_select(0, flat_targets.where(scored, 0).long())
        cluster, labels = self._place(ranks)
        labels = labels.where(scored, IGNORE_INDEX)

        device_type = output.device.type
        dtype = autocast_dtype(device_type) if self.autocast else None
        with torch.autocast(device_type, enabled=False):
            head, *tails = self._layers()
            rows = output.reshape(-1, self.input_size).to(dtype or head[0].dtype)
            nats = linear_cross_entropy(rows, *head, labels, reduction=part, dtype=dtype)
            for k, (start, tail) in enumerate(zip(self.cutoffs, tails, strict=True)):
                # A cluster without targets is not left out: its gradients must be zeros, not
                # None, for optimizers and for processes in which it has targets.
                inside = ((cluster == k + 1) & scored).nonzero().squeeze(1)
                tail_nats = linear_cross_entropy(
                    self._project(rows.index_select(0, inside), k),
                    *tail,
                    ranks.index_select(0, inside) - start,
                    reduction=part,
                    dtype=dtype,
                )
                if reduction == "none":
                    nats = nats.index_add(0, inside, tail_nats)
                else:
                    nats = nats + tail_nats
        if reduction == "mean":
            return nats / scored.sum()
        return nats.reshape(targets.shape) if reduction == "none" else nats

    def log_probs(self, output: Float[Tensor, "*N H"]) -> Float[Tensor, "*N V"]:
        """Log-probabilities of all words, in the precision of :meth:`loss`."""
        with torch.autocast(output.device.type, enabled=False):
            head, *tails = self._layers()
            output = output.to(head[0].dtype)
            log_probs = functional.linear(output, *head).log_softmax(-1)
            words, clusters = log_probs.split([self._sizes[0], len(self.cutoffs)], -1)
            parts = [words]
            for k, tail in enumerate(tails):
                within = functional.linear(self._project(output, k), *tail).log_softmax(-1)
                parts.append(within + clusters[..., k : k + 1])
            return torch.cat(parts, -1).index_select(-1, self.word_ranks)

    def surprisal_and_entropy(
        self, output: Float[Tensor, "N H"], targets: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """As for every head, but without putting all words into the order of their ids.

        The entropy is the head's, plus that of each cluster, weighted by the cluster's probability.
        """
        ranks = self.embedding_rows(targets)
        with torch.autocast(output.device.type, enabled=False):
            head, *tails = self._layers()
            output = output.to(head[0].dtype)
            log_probs = functional.linear(output, *head).log_softmax(-1)
            entropy = -torch.linalg.vecdot(log_probs.exp(), log_probs)
            cluster, labels = self._place(ranks)
            surprisal = -log_probs.gather(1, labels[:, None]).squeeze(1)
            for k, (start, tail) in enumerate(zip(self.cutoffs, tails, strict=True)):
                within = functional.linear(self._project(output, k), *tail).log_softmax(-1)
                weight = log_probs[:, self._sizes[0] + k].exp()
                entropy -= weight * torch.linalg.vecdot(within.exp(), within)
                labels = (ranks - start).clamp(0, within.shape[1] - 1)
                in_cluster = within.gather(1, labels[:, None]).squeeze(1)
                surprisal -= in_cluster.where(cluster == k + 1, 0)
        return surprisal, entropy

    def _place(self, ranks: Int[Tensor, " N"]) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
        """Numbers of the clusters that hold the words, 0 for the head, and rows of the head."""
        cluster = torch.zeros_like(ranks)
        for cutoff in self.cutoffs:
            cluster += ranks >= cutoff
        return cluster, ranks.where(cluster == 0, self._sizes[0] - 1 + cluster)

    def _layers(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of the head, ``(C + K, H)``, and of each cluster, ``(V_k, H_k)``."""
        if self.weight is None:
            words, *tails = self.word_weights
        else:
            words, *tails = self.weight.split(self._sizes)
        head = words if self.cluster_weight is None else torch.cat([words, self.cluster_weight])
        dtype = torch.promote_types(head.dtype, torch.float32)
        weights = [weight.to(dtype) for weight in (head, *tails)]
        if self.bias is None:
            return [(weight, None) for weight in weights]
        biases = self.bias.to(dtype).split([len(weight) for weight in weights])
        return list(zip(weights, biases, strict=True))

    def _project(self, rows: Float[Tensor, "*N H"], k: int) -> Float[Tensor, "*N H_k"]:
        if self.weight is not None:
            return rows
        return functional.linear(rows, self.projections[k].to(rows.dtype))

"""The adaptive softmax over a large vocabulary, tied to the embedding matrix."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fwlight.models.cross_entropy import CrossEntropy


class AdaptiveSoftmax(nn.Module):
    """Frequent words in a head, the others in clusters that share one place of it each.

    With word ids in order of falling frequency, the head of the words below the first cut-off and
    cluster i of those from cut-off i up to the next (Grave et al. 2017, arXiv 1609.04309, sec. 4):

        log p(w) = log softmax([W_head; C] h + [b_head; c])[w]                       w in the head
        log p(w) = log softmax([W_head; C] h + [b_head; c])[i]
                   + log softmax(W_i h + b_i)[w]                                w in cluster i

    W is the embedding matrix, whole: no cluster has a smaller width or a projection, as in the
    language models of Schlag et al. (2021b), whose cut-offs are 20,000, 40,000 and 200,000.

    Args:
        weight: The embedding matrix `[vocab_size, d_model]`, which becomes this layer's too.
        cutoffs: First word of every cluster, rising.

    Raises:
        ValueError: If the cut-offs do not divide the vocabulary into parts of at least one word.
    """

    def __init__(self, weight: nn.Parameter, *, cutoffs: Sequence[int]) -> None:
        super().__init__()
        vocab_size, d_model = weight.shape
        edges = [0, *cutoffs, vocab_size]
        if not cutoffs or any(low >= high for low, high in pairwise(edges)):
            raise ValueError(
                f"cutoffs={list(cutoffs)} must rise and lie between 1 and {vocab_size - 1}, "
                f"for a vocabulary of {vocab_size}"
            )
        self.sizes = [high - low for low, high in pairwise(edges)]
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.clusters = nn.Linear(d_model, len(cutoffs))
        self.cross_entropy = CrossEntropy()

    def forward(self, hidden: Float[Tensor, "*b m"]) -> Float[Tensor, "*b n"]:
        """Return the log-probability of every word, which serves as its logit."""
        head, *tails = (
            logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            for logits in (F.linear(hidden, *part) for part in self._parts())
        )
        frequent, *clusters = head.split([self.sizes[0], *(1 for _ in tails)], dim=-1)
        rare = (cluster + tail for cluster, tail in zip(clusters, tails, strict=True))
        return torch.cat([frequent, *rare], dim=-1)

    def nll(
        self, hidden: Float[Tensor, "b t m"], targets: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b t"]:
        """Return -log p(target) per position in nats; 0 where the target is IGNORE_INDEX.

        A cluster is read at those positions only whose target lies in it.
        """
        flat, words = hidden.flatten(0, 1), targets.flatten()
        head, *tails = self._parts()
        place, starts, start = words, [], self.sizes[0]
        for i, size in enumerate(self.sizes[1:]):
            starts.append(start)
            place = torch.where((words >= start) & (words < start + size), self.sizes[0] + i, place)
            start += size
        nll = self.cross_entropy(F.linear(flat, *head), place)
        for i, (tail, start) in enumerate(zip(tails, starts, strict=True)):
            rows = (place == self.sizes[0] + i).nonzero().squeeze(1)
            inner = self.cross_entropy(F.linear(flat[rows], *tail), words[rows] - start)
            nll = nll.index_add(0, rows, inner)
        return nll.view(targets.shape)

    def _parts(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of the head, which ends with the clusters, and of every cluster.

        One split each: its backward pass writes one gradient of the table, where every slice would
        write one of its own.
        """
        weights, biases = self.weight.split(self.sizes), self.bias.split(self.sizes)
        head = (
            torch.cat([weights[0], self.clusters.weight]),
            torch.cat([biases[0], self.clusters.bias]),
        )
        return [head, *zip(weights[1:], biases[1:], strict=True)]

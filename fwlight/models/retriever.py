"""The single-layer model of the synthetic retrieval tasks."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fwlight.checks import check_factory, check_sizes
from fwlight.mixers import Gates, KeyValues


class Retriever(nn.Module):
    """Write a sequence of associations into one memory, then read it with keys alone.

    Schlag et al. 2021b, sec. 6.1, and its reference code: keys have learnt embeddings e, values are
    one-hot vectors v that stay as they are, and

        k = W_k [v; e] + b_k      beta = sigmoid(w_b [v; e] + b_b)      q = W_q e + b_q

    The key network sees the value, so that a memory can tell two writes of one key apart. Instead
    of a dense product per position the tables W_k e and W_k v are looked up. The reference code
    has twice as many embeddings, of which it uses half.

    Args:
        n_keys: Number of different keys.
        n_values: Number of different values; None is `n_keys`.
        d_head: Size of q and k before the feature map.
        d_embedding: Size of the key embeddings; None is `int(2.2 n_keys)`, as in the reference.
        memory: Makes the memory from (d_head, d_value).

    Raises:
        ValueError: If a size is below 1, or the memory takes several writes a token.
    """

    memory: Any  # with the interface of `fwlight.mixers.FastWeights`

    def __init__(
        self,
        *,
        n_keys: int,
        n_values: int | None = None,
        d_head: int = 64,
        d_embedding: int | None = None,
        memory: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        n_values = n_keys if n_values is None else n_values
        d_embedding = int(2.2 * n_keys) if d_embedding is None else d_embedding
        check_sizes(n_keys=n_keys, n_values=n_values, d_head=d_head, d_embedding=d_embedding)
        check_factory(memory=memory)
        self.n_values = n_values
        self.memory = memory(d_head, d_value=n_values)
        self.embedding = nn.Embedding(n_keys, d_embedding)
        self.key = nn.Linear(n_values + d_embedding, d_head)
        self.query = nn.Linear(d_embedding, d_head)
        if self.memory.writes > 1:
            raise ValueError(f"writes={self.memory.writes}: a pair is one association, not several")
        rows = self.memory.gates.rows
        self.beta = nn.Linear(n_values + d_embedding, rows) if rows else None
        for layer in (self.key, self.query):
            if isinstance(self.memory, KeyValues):
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.uniform_(layer.weight, -(d_head**-0.5), d_head**-0.5)

    @property
    def state_size(self) -> int | None:
        """How many numbers the memory holds; None where they grow with the length."""
        return self.memory.state_size

    def forward(
        self, keys: Int[Tensor, "b t"], values: Int[Tensor, "b t"], queries: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b n v"]:
        """Return what each query reads after all associations are written, in order."""
        q = self.query(self.embedding(queries))
        k = self._of_pair(self.key, keys, values)
        logits = k[..., :0] if self.beta is None else self._of_pair(self.beta, keys, values)
        return self.answer(q, k, values, self.memory.gates(logits))

    def answer(
        self,
        q: Float[Tensor, "b n d"],
        k: Float[Tensor, "b t d"],
        values: Int[Tensor, "b t"],
        gates: Gates,
    ) -> Float[Tensor, "b n v"]:
        """Return the reads, given the projections; one query takes a path of its own."""
        k = k[:, None]
        if q.shape[1] == 1:
            return self.memory.recall(q, k, values, gates)
        v = F.one_hot(values, self.n_values).to(k.dtype)[:, None]
        return self.memory.read(q[:, None], self.memory.write(k, v, gates)).squeeze(1)

    def _of_pair(self, layer: nn.Linear, keys: Tensor, values: Tensor) -> Tensor:
        """Apply `layer` to [one-hot value; key embedding] by looking its products up."""
        value_part, key_part = layer.weight.split([self.n_values, self.embedding.embedding_dim], 1)
        by_key = F.linear(self.embedding.weight, key_part, layer.bias)
        # Rows in one piece: a transposed table takes four times as long to look up.
        return _look_up(by_key, keys) + _look_up(value_part.T.contiguous(), values)


def _look_up(table: Tensor, ids: Tensor) -> Tensor:
    """Return rows of a small table; on a CPU its gradient takes a third of F.embedding's time."""
    return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)

"""A weight matrix that writes itself."""

from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fwlight.feature_maps import SoftmaxFeatureMap
from fwlight.mixers.fast_weights import FastWeights
from fwlight.mixers.observation import Writes
from fwlight.mixers.recurrent import Mask, RecurrentMixer
from fwlight.ops import delta_rule
from fwlight.ops.recurrent_scans import (
    SelfReference,
    self_referential_scan,
    self_referential_writes,
)

_STRENGTHS = 4
"""One for each of the matrices."""


class SelfReferentialWeights(RecurrentMixer):
    """The modern self-referential weight matrix (Irie et al. 2022, arXiv 2202.05780).

    Every head reads an output, a query, a key and write strengths out of its own matrices, and
    writes all of them with these; equations in `fwlight.ops.recurrent_scans`. Every sequence starts
    from the same learnt matrices, N(0, 1 / d_head) at first.

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads.
        d_head: Size of a head.
        softmax_input: Whether a head's input passes a softmax.
        strength_mean: First mean of the columns that write strengths are read from.
        backend: "auto", "native" (compiled, on a CPU) or "recurrent" (token by token).
        short_conv: See `RecurrentMixer`.
        output_scale: See `RecurrentMixer`.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        softmax_input: bool = True,
        strength_mean: float = -1.0,
        backend: str = "auto",
        short_conv: int = 0,
        output_scale: float | None = 1.0,
    ) -> None:
        super().__init__(
            d_model,
            n_heads,
            d_head,
            vectors={"x": d_head},
            strengths=0,
            short_conv=short_conv,
            output_scale=output_scale,
        )
        self.softmax_input = softmax_input
        self.backend, self.allow_native = backend, backend != "recurrent"
        std = d_head**-0.5
        matrices = (torch.empty(n_heads, d_head, d_head).normal_(0.0, std) for _ in range(3))
        self.W_y, self.W_q, self.W_k = map(nn.Parameter, matrices)
        self.W_b = nn.Parameter(
            torch.empty(n_heads, d_head, _STRENGTHS).normal_(strength_mean, std)
        )
        # They write nothing themselves: they are where the core shows what each matrix is written.
        self.shown = nn.ModuleList(
            FastWeights(
                d_head,
                d_value=size,
                n_heads=n_heads,
                feature_map=SoftmaxFeatureMap,
                update_rule=delta_rule,
            )
            for size in (d_head, d_head, d_head, _STRENGTHS)
        )

    def core(
        self,
        given: dict[str, Tensor],
        logits: Float[Tensor, "b t n"],
        state: SelfReference,
        *,
        starts: Mask,
        padding_mask: Mask,
    ) -> tuple[Float[Tensor, "b h t d"], SelfReference]:
        """See `RecurrentMixer`."""
        del logits
        x = given["x"].softmax(-1) if self.softmax_input else given["x"]
        if starts is None and any(m.observer is not None for m in self.memories.values()):
            self._show(x, state, padding_mask)
        options = {"starts": starts, "holds": padding_mask, "backend": self.backend}
        return self_referential_scan(x, state, base=self._base(x), **options)

    def empty_core(self, like: Float[Tensor, "b t m"]) -> SelfReference:
        """See `RecurrentMixer`."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return SelfReference(
            *(w.to(dtype).expand(len(like), *w.shape).contiguous() for w in self._base(like))
        )

    @property
    def memories(self) -> dict[str, FastWeights]:
        """The matrix that outputs are read from, and those of queries, keys and strengths.

        They show what they are written with. Rows of several sequences show nothing: a sequence
        begins with the learnt matrices there, not with empty ones.
        """
        names = "", "queries", "keys", "strengths"
        return dict(zip(names, cast(Iterable[FastWeights], self.shown), strict=True))

    @property
    def core_size(self) -> int:
        """See `RecurrentMixer`."""
        return self.n_heads * self.d_head * (3 * self.d_head + _STRENGTHS)

    def _show(self, x: Tensor, state: SelfReference, padding_mask: Mask) -> None:
        W, found = state, []
        for t, x_t in enumerate(x.unbind(2)):
            _, k, values, b = self_referential_writes(x_t, W)
            found.append((k, *values, b))
            held = None if padding_mask is None else padding_mask[:, t : t + 1]
            _, W = self_referential_scan(x_t[:, :, None], W, holds=held, backend="recurrent")
        k, *values, b = (torch.stack(parts, dim=2) for parts in zip(*found, strict=True))
        for i, (memory, v) in enumerate(zip(self.memories.values(), values, strict=True)):
            if memory.observer is not None:
                shown = Writes(k, k, v, b[..., i], None, state[i], padding_mask)
                memory.observer.write(shown)
                memory.observer.read(x, padding_mask)

    def _base(self, like: Tensor) -> SelfReference:
        dtype = torch.promote_types(like.dtype, torch.float32)
        return SelfReference(*(w.to(dtype) for w in (self.W_y, self.W_q, self.W_k, self.W_b)))

"""FAVOR+: positive random features of the softmax kernel (Choromanski et al. 2021)."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (torch.linalg and Tensor.norm carry no types)

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import Function

from fwlight.checks import check_choice, check_sizes
from fwlight.feature_maps.base import FeatureMap
from fwlight.packing import begins_at

ORTHOGONAL = ("features", "inputs")
NORMS = ("independent", "shared")
REDRAW = ("never", "training", "always")

_UNSET = -math.inf  # the carried offset of a sequence that has shown only padding so far
_USES = 4096  # how many uses of draws are remembered until a backward pass asks for them
_MAX_EXPONENT = 60.0  # exp(60) = 1e26 leaves room for sums of products in float32


class FAVORFeatureMap(FeatureMap):
    """phi(x) = ([exp(W^T x - |x|^2 / 2); exp(-W^T x - |x|^2 / 2)] + eps) / sqrt(2 m), d_dot = 2 m.

    E[phi(q) . phi(k)] = exp(q . k) over the random matrix W `[d, m]` (Choromanski et al. 2021,
    lemma 1; Schlag et al. 2021b, eq. 20). Unscaled keys of a retrieval model grow until float32
    underflows (|k|^2 / 2 > 87), so the default divides inputs by d^(1/4), which makes the kernel
    exp(q . k / sqrt(d)), and subtracts a maximum from the exponents: per token for queries, and for
    keys whose scale `key_norm` cancels; one constant per sequence, the first key's maximum, for
    other keys. It is carried with the state, so that parts of a sequence agree, and does not depend
    on later tokens. Under a key_norm or read_norm these factors cancel, up to eps.

    The reference implementations are `input_scale=1.0, stabilise=False, kernel_eps=0.0,
    orthogonal="features", norms="shared", redraw="always"` (synthetic tasks) and
    `input_scale=1.0, stabilise=False, kernel_eps=1e-4, orthogonal="inputs", redraw="training"`
    (language model).

    Where activations are computed again in the backward pass (torch.utils.checkpoint), it is with
    the draw of the first pass, found by a number from the CPU's generator, which preserve_rng_state
    puts back; without that it is the newest draw.

    Args:
        d_head: Size d of the head vectors.
        num_features: Number m of random directions.
        input_scale: Factor on the inputs; None is d^(-1/4).
        stabilise: Whether maxima are subtracted from the exponents as above.
        kernel_eps: Added to every exponential.
        orthogonal: Which vectors are orthogonal in blocks: "features", the columns of W (one per
            random feature), or "inputs", its rows (one per coordinate of x), with which the
            estimate is only approximately that of the kernel.
        norms: Where the vectors' norms come from: a Gaussian of their own ("independent"), or the
            one whose directions were taken ("shared"), which biases the estimate.
        redraw: When W changes: "never", "training" (each sequence start in training mode) or
            "always" (also in evaluation). Never while a state is carried.

    Raises:
        ValueError: If a size is below 1 or an option is unknown.
    """

    seed: Tensor
    draws: Tensor
    projection: Tensor
    """The draw W `[d, m]`, saved with the model."""

    def __init__(
        self,
        d_head: int,
        num_features: int,
        *,
        input_scale: float | None = None,
        stabilise: bool = True,
        kernel_eps: float = 1e-6,
        orthogonal: str = "features",
        norms: str = "independent",
        redraw: str = "never",
    ) -> None:
        super().__init__()
        check_sizes(d_head=d_head, num_features=num_features)
        check_choice("orthogonal", orthogonal, ORTHOGONAL)
        check_choice("norms", norms, NORMS)
        check_choice("redraw", redraw, REDRAW)
        self.d_head, self.num_features = d_head, num_features
        self.input_scale = d_head**-0.25 if input_scale is None else input_scale
        self.stabilise, self.kernel_eps = stabilise, kernel_eps
        self.orthogonal, self.norms, self.redraw = orthogonal, norms, redraw
        # A map's draws follow from its own seed and a counter. The seed comes from the global
        # generator when the model is built, so layers differ and ranks agree; both are saved, so
        # a resumed run draws what an uninterrupted one would.
        self.register_buffer("seed", torch.randint(2**62, (), device="cpu"))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64, device="cpu"))
        # Registered before it is drawn, so that whoever counts can stop one that is too large.
        self.register_buffer("projection", torch.empty(d_head, num_features, device="meta"))
        self.projection = self._draw(torch.get_default_dtype(), 0)
        self._uses: dict[int, int] = {}
        """Which draw was used, by the number that was drawn for that use; the newest come last."""

    def d_dot(self, d_head: int) -> int:
        """Return 2 m."""
        if d_head != self.d_head:
            raise ValueError(f"this FAVOR+ map was drawn for d_head={self.d_head}, not {d_head}")
        return 2 * self.num_features

    def start_sequence(self) -> None:
        """Take a new draw where the policy says so."""
        if self._redraws() and not _in_backward():
            self.draws = self.draws + 1
            w = self._draw(self.projection.dtype, int(self.draws))
            self.projection = w.to(self.projection.device)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """Return the features without any stabiliser."""
        return self._features(*self._exponents(x))

    def query(self, q: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h t k"]:
        """Return query features, each token's largest exponent moved to 0."""
        wx, shift = self._exponents(q)
        return self._features(wx, shift + _peak(wx, shift) if self.stabilise else shift)

    def key(
        self,
        k: Float[Tensor, "b h t d"],
        *,
        offset: Float[Tensor, "b h"] | None = None,
        scale_cancels: bool = False,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h"] | None]:
        """Return key features and the sequence's offset; see `FeatureMap.key`."""
        wx, shift = self._exponents(k)
        if not self.stabilise:
            return self._features(wx, shift), None
        peak = _peak(wx, shift)
        if scale_cancels:
            return self._features(wx, shift + peak), None
        offset = _sequence_offset(peak.squeeze(-1), offset, padding_mask)
        offsets = offset[..., None]
        if starts is not None and k.shape[2]:
            # A sequence that begins in this row has the maximum of its first key.
            first = begins_at(starts)[:, None]
            own = peak.squeeze(-1).gather(2, first.clamp(min=0).expand(*peak.shape[:2], -1))
            offsets = own.where(first >= 0, offsets)
            offset = offsets[..., -1]
        constant = offsets.masked_fill(offsets == _UNSET, 0.0)
        # Later keys may be much larger than the one that the constant is from.
        shift = shift + constant[..., None]
        return self._features(wx, shift, max_exponent=_MAX_EXPONENT), offset

    def _exponents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return W^T x, and |x|^2 / 2, which is still to be subtracted from it and its negative."""
        x = x * self.input_scale
        projection = self.projection
        if self._redraws():
            projection: Any = self._used()  # pyright: ignore[reportCallIssue]
        # To the device too: a model that is built on the meta device has its draw elsewhere.
        return x @ projection.to(x), x.square().sum(-1, keepdim=True) / 2

    def _features(self, wx: Tensor, shift: Tensor, *, max_exponent: float | None = None) -> Tensor:
        # A token has one shift and many features: the scale joins the shift, not the features.
        log_scale = -0.5 * math.log(2 * self.num_features)
        if self.stabilise:
            u = torch.cat([wx, -wx], dim=-1)
            if max_exponent is not None:
                u = torch.minimum(u, shift.detach() + max_exponent)
            phi = (u + (log_scale - shift)).exp_()
        else:
            phi = _PositiveFeatures.apply(wx, shift - log_scale)
        return phi + self.kernel_eps * math.exp(log_scale) if self.kernel_eps else phi

    def _redraws(self) -> bool:
        if self.seed.is_meta:
            return False  # shapes alone are asked for
        return self.redraw == "always" or (self.redraw == "training" and self.training)

    @torch.compiler.disable
    def _used(self) -> Tensor:
        """Return the newest draw; where a pass is computed again, the one it was computed with."""
        number = int(torch.randint(2**62, (), device="cpu"))
        newest = int(self.draws)
        draw = self._uses.get(number, newest) if _in_backward() else newest
        if draw != newest:
            return self._draw(self.projection.dtype, draw)
        self._uses[number] = draw
        if len(self._uses) > _USES:
            del self._uses[next(iter(self._uses))]
        return self.projection

    def _draw(self, dtype: torch.dtype, number: int) -> Tensor:
        """Draw W: blocks of orthonormal vectors, rescaled to the norms of Gaussian vectors."""
        generator = torch.Generator().manual_seed(int(self.seed) + number)
        d, m = self.d_head, self.num_features
        count, size = (m, d) if self.orthogonal == "features" else (d, m)
        blocks: list[Tensor] = []
        for _ in range(math.ceil(count / size)):
            gaussian = _gaussian(size, generator)
            orthonormal, _ = torch.linalg.qr(gaussian)
            lengths = gaussian if self.norms == "shared" else _gaussian(size, generator)
            blocks.append(orthonormal.T * lengths.norm(dim=1, keepdim=True))
        vectors = torch.cat(blocks)[:count]
        return (vectors.T if self.orthogonal == "features" else vectors).contiguous().to(dtype)

    def extra_repr(self) -> str:
        """Show the options."""
        return (
            f"d_head={self.d_head}, num_features={self.num_features}, "
            f"input_scale={self.input_scale:.4g}, stabilise={self.stabilise}, "
            f"kernel_eps={self.kernel_eps}, orthogonal={self.orthogonal}, norms={self.norms}, "
            f"redraw={self.redraw}"
        )


def _in_backward() -> bool:
    """Say whether a backward pass is at work, which computes only what it was not left."""
    return torch._C._current_graph_task_id() != -1  # pyright: ignore


class _PositiveFeatures(Function):
    """[exp(wx - shift); exp(-wx - shift)], as the square of exp(x / 2).

    torch's exp takes 60 times as long on a CPU where its result underflows. exp(x / 2) underflows
    only where the square is zero, so it is clamped there; the square may underflow at no cost.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(wx: Tensor, shift: Tensor) -> Tensor:
        half = torch.cat([torch.add(shift / -2, wx, alpha=sign / 2) for sign in (1, -1)], dim=-1)
        least = math.ceil(math.log(torch.finfo(half.dtype).tiny))
        root = half.clamp_(min=least).exp_()
        return root.mul_(root)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (phi,) = ctx.saved_tensors
        d = grads[0] * phi
        plus, minus = d.chunk(2, dim=-1)
        return plus - minus, -d.sum(-1, keepdim=True)


def _gaussian(size: int, generator: torch.Generator) -> Tensor:
    # On the CPU also while a model is built on another device: the same seed, the same draw.
    return torch.randn(size, size, generator=generator, dtype=torch.float64, device="cpu")


def _peak(wx: Tensor, shift: Tensor) -> Tensor:
    """Return the largest exponent of every token."""
    return wx.detach().abs().amax(-1, keepdim=True) - shift.detach()


def _sequence_offset(
    peak: Float[Tensor, "b h t"],
    carried: Float[Tensor, "b h"] | None,
    padding_mask: Bool[Tensor, "b t"] | None,
) -> Float[Tensor, "b h"]:
    """Return the carried constant, or where there is none yet the first real key's maximum."""
    if peak.shape[2] == 0:
        first = peak.new_full(peak.shape[:2], _UNSET)
    elif padding_mask is None:
        first = peak[:, :, 0]
    else:
        position = (~padding_mask).int().argmax(-1)[:, None, None].expand(*peak.shape[:2], 1)
        nothing = padding_mask.all(-1)[:, None]
        first = peak.gather(2, position)[..., 0].masked_fill(nothing, _UNSET)
    return first if carried is None else torch.where(carried == _UNSET, first, carried)

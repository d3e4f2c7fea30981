"""One read of the delta rule's memory in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
from torch import Tensor

from fwlight.ops.chunks import refuse_second_derivative
from fwlight.ops.native.launch import CHUNK, LIBRARY, dense, empty_like, launch, sequence

LIBRARY.define("native_delta_read(Tensor q, Tensor k, Tensor beta) -> (Tensor a, Tensor kept)")
LIBRARY.define(
    "native_delta_read_backward(Tensor k, Tensor beta, Tensor a, Tensor kept, Tensor da)"
    " -> (Tensor dq, Tensor dk, Tensor dbeta)"
)


def native_delta_read(q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
    """Return the weights of all values, in one pass over the keys from the last to the first."""
    return torch.ops.fwlight.native_delta_read(q, k, beta)[0]


def _kept(k: Tensor) -> Tensor:
    """Return memory for the queries at chunk ends."""
    b, h, t, d = k.shape
    return k.new_empty((b, h, (t + CHUNK - 1) // CHUNK, d))


def _forward(q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    q, k = q.contiguous(), dense(k)
    a, kept = empty_like(beta), _kept(k)
    _launch(k, beta, a, None, None, None, q, kept)
    return a, kept


def _backward(
    k: Tensor, beta: Tensor, a: Tensor, kept: Tensor, da: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    k = dense(k)
    dq = k.new_empty((*k.shape[:2], k.shape[3]))
    dk, dbeta = empty_like(k), empty_like(beta)
    _launch(k, beta, a, da, dk, dbeta, dq, kept)
    return dq, dk, dbeta


def _launch(
    k: Tensor,
    beta: Tensor,
    a: Tensor,
    da: Tensor | None,
    dk: Tensor | None,
    dbeta: Tensor | None,
    q: Tensor,
    kept: Tensor,
) -> None:
    addresses = [number for x in (k, beta, a, da, dk, dbeta) for number in sequence(x)]
    sizes = *k.shape, torch.get_num_threads()
    name = "fwlight_delta_read"
    if launch(name, k.dtype, *sizes, *addresses, q.data_ptr(), kept.data_ptr()):
        raise MemoryError(f"{name}: no memory for k {list(k.shape)}")


def _keep_results(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    _, k, beta = inputs
    ctx.save_for_backward(k, beta, *output)


def _gradients(ctx: Any, da: Tensor, d_kept: Tensor) -> tuple[Tensor, ...]:
    del d_kept  # nobody reads them
    refuse_second_derivative()
    return torch.ops.fwlight.native_delta_read_backward(*ctx.saved_tensors, da)


def _fake_forward(q: Any, k: Any, beta: Any) -> Any:
    del q
    return empty_like(beta), _kept(k)


def _fake_backward(k: Any, beta: Any, a: Any, kept: Any, da: Any) -> Any:
    del a, kept, da
    return k.new_empty((*k.shape[:2], k.shape[3])), empty_like(dense(k)), empty_like(beta)


LIBRARY.impl("native_delta_read", _forward, "CPU")
LIBRARY.impl("native_delta_read_backward", _backward, "CPU")
torch.library.register_fake("fwlight::native_delta_read", _fake_forward, lib=LIBRARY)
torch.library.register_fake("fwlight::native_delta_read_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd(
    "fwlight::native_delta_read", _gradients, setup_context=_keep_results, lib=LIBRARY
)

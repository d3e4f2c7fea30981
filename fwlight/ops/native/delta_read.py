"""One read of the delta rule's memory in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
from torch import Tensor

from fwlight.ops.chunks import refuse_second_derivative
from fwlight.ops.native.launch import LIBRARY, dense, empty_like, launch, sequence

LIBRARY.define("native_delta_read(Tensor q, Tensor k, Tensor beta) -> (Tensor a, Tensor rest)")
LIBRARY.define(
    "native_delta_read_backward(Tensor k, Tensor beta, Tensor a, Tensor rest, Tensor da,"
    " Tensor d_rest) -> (Tensor dq, Tensor dk, Tensor dbeta)"
)


def native_delta_read(q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
    """Return the weights of all values, in one pass over the keys from the last to the first."""
    return torch.ops.fwlight.native_delta_read(q, k, beta)[0]


def _forward(q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    q, k = q.contiguous(), dense(k)
    a, rest = empty_like(beta), torch.empty_like(q)
    _launch(k, beta, a, None, None, None, q, rest)
    return a, rest


def _backward(
    k: Tensor, beta: Tensor, a: Tensor, rest: Tensor, da: Tensor, d_rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    k = dense(k)
    dq = d_rest.clone(memory_format=torch.contiguous_format)
    dk, dbeta = empty_like(k), empty_like(beta)
    _launch(k, beta, a, da, dk, dbeta, dq, rest.contiguous())
    return dq, dk, dbeta


def _launch(
    k: Tensor,
    beta: Tensor,
    a: Tensor,
    da: Tensor | None,
    dk: Tensor | None,
    dbeta: Tensor | None,
    q: Tensor,
    rest: Tensor,
) -> None:
    addresses = [number for x in (k, beta, a, da, dk, dbeta) for number in sequence(x)]
    sizes = *k.shape, torch.get_num_threads()
    name = "fwlight_delta_read"
    if launch(name, k.dtype, *sizes, *addresses, q.data_ptr(), rest.data_ptr()):
        raise MemoryError(f"{name}: no memory for k {list(k.shape)}")


def _keep_results(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    _, k, beta = inputs
    ctx.save_for_backward(k, beta, *output)


def _gradients(ctx: Any, da: Tensor, d_rest: Tensor) -> tuple[Tensor, ...]:
    refuse_second_derivative()
    return torch.ops.fwlight.native_delta_read_backward(*ctx.saved_tensors, da, d_rest)


def _fake_forward(q: Any, k: Any, beta: Any) -> Any:
    del k
    return empty_like(beta), torch.empty_like(q, memory_format=torch.contiguous_format)


def _fake_backward(k: Any, beta: Any, a: Any, rest: Any, da: Any, d_rest: Any) -> Any:
    del a, rest, da
    dq = torch.empty_like(d_rest, memory_format=torch.contiguous_format)
    return dq, empty_like(dense(k)), empty_like(beta)


LIBRARY.impl("native_delta_read", _forward, "CPU")
LIBRARY.impl("native_delta_read_backward", _backward, "CPU")
torch.library.register_fake("fwlight::native_delta_read", _fake_forward, lib=LIBRARY)
torch.library.register_fake("fwlight::native_delta_read_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd(
    "fwlight::native_delta_read", _gradients, setup_context=_keep_results, lib=LIBRARY
)

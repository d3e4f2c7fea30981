"""What other libraries call their kernels with, in the terms of this one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fwlight.mixers import Gates
from fwlight.mixers.normalisation import at_least_float32

_NAMES = {"query": "q", "key": "k", "value": "v", "gk": "g"}
"""Parameters of kernels that others call otherwise."""


def arguments_of(kernel: Callable[..., Any], args: Any, options: Any) -> dict[str, Any]:
    """Return what a kernel is called with by one set of names."""
    bound = inspect.signature(kernel).bind(*args, **options)
    bound.apply_defaults()
    given = dict(bound.arguments)
    given |= given.pop("kwargs", {})
    return {_NAMES.get(name) or name: value for name, value in given.items()}


def programmed(given: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Gates]:
    """Return q, k, v `[b, h, t, d]` and the gates of a call with tensors `[b, t, h, d]`."""
    q, k, v = (at_least_float32(given[x]).transpose(1, 2) for x in ("q", "k", "v"))
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q, k))
    beta, decay = given.get("beta"), given.get("g")
    if beta is not None:
        beta = at_least_float32(beta)
        if given.get("use_beta_sigmoid_in_kernel"):
            beta = beta.sigmoid() * (2.0 if given.get("allow_neg_eigval") else 1.0)
        beta = beta.transpose(1, 2)
    if decay is not None:
        decay = at_least_float32(decay)
        if given.get("use_gate_in_kernel"):
            if (bias := given.get("dt_bias")) is not None:
                decay = decay + bias.view(decay.shape[2:])
            rate = given["A_log"].float().exp().flatten()
            decay = -F.softplus(decay) * (rate if decay.ndim == 3 else rate[:, None])
        decay = decay.transpose(1, 2)
    return q, k, v, Gates(beta, decay)

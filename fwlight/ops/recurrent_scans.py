"""Recurrent cores: fast nets that see their own last output.

Each function is the specification of one core, token by token. States come in and go out, gradients
reach all of them. `starts` is True where a row begins another sequence, from its first state;
`holds` where a position is padding, which leaves everything as it is.

Shapes are [B, H, T, d] for sequences and [B, H, d, d] for fast weights, S^T q being a read. With
`backend` "auto" a compiled scan does the same on a CPU (once differentiable) where there are no
masks; "recurrent" keeps to the specification, and "native" says why where it cannot run.
"""

# pyright: reportConstantRedefinition=false
# (letters of matrices, as in the papers)

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fwlight.ops.native import scans
from fwlight.ops.scan_steps import Mask, begun, compiled, held, read, softmax, tokens, write


def delta_rnn_scan(
    z: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t d"],
    beta: Float[Tensor, "b h t"],
    R: Float[Tensor, "b h d d"],
    h: Float[Tensor, "b h d"],
    *,
    version: int = 2,
    eps: float = 0.0,
    starts: Mask = None,
    holds: Mask = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Delta RNN (Irie et al. 2021, arXiv 2106.06295): recurrent weights that are fast too.

        R_t = R_{t-1} + k_t (x) beta_t (v_t - R_{t-1}^T k_t)
        h_t = z_t + R_t^T softmax(h_{t-1})            version 2
        h_t = softmax(z_t + R_t^T h_{t-1})            version 1

    Args:
        z: What a Delta Net reads.
        k: Keys of the recurrent weights, features already.
        v: Their values.
        beta: Their write strengths.
        R: Recurrent weights to start from.
        h: Output to start from.
        version: 1 or 2.
        eps: Of version 2's softmax.
        starts: See the module.
        holds: See the module.
        backend: See the module.

    Returns:
        h_1 ... h_T, R_T and h_T.
    """
    if compiled(backend, z, starts, holds):
        o, R, h, _ = scans.native_delta_recurrence(
            z, k, v, beta, R, h, None, version=version, eps=eps
        )
        return o, R, h
    outputs: list[Tensor] = []
    for t, (z_t, k_t, v_t, b_t) in enumerate(tokens(z, k, v, beta)):
        R, h = begun(starts, t, R, h)
        new_R = write(R, k_t, v_t, b_t)
        if version == 2:
            new_h = z_t + read(new_R, softmax(h, eps))
        else:
            new_h = softmax(z_t + read(new_R, h))
        R, h = held(holds, t, (new_R, new_h), (R, h))
        outputs.append(h)
    return torch.stack(outputs, dim=2), R, h


def delta_lstm_scan(
    z: Float[Tensor, "b n t d"],
    k: Float[Tensor, "b n t d"],
    v: Float[Tensor, "b n t d"],
    beta: Float[Tensor, "b n t"],
    R: Float[Tensor, "b n d d"],
    h: Float[Tensor, "b h d"],
    c: Float[Tensor, "b h d"],
    *,
    version: int = 4,
    eps: float = 0.0,
    starts: Mask = None,
    holds: Mask = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Delta LSTM (Irie et al. 2021, arXiv 2106.06295), with fast weights for every gate.

    R_g is written as in `delta_rnn_scan`; then, with s = softmax(h_{t-1}),

        i = sigmoid(z_i + R_i^T s)    o = sigmoid(z_o + R_o^T s)    u = z_u + R_u^T s
        c_t = i u + (1 - i) c_{t-1}   h_t = c_t o

    Versions 1 to 3 have u = sigmoid(...); version 1 s = h_{t-1} and h_t = softmax(c_t o); version 3
    h_t = c_t o + z_u.

    Args:
        z: What a Delta Net of every gate reads; n = 3 h heads, those of i, then of u, then of o.
        k: Keys of the recurrent weights, features already.
        v: Their values.
        beta: Their write strengths.
        R: Recurrent weights to start from.
        h: Output to start from.
        c: Cell to start from.
        version: 1 to 4.
        eps: Of the softmax of h in versions 2 to 4.
        starts: See the module.
        holds: See the module.
        backend: See the module.

    Returns:
        h_1 ... h_T, R_T, h_T and c_T.
    """
    if compiled(backend, z, starts, holds):
        o, R, h, last = scans.native_delta_recurrence(
            z, k, v, beta, R, h, c, version=version, eps=eps
        )
        assert last is not None  # as c is not
        return o, R, h, last
    outputs: list[Tensor] = []
    for t, (z_t, k_t, v_t, b_t) in enumerate(tokens(z, k, v, beta)):
        R, h, c = begun(starts, t, R, h, c)
        new_R = write(R, k_t, v_t, b_t)
        s = h if version == 1 else softmax(h, eps)
        i, u, o = (z_t + read(new_R, s.repeat(1, 3, 1))).chunk(3, dim=1)
        i, o = i.sigmoid(), o.sigmoid()
        u = u if version == 4 else u.sigmoid()
        new_c = i * u + (1 - i) * c
        new_h = new_c * o
        if version == 1:
            new_h = softmax(new_h)
        elif version == 3:
            new_h = new_h + z_t.chunk(3, dim=1)[1]
        R, h, c = held(holds, t, (new_R, new_h, new_c), (R, h, c))
        outputs.append(h)
    return torch.stack(outputs, dim=2), R, h, c


class SlowRecurrence(NamedTuple):
    """The slow recurrent weights of a Recurrent Delta Net, by heads."""

    q: Float[Tensor, "h d d"]
    k: Float[Tensor, "h d d"]
    v: Float[Tensor, "h d d"]
    b: Float[Tensor, "h d"]


def recurrent_keys(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t d"],
    b: Float[Tensor, "b h t"],
    y: Float[Tensor, "b h t d"],
    slow: SlowRecurrence,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what a Recurrent Delta Net writes and reads with, from the outputs before.

        g_t = tanh(y_{t-1})    q = softmax(q + g R_q)    k = softmax(k + g R_k)
        v = v + g R_v          beta = sigmoid(b + g . r_b)

    Args:
        q: What the slow net emits for queries.
        k: For keys.
        v: For values.
        b: For write strengths.
        y: y_{t-1}.
        slow: R_q, R_k, R_v, r_b.
    """
    g = y.tanh()
    return (
        (q + g @ slow.q).softmax(-1),
        (k + g @ slow.k).softmax(-1),
        v + g @ slow.v,
        (b + (g * slow.b[:, None]).sum(-1)).sigmoid(),
    )


def recurrent_delta_scan(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t d"],
    b: Float[Tensor, "b h t"],
    S: Float[Tensor, "b h d d"],
    y: Float[Tensor, "b h d"],
    slow: SlowRecurrence,
    *,
    starts: Mask = None,
    holds: Mask = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Recurrent Delta Net (Irie et al. 2021, arXiv 2106.06295): the slow net sees the fast output.

        S_t = S_{t-1} + k_t (x) beta_t (v_t - S_{t-1}^T k_t)      y_t = S_t^T q_t

    with q, k, v, beta of `recurrent_keys`, whose arguments are the same.

    Args:
        q: See there.
        k: See there.
        v: See there.
        b: See there.
        S: Fast weights to start from.
        y: Output to start from.
        slow: See there.
        starts: See the module.
        holds: See the module.
        backend: See the module.

    Returns:
        y_1 ... y_T, S_T and y_T.
    """
    if compiled(backend, q, starts, holds):
        return scans.native_recurrent_delta(q, k, v, b, S, y, *slow)
    outputs: list[Tensor] = []
    for t in range(q.shape[2]):
        S, y = begun(starts, t, S, y)
        q_t, k_t, v_t, b_t = (x[:, :, t : t + 1] for x in (q, k, v, b))
        made = recurrent_keys(q_t, k_t, v_t, b_t, y[:, :, None], slow)
        q_t, k_t, v_t, b_t = (x.squeeze(2) for x in made)
        new_S = write(S, k_t, v_t, b_t)
        S, y = held(holds, t, (new_S, read(new_S, q_t)), (S, y))
        outputs.append(y)
    return torch.stack(outputs, dim=2), S, y


class SelfReference(NamedTuple):
    """The matrices of self-referential weights; of a sequence, or those that all start from."""

    y: Float[Tensor, "*b h d d"]
    q: Float[Tensor, "*b h d d"]
    k: Float[Tensor, "*b h d d"]
    b: Float[Tensor, "*b h d 4"]


def self_referential_scan(
    x: Float[Tensor, "b h t d"],
    W: SelfReference,
    *,
    base: SelfReference | None = None,
    starts: Mask = None,
    holds: Mask = None,
    backend: str = "auto",
) -> tuple[Tensor, SelfReference]:
    """Self-referential weight matrix (Irie et al. 2022, arXiv 2202.05780), which reads first.

        y = x W_y    q = softmax(x W_q)    k = softmax(x W_k)    b = sigmoid(x W_b)
        M <- M + b_M k (x) (q M - k M)     of each M of the four matrices

    Args:
        x: Inputs, features already.
        W: The matrices to start from.
        base: Those that every other sequence of a row starts from.
        starts: See the module.
        holds: See the module.
        backend: See the module.

    Returns:
        y_1 ... y_T, and the matrices after the last token.
    """
    if compiled(backend, x, starts, holds):
        y, last = scans.native_self_reference(x, torch.cat(W, dim=-1))
        d = x.shape[-1]
        return y, SelfReference(*last.tensor_split([d, 2 * d, 3 * d], dim=-1))
    outputs: list[Tensor] = []
    for t, x_t in enumerate(x.unbind(2)):
        if starts is not None and base is not None:
            begins = starts[:, t, None, None, None]
            W = SelfReference(*(b.where(begins, w) for w, b in zip(W, base, strict=True)))
        y_t, k_t, values, b_t = self_referential_writes(x_t, W)
        new = [
            write(w, k_t, v_t, b_t[..., i])
            for i, (w, v_t) in enumerate(zip(W, values, strict=True))
        ]
        W = SelfReference(*held(holds, t, new, W))
        outputs.append(y_t)
    return torch.stack(outputs, dim=2), W


def self_referential_writes(
    x: Float[Tensor, "b h d"], W: SelfReference
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Return y, the key, the value q M that each matrix is written with, and the 4 strengths."""
    y, q, k, b = (read(w, x) for w in W)
    q = q.softmax(-1)
    return y, k.softmax(-1), [read(w, q) for w in W], b.sigmoid()

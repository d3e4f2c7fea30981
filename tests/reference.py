"""Fast weight memories in slow loops, written from the paper's equations; the oracle of the tests.

Schlag et al. 2021b (arXiv 2102.11174), one batch element, head and token at a time, with their W
of shape [V, K], in the dtype of the arguments (meant for float64). Features come in mapped and
normalised. Differentiable, and independent of fwlight on purpose.
"""

import torch
from torch import Tensor


def reference_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    rule: str,
    read_norm: str = "none",
    state: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 0.0,
    decay: Tensor | None = None,
    erase_key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs `[B, H, T, V]`, the transposed last W `[B, H, K, V]` and z `[B, H, K]`.

    `read_norm` "output" divides by z.q (eqs. 20, 21); "full" also the retrieved old value by the
    z.k before the write (eqs. 26 to 28), which counts as 1 where z is zero. As in the reference
    code, `eps` is added to both divisors and the write is then z.k / (z.k + eps) of beta.

    With a decay, of logs, W first becomes W Diag(exp(decay)); under the delta rule the old value
    is then what the erase key retrieves, which is k without one.
    """
    heads = [
        [
            _one_head(
                q[b, h],
                k[b, h],
                v[b, h],
                torch.ones_like(v[b, h, :, 0]) if beta is None else beta[b, h],
                rule,
                read_norm,
                v.new_zeros(v.shape[3], k.shape[3]) if state is None else state[b, h].T,
                k.new_zeros(k.shape[3]) if z is None else z[b, h],
                eps,
                v.new_zeros(v.shape[2]) if decay is None else decay[b, h],
                k[b, h] if erase_key is None else erase_key[b, h],
            )
            for h in range(k.shape[1])
        ]
        for b in range(k.shape[0])
    ]
    o, W, z = (torch.stack([torch.stack([r[i] for r in row]) for row in heads]) for i in range(3))
    return o, W.mT, z


REFERENCES = ("sum", "delta", "fwm")


def _one_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    rule: str,
    read_norm: str,
    W: Tensor,
    z: Tensor,
    eps: float,
    decay: Tensor,
    p: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = []
    for q_t, k_t, v_t, beta_t, g_t, p_t in zip(q, k, v, beta, decay, p, strict=True):
        W = W * torch.exp(g_t)
        old = torch.mv(W, p_t)
        if read_norm == "full":
            c = torch.dot(z, k_t) if bool((z != 0).any()) else torch.ones_like(beta_t)
            old = old / (c + eps)
            beta_t = beta_t * c / (c + eps)
        if rule == "sum":
            W = W + beta_t * torch.outer(v_t, k_t)
        elif rule == "delta":
            W = W + beta_t * torch.outer(v_t - old, k_t)
        elif rule == "fwm":
            W = _write_fast_weight_memory(W, k_t, v_t, old, beta_t)
        else:
            raise ValueError(f"no reference for rule {rule!r}")
        z = z + k_t
        y = torch.mv(W, q_t)
        outputs.append(y if read_norm == "none" else y / (torch.dot(z, q_t) + eps))
    o = torch.stack(outputs) if outputs else v.new_zeros(0, v.shape[1])
    return o, W, z


def _write_fast_weight_memory(
    W: Tensor, k_t: Tensor, v_t: Tensor, old: Tensor, beta_t: Tensor
) -> Tensor:
    """Forget the old value, write the interpolated one, and go back into the unit ball."""
    if not bool(beta_t != 0) or not bool((k_t != 0).any()):
        return W
    new = W - torch.outer(old, k_t) + torch.outer(beta_t * v_t + (1 - beta_t) * old, k_t)
    if not bool((W != 0).any()):
        return new
    return new / (torch.relu(new.pow(2).sum().sqrt() - 1) + 1)

"""Attacks that follow the gradient of a classifier: projected gradient ascent, DeepFool."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

Network = Callable[[Tensor], Tensor]
"""Logits `[b, n]` of images `[b, c, h, w]`, of which they are a differentiable function."""


def pgd(
    network: Network,
    images: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    *,
    eps: float,
    method: str,
    steps: int = 10,
    drawn: Generator | None = None,
) -> Float[Tensor, "b c h w"]:
    """Return images in [0, 1] that differ by up to `eps` from the given ones, of larger loss.

    - sign: from a random place within eps, steps of 2.5 eps / `steps` by the sign of the gradient
      (Madry et al. 2018, arXiv 1706.06083).
    - adam: from the images, steps of Adam at a rate of eps / 2; with eps = .002 and ten steps the
      attack of Paul and Chen (2022, arXiv 2105.07581).
    - random: no attack but the control: each value moved by eps, up or down by chance.

    Args:
        network: What is attacked.
        images: Values in [0, 1].
        labels: The right classes.
        eps: Most that a value is changed by.
        method: "sign", "adam" or "random".
        steps: How many gradients are followed.
        drawn: Gives the random places and signs.

    Raises:
        ValueError: If there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"method={method} is none of {', '.join(METHODS)}")
    random = torch.empty(images.shape).uniform_(-1, 1, generator=drawn).to(images)
    if method == "random":
        return (images + eps * random.sign()).clamp(0, 1)
    delta = eps * random if method == "sign" else torch.zeros_like(images)
    # Not only the sum is held within [0, 1]: beyond it no gradient leads back.
    delta = ((images + delta).clamp(0, 1) - images).requires_grad_()
    adam = torch.optim.Adam([delta], lr=eps / 2, maximize=True)
    for _ in range(steps):
        loss = F.cross_entropy(network(images + delta), labels, reduction="sum")
        (delta.grad,) = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            if method == "adam":
                adam.step()
            else:
                delta += 2.5 * eps / steps * delta.grad.sign()
            delta.copy_((images + delta.clamp(-eps, eps)).clamp(0, 1) - images)
    return (images + delta.detach()).clamp(0, 1)


METHODS = ("sign", "adam", "random")
_CLASSES = 10


def deepfool(
    network: Network,
    images: Float[Tensor, "b c h w"],
    *,
    steps: int = 50,
    overshoot: float = 0.02,
) -> tuple[Float[Tensor, "b c h w"], Tensor]:
    """Return small changes of images after which each is in another class, nearly the smallest.

    At each step the classifier is taken to be linear where the image is, and the image moved onto
    the nearest boundary of its class (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599, algorithm 2).
    What is found is lengthened by `overshoot`, so that it lies behind the boundary. Values may
    leave [0, 1], as in the paper. The ten likeliest classes are looked at, as in its authors' code.

    Args:
        network: What is deceived.
        images: Values in [0, 1].
        steps: Most gradients that are followed.
        overshoot: Share of the change that is added.

    Returns:
        The changes, and for which images `[b]` the class is another one.
    """
    with torch.no_grad():
        own = network(images).argmax(-1)
    total = torch.zeros_like(images)
    going = torch.arange(len(images), device=images.device)
    for step in range(steps + 1):
        x = (images + (1 + overshoot) * total)[going].requires_grad_()
        logits = network(x)
        same = logits.detach().argmax(-1) == own[going]
        if step == steps or not same.any():
            going = going[same]
            break
        likely = logits.topk(min(_CLASSES, logits.shape[-1])).values  # its own class first
        slopes = [torch.autograd.grad(y, x, retain_graph=True)[0] for y in likely.sum(0)]
        move = _to_nearest(likely.detach(), torch.stack(slopes, dim=1))
        going, move = going[same], move[same]
        total[going] += move
    deceived = torch.ones(len(images), dtype=torch.bool, device=images.device)
    deceived[going] = False
    return (1 + overshoot) * total, deceived


def _to_nearest(logits: Tensor, slopes: Tensor) -> Tensor:
    """Return the way to the nearest boundary of the first of linear functions.

    Args:
        logits: Their values `[b, n]`.
        slopes: `[b, n, c, h, w]`.
    """
    each = torch.arange(len(logits), device=logits.device)
    slopes = slopes - slopes[:, :1]
    lengths = slopes.flatten(2).norm(dim=2)
    distances = (logits[:, :1] - logits) / lengths.clamp(min=1e-12)
    distances[:, 0] = torch.inf
    nearest = distances.argmin(-1)
    length = lengths[each, nearest].clamp(min=1e-12)
    factor = (distances[each, nearest] + 1e-6) / length
    return factor[:, None, None, None] * slopes[each, nearest]

"""Muon for the weights of linear maps, AdamW for everything else, as one optimiser."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for the group named "matrices", AdamW for all other groups.

    Muon takes matrices alone, and tables of tokens and read-outs are no maps between hidden states.
    Both are torch's own; their groups and their state are this optimiser's, so that it is stepped,
    stored and loaded as one.

    Args:
        groups: Dictionaries of parameters and options, each with its `name`.
        lr: Rate of groups without one.
        momentum: Muon's.
        nesterov: Whether Muon looks ahead.
        ns_steps: Steps of Muon's Newton-Schulz iteration.
        adjust_lr_fn: "match_rms_adamw": updates as large as AdamW's, so that one rate serves both
            (Liu et al. 2025, arXiv 2502.16982); "original": lr sqrt(max(1, rows / columns)).
        betas: AdamW's.
        eps: AdamW's.

    Raises:
        ValueError: A value is out of its range.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        hidden = [group for group in groups if group["name"] == "matrices"]
        others = [group for group in groups if group["name"] != "matrices"]
        self.parts: list[Optimizer] = []
        if hidden:
            options: dict[str, Any] = {"nesterov": nesterov, "ns_steps": ns_steps}
            options |= {"momentum": momentum, "adjust_lr_fn": adjust_lr_fn}
            self.parts.append(Muon(hidden, lr=lr, **options))
        if others:
            first, second = map(float, betas)
            self.parts.append(AdamW(others, lr=lr, betas=(first, second), eps=eps))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.defaults = {k: v for part in self.parts for k, v in part.defaults.items()}
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all groups; return what the closure did, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let the parts have this one's groups and state, also after a state was loaded."""
        groups = iter(self.param_groups)
        for part in self.parts:
            own = [next(groups) for _ in part.param_groups]
            part.__setstate__({"state": self.state, "param_groups": own})

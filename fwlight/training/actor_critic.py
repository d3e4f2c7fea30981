"""Reinforcement learning of agents with a memory, by the actor-critic loss."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fwlight.errors import ConfigError
from fwlight.evaluation import evaluation_mode
from fwlight.mixers.observation import unobserved
from fwlight.training.metrics import MeanReward
from fwlight.training.module import TrainingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import EpisodeBatch

ENTROPIES = ("shannon", "simpson")
_LEAST = 1e-8
"""Added to every probability of an action, as in the reference code."""


@runtime_checkable
class Environment(Protocol):
    """Worlds side by side; all chance in them is given from outside."""

    def reset(self, worlds: Tensor, draws: Float[Tensor, "b d"], /) -> Any:
        """Return the state at the beginning of an episode; see `EpisodeBatch`."""
        ...

    def observe(self, state: Any, /) -> Float[Tensor, "b i"]:
        """Return what agents see of a state."""
        ...

    def step(
        self, state: Any, actions: Int[Tensor, " b"], draws: Float[Tensor, "b d"], /
    ) -> tuple[Any, Float[Tensor, " b"]]:
        """Return the state after the agents' actions, and their rewards."""
        ...


class Played(NamedTuple):
    """Episodes that were played."""

    inputs: Float[Tensor, "b t i"]
    """What was seen."""
    actions: Int[Tensor, "b t"]
    """What was done then."""
    rewards: Float[Tensor, "b t"]
    """What came of it."""


class ActorCriticModule(TrainingModule):
    """Plays whole episodes, a new memory for each, and learns from what came of them.

        L = mean over agents and steps of -log p(a_t) (R_t - V_t) + c_V (R_t - V_t)^2 - c_H H(p_t)
        R_t = r_t + discount R_{t+1}, R_T = 0        in the first term R_t - V_t is a constant

    (Mnih et al. 2016, arXiv 1602.01783, without bootstrap, as of Schlag et al. 2021a.) An agent
    plays step by step and without gradient. What it saw and did is then read once more in one
    parallel pass, whose gradient goes through the memory over the whole episode. Dropout is active
    in that pass alone.

    Logs `train/{loss,reward,lr,grad_norm}` and `{val,test}/reward`, the mean sum of an episode's
    rewards, with actions drawn from the policy in evaluations, too.

    Args:
        network: As `fwlight.models.ActorCritic`, with memories of constant size.
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
        environment: Where agents act.
        discount: Of later rewards.
        value_weight: c_V.
        entropy_weight: c_H.
        entropy: H: "shannon", or "simpson", 1 - sum p^2, of which the reference code speaks.
        published: Curves of others, points of update and reward by name, which are logged beside
            the validation's as `published_<name>/reward`, linear between their points.

    Raises:
        ConfigError: The network's memory grows with the episode.
        ValueError: A number is out of its range, or `entropy` unknown.
    """

    monitored = ("val/reward",)

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerConfig,
        max_steps: int,
        environment: Environment,
        discount: float = 0.9,
        value_weight: float = 0.1,
        entropy_weight: float = 0.03,
        entropy: str = "shannon",
        published: Mapping[str, Sequence[Sequence[float | int]]] | None = None,
    ) -> None:
        super().__init__(network, optimizer=optimizer, max_steps=max_steps)
        if getattr(network, "state_size", None) is None:
            raise ConfigError(
                "an agent needs a memory of constant size; that of softmax attention grows with "
                "every step: choose another model"
            )
        if not 0 <= discount <= 1:
            raise ValueError(f"discount={discount:g} must be between 0 and 1")
        if entropy not in ENTROPIES:
            raise ValueError(f"entropy={entropy!r}: choose one of {', '.join(ENTROPIES)}")
        self.environment, self.discount, self.entropy = environment, discount, entropy
        self.value_weight, self.entropy_weight = value_weight, entropy_weight
        self.published = dict(published or {})
        self.evaluated = MeanReward()
        self._gained = torch.zeros(2, dtype=torch.float64)

    def forward(self, batch: EpisodeBatch) -> Float[Tensor, "b t"]:
        """Play, and return the losses; those who watch memories see the parallel pass alone."""
        return self.losses(self.play(batch))

    def play(self, batch: EpisodeBatch) -> Played:
        """Let the agents act through whole episodes, from empty memories and without gradient."""
        world, state = self.environment, None
        dtype = next(self.network.parameters()).dtype
        places = world.reset(batch.worlds, batch.draws[:, 0])
        seen, done, gained = [], [], []
        with evaluation_mode(self.network), unobserved(self.network):
            for t in range(batch.choices.shape[1]):
                x = world.observe(places).to(dtype)
                logits, _, state = self.network(x[:, None], initial_state=state)
                below = _probabilities(logits[:, 0]).cumsum(-1)[:, :-1]
                actions = (below <= batch.choices[:, t, None]).sum(-1)
                places, rewards = world.step(places, actions, batch.draws[:, t + 1])
                seen.append(x)
                done.append(actions)
                gained.append(rewards)
        return Played(*(torch.stack(x, dim=1) for x in (seen, done, gained)))

    def losses(self, played: Played) -> Float[Tensor, "b t"]:
        """Return the loss of every step of episodes that were played."""
        logits, values, _ = self.network(played.inputs)
        p = _probabilities(logits)
        returns = torch.empty_like(played.rewards)
        after = torch.zeros_like(returns[:, 0])
        for t in reversed(range(returns.shape[1])):
            after = returns[:, t] = played.rewards[:, t] + self.discount * after
        better = returns - values.to(p.dtype)
        chosen = p.log().gather(-1, played.actions[..., None]).squeeze(-1)
        of = {"shannon": -(p * p.log()).sum(-1), "simpson": 1 - p.square().sum(-1)}
        return (
            -chosen * better.detach()
            + self.value_weight * better.square()
            - self.entropy_weight * of[self.entropy]
        )

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        played = self.play(batch)
        losses = self.losses(played)
        # Here, as all ranks do: metrics are read by the first one alone, too.
        total, n = played.rewards.sum(dtype=torch.float64), len(played.rewards)
        gained = torch.stack((total, torch.full_like(total, n)))
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(gained)
        first = self._sums is None  # batch of an update
        self._gained = gained if first else self._gained + gained
        count = torch.tensor(losses.numel(), device=losses.device)
        return self.update_loss(losses.sum(dtype=torch.float64), count)

    def step_metrics(self) -> dict[str, float]:
        """Add the reward, over all ranks."""
        metrics = super().step_metrics()
        total, n = self._gained.tolist()
        return metrics and {**metrics, "train/reward": total / n}

    def rehearse(self, batch: EpisodeBatch) -> None:
        """Play one batch, and forget it."""
        self.play(batch)

    # Lightning's hooks

    def on_validation_epoch_start(self) -> None:
        """Start from nothing, also after an evaluation that was broken off."""
        self.evaluated.reset()

    def validation_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Play one batch."""
        self.evaluated.update(self.play(batch).rewards.sum(1))

    def on_validation_epoch_end(self) -> None:
        """Log what was gained, and what others had after as many updates."""
        self._report("val")
        step = self.trainer.global_step
        curves = {f"published_{name}/reward": x for name, x in self.published.items()}
        found = {name: interpolated(curve, step) for name, curve in curves.items()}
        self.record({name: x for name, x in found.items() if x is not None}, step)

    def on_test_epoch_start(self) -> None:
        """Start from nothing."""
        self.evaluated.reset()

    def test_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Play one batch."""
        self.evaluated.update(self.play(batch).rewards.sum(1))

    def on_test_epoch_end(self) -> None:
        """Log what was gained."""
        self._report("test")

    def _report(self, split: str) -> None:
        reward = self.evaluated.compute().item()
        self.record({f"{split}/reward": reward}, self.trainer.global_step)
        # For callbacks that watch a metric; every rank has the reduced value already.
        self.log(f"{split}/reward", reward, logger=False, sync_dist=True)


def interpolated(curve: Sequence[Sequence[float | int]], step: int) -> float | int | None:
    """Return the value of a curve, linear between its points; None where it has none.

    Args:
        curve: Points of step and value, by rising steps.
        step: Where.
    """
    for (start, low), (end, high) in pairwise(curve):
        if start <= step <= end:
            return low + (high - low) * (step - start) / (end - start)
    return None


def _probabilities(logits: Float[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
    """Return the policy, in float32 at least, no action of which is impossible."""
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1) + _LEAST
    return p / p.sum(-1, keepdim=True)

"""Travelling between islands by transports of unknown destination, for many agents at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from fwlight.types import DataError


class GraphState(NamedTuple):
    """Where agents are."""

    worlds: Tensor
    """By transport and island the island that is reached, -1 where none is, `[B, m, n]`, int64."""
    goals: Tensor
    """Islands to reach `[B]`, int64."""
    positions: Tensor
    """Islands where agents are `[B]`, int64."""
    last_actions: Tensor
    """Transports `[B]`, int64; m is none."""
    last_rewards: Tensor
    """`[B]`, float32."""
    timers: Tensor
    """Steps without reward since goal and position were drawn anew for them `[B]`, int64."""
    step: int
    """Steps made."""


class GraphEnvironment:
    """The partially observable graphs of Schlag et al. 2021a (arXiv 2011.07831).

    An action is a transport. Where it leads to the goal the reward is 10, and a new goal and a new
    position are drawn; where it leads nowhere the reward is -0.05. After more than n steps without
    reward both are drawn anew, too. Inputs are goal and position, one-hot each, the last action, 1,
    and the share of the episode that is over; the graph is not shown.

    What the authors' program has by mistake is an option, and as they have it by default.

    Args:
        n_islands: n, at least 3.
        n_transports: m, at least 3.
        episode_length: Steps.
        shifted_actions: Actions are shown one place further on, so that none and the 1 share one
            and the first place is never used.
        reward_input: Show the last reward, in whose place there is 0 else.
        reset_timer: Let steps be counted anew when the goal is reached.

    Raises:
        DataError: A number is too small.
    """

    n_draws = 2
    """Numbers in [0, 1) that a step takes for each agent, and a beginning too."""

    def __init__(
        self,
        *,
        n_islands: int = 5,
        n_transports: int = 3,
        episode_length: int = 30,
        shifted_actions: bool = True,
        reward_input: bool = False,
        reset_timer: bool = False,
    ) -> None:
        for name, value in (("n_islands", n_islands), ("n_transports", n_transports)):
            if not 3 <= value <= 32:
                raise DataError(f"task.environment.{name}={value} must be from 3 to 32")
        if episode_length < 1:
            raise DataError(f"task.environment.episode_length={episode_length} must be at least 1")
        self.n_islands, self.n_transports = n_islands, n_transports
        self.episode_length = episode_length
        self.shifted_actions, self.reward_input = shifted_actions, reward_input
        self.reset_timer = reset_timer

    @property
    def n_inputs(self) -> int:
        """Numbers that an agent is shown at every step."""
        return 2 * self.n_islands + self.n_transports + 4

    @property
    def n_actions(self) -> int:
        """Actions to choose from."""
        return self.n_transports

    def reset(self, worlds: Tensor, draws: Tensor) -> GraphState:
        """Begin.

        Args:
            worlds: As in `GraphState`.
            draws: Uniform numbers in [0, 1) `[B, 2]`.
        """
        goals = _below(self.n_islands, draws[:, 0])
        nothing = torch.full_like(goals, self.n_transports)
        zeros = torch.zeros_like(goals)
        positions = self._other(goals, draws[:, 1])
        return GraphState(worlds, goals, positions, nothing, zeros.float(), zeros, 0)

    def observe(self, state: GraphState) -> Tensor:
        """Return what agents are shown `[B, n_inputs]`, float32."""
        n, m = self.n_islands, self.n_transports
        shown = state.last_rewards.new_zeros(len(state.goals), self.n_inputs)
        places = (state.goals, n + state.positions, 2 * n + self.shifted_actions)
        for place in (*places[:2], places[2] + state.last_actions):
            shown.scatter_(1, place[:, None], 1.0)
        shown[:, 2 * n + m + 1] = 1.0
        shown[:, 2 * n + m + 2] = state.step / self.episode_length
        if self.reward_input:
            shown[:, 2 * n + m + 3] = state.last_rewards
        return shown

    def step(self, state: GraphState, actions: Tensor, draws: Tensor) -> tuple[GraphState, Tensor]:
        """Act, and return the state after it and the rewards `[B]`, float32.

        Args:
            state: Before.
            actions: Transports `[B]`.
            draws: As for `reset`.
        """
        agents = torch.arange(len(actions), device=actions.device)
        ends = state.worlds[agents, actions, state.positions]
        nowhere, arrived = ends < 0, ends == state.goals
        rewards = 10.0 * arrived - 0.05 * nowhere
        timers = state.timers + ~arrived
        if self.reset_timer:
            timers = timers.masked_fill(arrived, 0)
        expired = timers > self.n_islands
        drawn = arrived | expired
        goals = torch.where(drawn, self._other(state.goals, draws[:, 0]), state.goals)
        moved = torch.where(nowhere, state.positions, ends)
        after = GraphState(
            state.worlds,
            goals,
            torch.where(drawn, self._other(goals, draws[:, 1]), moved),
            actions.masked_fill(expired, self.n_transports),
            rewards,
            timers.masked_fill(expired, 0),
            state.step + 1,
        )
        return after, rewards

    def _other(self, islands: Tensor, draws: Tensor) -> Tensor:
        """Return islands, each with equal chances one of the others."""
        others = _below(self.n_islands - 1, draws)
        return others + (others >= islands)


def _below(n: int, draws: Tensor) -> Tensor:
    """Return whole numbers below n; in half precision a draw may have become 1."""
    return (draws * n).long().clamp(max=n - 1)

"""The graph POMDP as a task: which graphs, and the random numbers of every episode."""

from functools import cached_property
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from fwlight.types import EpisodeBatch
from tasks.draws import EvalDraw, TrainDraws, rows, seeded
from tasks.graph_environment import GraphEnvironment
from tasks.graphs import Graph, draw_graphs
from tasks.position import refuse_other_data
from tasks.ranks import epoch_limit, ranks
from tasks.required import check_least

SPLITS = ("test", "train", "valid")
"""In the order in which they are drawn; the authors' program has no third."""


class GraphPOMDPDataModule(lightning.LightningDataModule):
    """Graphs for training, validation and test, none of which is in two of the sets.

    A batch is one whole episode of every agent: its graphs, and all random numbers that are needed
    in it, as a function of seed and number. So a checkpoint, which is written between updates,
    needs no state of an environment, and agents play the same episodes on any number of ranks.

    Test graphs and training graphs are those of the authors' program, bit for bit; the validation's
    are the next ones of the same random numbers. Validation and test have the same random numbers
    whenever they are played, and for every seed.

    Args:
        environment: With its sizes.
        n_graphs: Of each set.
        graph_seed: Of the sets.
        randomize_train: Draw new training graphs for every batch.
        batch_size: Agents, over all ranks, on one training graph after the other.
        seed: Of the episodes of the training.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: A number is too small.
    """

    def __init__(
        self,
        *,
        environment: GraphEnvironment,
        n_graphs: int = 600,
        graph_seed: int = 666,
        randomize_train: bool = False,
        batch_size: int = 600,
        seed: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_least(1, n_graphs=n_graphs, batch_size=batch_size)
        self.environment = environment
        self.n_graphs, self.graph_seed = n_graphs, graph_seed
        self.randomize_train = randomize_train
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self._sizes = {
            "n_islands": environment.n_islands,
            "n_transports": environment.n_transports,
        }

    @property
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with."""
        return {
            "n_inputs": self.environment.n_inputs,
            "n_actions": self.environment.n_actions,
        }

    @cached_property
    def graphs(self) -> dict[str, list[Graph]]:
        """The graphs of every set; of training those without `randomize_train`."""
        state, before = np.random.RandomState(self.graph_seed), set[Graph]()
        found = {}
        for split in SPLITS:
            found[split] = draw_graphs(self.n_graphs, state, without=before, **self._sizes)
            before |= set(found[split])
        return found

    def train_dataloader(self) -> TrainDraws[EpisodeBatch]:
        """This rank's rows of the training batches."""
        _ = self.graphs  # before processes are forked
        return TrainDraws(
            self.training_batch,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch_limit=epoch_limit(self.trainer),
            num_workers=self.num_workers,
            **ranks(self.trainer),
        )

    def val_dataloader(self) -> EvalDraw[EpisodeBatch]:
        """One episode on each of this rank's validation graphs."""
        return self._evaluation("valid")

    def test_dataloader(self) -> EvalDraw[EpisodeBatch]:
        """One episode on each of this rank's test graphs."""
        return self._evaluation("test")

    def training_batch(self, number: int) -> EpisodeBatch:
        """Return one episode of every agent."""
        if self.randomize_train:
            words = torch.randint(2**32, (4,), generator=seeded("graphs", self.seed, number))
            others = {*self.graphs["test"], *self.graphs["valid"]}
            state = np.random.RandomState(words.tolist())
            graphs = draw_graphs(self.batch_size, state, without=others, **self._sizes)
        else:
            first, all_graphs = number * self.batch_size, self.graphs["train"]
            places = range(first, first + self.batch_size)
            graphs = [all_graphs[place % self.n_graphs] for place in places]
        return self._episodes(graphs, "train", self.seed, number)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        return {"n_graphs": self.n_graphs, "graph_seed": self.graph_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse another checkpoint's graphs."""
        refuse_other_data(state_dict, self.state_dict())

    def _evaluation(self, split: str) -> EvalDraw[EpisodeBatch]:
        place = ranks(self.trainer)
        # Every n-th: also where graphs cannot be shared evenly, each is played once.
        mine = slice(place["rank"], None, place["world_size"])
        return EvalDraw(lambda: rows(self._episodes(self.graphs[split], split), mine))

    def _episodes(self, graphs: list[Graph], *parts: int | str) -> EpisodeBatch:
        """Return an episode on each graph, whose random numbers are a function of all parts."""
        steps, generator = self.environment.episode_length, seeded("episodes", *parts)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(len(graphs), *shape, generator=generator, dtype=torch.float64)

        draws = uniform(steps + 1, self.environment.n_draws)
        return EpisodeBatch(torch.tensor(graphs), draws, uniform(steps))

"""Graphs of the authors' program, and agents on them against a loop over single steps."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fwlight.types import DataError
from tasks.graph_environment import GraphEnvironment
from tasks.graph_pomdp import GraphPOMDPDataModule


@pytest.fixture(scope="module")
def data():
    return GraphPOMDPDataModule(environment=GraphEnvironment())


def test_golden_graphs(data, shared_dir):
    golden = json.loads((shared_dir / "reference" / "fwm_graphs_golden.json").read_text())
    for split in ("test", "train"):
        assert [[list(row) for row in x] for x in data.graphs[split][:20]] == golden[split]


def test_no_graph_is_in_two_sets_and_all_are_as_published(data):
    sets = [set(data.graphs[split]) for split in ("train", "valid", "test")]
    assert all(len(graphs) == 600 for graphs in data.graphs.values())
    assert len(set.union(*sets)) == sum(map(len, sets))
    for graph in set.union(*sets):
        assert sum(end >= 0 for row in graph for end in row) == 10
        assert all(end != start for row in graph for start, end in enumerate(row))


def others(n, island):
    return [i for i in range(n) if i != island]


def by_hand(graph, actions, draws, *, shifted, reward_input, reset_timer):
    """One agent's inputs and rewards, in a plain loop."""
    goal = int(5 * draws[0][0])
    position = others(5, goal)[int(4 * draws[0][1])]
    last, reward, timer = 3, 0.0, 0
    inputs, rewards = [], []
    for k, action in enumerate(actions):
        x = [0.0] * 17
        x[goal] = x[5 + position] = x[10 + last + shifted] = 1.0
        x[14], x[15], x[16] = 1.0, k / len(actions), reward * reward_input
        inputs.append(x)
        end, old, last = graph[action][position], goal, action
        reward = -0.05 if end < 0 else 10.0 if end == goal else 0.0
        timer = 0 if end == old and reset_timer else timer + (end != old)
        if end == old or timer > 5:
            goal = others(5, old)[int(4 * draws[k + 1][0])]
            position = others(5, goal)[int(4 * draws[k + 1][1])]
        elif end >= 0:
            position = end
        if timer > 5:
            last, timer = 3, 0
        rewards.append(reward)
    return inputs, rewards


@pytest.mark.parametrize(
    "options",
    [
        {"shifted_actions": True, "reward_input": False, "reset_timer": False},
        {"shifted_actions": False, "reward_input": True, "reset_timer": True},
    ],
)
def test_environment_is_that_of_a_plain_loop(data, options):
    world, batch = GraphEnvironment(**options), data.training_batch(3)
    actions = (batch.choices * 3).long()
    state, seen, gained = world.reset(batch.worlds, batch.draws[:, 0]), [], []
    for k in range(30):
        seen.append(world.observe(state))
        state, rewards = world.step(state, actions[:, k], batch.draws[:, k + 1])
        gained.append(rewards)
    inputs, rewards = torch.stack(seen, 1), torch.stack(gained, 1)
    for i in range(0, 600, 10):
        own = {"shifted": options["shifted_actions"], "reward_input": options["reward_input"]}
        of_agent = (batch.worlds[i].tolist(), actions[i].tolist(), batch.draws[i].tolist())
        x, r = by_hand(*of_agent, reset_timer=options["reset_timer"], **own)
        torch.testing.assert_close(inputs[i], torch.tensor(x))
        torch.testing.assert_close(rewards[i], torch.tensor(r))


def test_a_random_policy_gains_what_the_authors_logs_begin_with(data):
    world, total = data.environment, []
    for number in range(5):
        batch = data._episodes(data.graphs["test"], "random", number)
        state = world.reset(batch.worlds, batch.draws[:, 0])
        for k in range(30):
            actions = (batch.choices[:, k] * 3).long()
            state, rewards = world.step(state, actions, batch.draws[:, k + 1])
            total.append(rewards.sum())
    # 44.96 and 45.48 are logged before the first update, of 600 episodes with a deviation of 20.
    assert torch.stack(total).sum() / 3000 == pytest.approx(44.96, abs=1.5)


def test_batches_are_a_function_of_seed_and_number_and_ranks_share_them(data):
    one, other = (GraphPOMDPDataModule(environment=data.environment, n_graphs=7) for _ in "ab")
    assert all(map(torch.equal, one.training_batch(4), other.training_batch(4)))
    assert not torch.equal(one.training_batch(4).draws, one.training_batch(5).draws)
    (whole,) = one.test_dataloader()
    parts = []
    for rank in range(2):
        other.trainer = cast(Any, SimpleNamespace(global_rank=rank, world_size=2))
        (part,) = other.test_dataloader()
        parts.append(part)
    for name, x in whole._asdict().items():
        shared = torch.empty_like(x)
        shared[::2], shared[1::2] = (getattr(part, name) for part in parts)
        assert torch.equal(shared, x)


def test_random_training_graphs_are_new_and_none_of_the_others(data):
    changing = GraphPOMDPDataModule(
        environment=data.environment, n_graphs=50, batch_size=20, randomize_train=True
    )
    batches = [changing.training_batch(number) for number in (0, 1, 0)]
    assert torch.equal(batches[0].worlds, batches[2].worlds)
    assert not torch.equal(batches[0].worlds, batches[1].worlds)
    played = {tuple(map(tuple, graph)) for x in batches for graph in x.worlds.tolist()}
    assert not played & {*changing.graphs["test"], *changing.graphs["valid"]}


def test_too_small_numbers_are_refused(data):
    with pytest.raises(DataError, match=r"task\.environment\.n_islands=2 must be from 3"):
        GraphEnvironment(n_islands=2)
    with pytest.raises(DataError, match=r"task\.n_graphs=0"):
        GraphPOMDPDataModule(environment=data.environment, n_graphs=0)

"""Graphs of islands and transports for the POMDP of Schlag et al. 2021a (arXiv 2011.07831)."""

from collections.abc import Container

import numpy as np

Graph = tuple[tuple[int, ...], ...]
"""By transport and island the island that is reached, or `NOWHERE`."""

NOWHERE = -1


def draw_graphs(
    n: int,
    state: np.random.RandomState,
    *,
    n_islands: int,
    n_transports: int,
    without: Container[Graph] = (),
) -> list[Graph]:
    """Return n graphs, in the order and by the random numbers of the authors' program.

    Args:
        n: How many; one may come twice.
        state: Random numbers, from which as many are taken as graphs are tried.
        n_islands: At least 3, or there may be none.
        n_transports: At least 3, likewise.
        without: Graphs that are drawn again.
    """
    found: list[Graph] = []
    while len(found) < n:
        graph = _draw(state, n_islands, n_transports)
        if graph not in without:
            found.append(graph)
    return found


def _draw(state: np.random.RandomState, n_islands: int, n_transports: int) -> Graph:
    """Draw until every island can be reached from every other in equally many steps."""
    while True:
        leads = [[NOWHERE] * n_islands for _ in range(n_transports)]
        for island in range(n_islands):  # can be left
            others = [i for i in range(n_islands) if i != island]
            to = others[state.randint(0, len(others))]
            leads[state.randint(0, n_transports)][island] = to
        for island in range(n_islands):  # can be reached
            free = [
                (transport, start)
                for transport, row in enumerate(leads)
                for start, end in enumerate(row)
                if end == NOWHERE and start != island
            ]
            transport, start = free[state.randint(0, len(free))]
            leads[transport][start] = island
        if _is_connected(leads, n_islands):
            return tuple(map(tuple, leads))


def _is_connected(leads: list[list[int]], n_islands: int) -> bool:
    """Whether there are paths of 2^n_islands steps between all islands: also aperiodic."""
    reached = [0] * n_islands  # bits of the islands that are one step away
    for row in leads:
        for start, end in enumerate(row):
            if end != NOWHERE:
                reached[start] |= 1 << end
    for _ in range(n_islands):
        before = list(reached)
        for start in range(n_islands):
            reached[start] = 0
            for via in range(n_islands):
                if before[start] >> via & 1:
                    reached[start] |= before[via]
    return all(bits == (1 << n_islands) - 1 for bits in reached)

"""Three processes that share some statistics: the child script of test_metric.py."""

import sys

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from fwlight.diagnostics import Written, diagnosis_statistics, finalise_diagnosis
from fwlight.diagnostics.metric import LayerStatistics
from fwlight.ops import delta_rule

SHARES = {1: [range(7)], 2: [range(5), range(5, 7)], 3: [range(4), range(4, 7), range(0)]}
"""Which sequences each of 1, 2 or 3 processes holds."""


def statistics(rows):
    """Return those of some of seven sequences, in a form that depends on the row alone."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(7, 2, 11, 6, dtype=torch.float64, generator=generator)
    k = k / k.norm(dim=-1, keepdim=True)
    v = torch.randn(7, 2, 11, 5, dtype=torch.float64, generator=generator)
    beta = 1.2 * torch.rand(7, 2, 11, dtype=torch.float64, generator=generator)
    rows = list(rows)
    return diagnosis_statistics(Written(k[rows], v[rows], beta[rows], delta_rule, q=k[rows]))


def reported(metric):
    """Return every reported value."""
    layers = metric.layers().items()
    return {x: finalise_diagnosis(y, 6).values for x, y in layers}


def joined(rows, *, group=None):
    """Return the values of all processes of a group, computed twice."""
    metric = LayerStatistics(dict.fromkeys("ab", statistics([])), process_group=group)
    calls = []
    reduce = dist.all_reduce
    dist.all_reduce = lambda x, op, group=None: (calls.append(op), reduce(x, op, group=group))
    try:
        metric.update({"a": statistics(rows[:1])} if len(rows) else {})
        metric.update({"a": statistics(rows[1:]), "b": statistics(rows)} if len(rows) else {})
        values = reported(metric)
    finally:
        dist.all_reduce = reduce
    # The state is its own again, so that going on counts nothing twice.
    return values, [str(op) for op in calls], float(metric.sums.sum())


def work(rank, port, path):
    """Join as one of three processes."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=3, rank=rank)
    pair = dist.new_group([0, 1])
    found = {3: joined(SHARES[3][rank])}
    if rank < 2:
        found[2] = joined(SHARES[2][rank], group=pair)
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked: PyTorch is loaded once.
    start_processes(work, (int(sys.argv[1]), sys.argv[2]), nprocs=3, start_method="fork")

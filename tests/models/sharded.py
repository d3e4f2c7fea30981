"""Two processes that share the parameters of a model (FSDP2): the child script of test_sharding."""

import sys
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.multiprocessing.spawn import start_processes

from fwlight.feature_maps import DPFPFeatureMap
from fwlight.mixers import FastWeights, MultiHeadAttention
from fwlight.models import DecoderLM
from fwlight.ops import delta_rule

WORDS, STEPS = 13, 3


def language_model() -> DecoderLM:
    """Return a small model with the delta rule, in float64."""
    torch.manual_seed(0)
    memory = partial(
        FastWeights, feature_map=DPFPFeatureMap, update_rule=delta_rule, key_norm="sum"
    )
    return DecoderLM(
        vocab_size=WORDS,
        d_model=16,
        n_layers=2,
        n_heads=2,
        d_head=8,
        d_ff=24,
        dropout=0.0,
        attention=partial(MultiHeadAttention, memory=memory),
    ).double()


def train(network: DecoderLM, rows: slice, *, world_size: int):
    """Return loss and gradients of some updates on some rows of a batch."""
    tokens = torch.randint(WORDS, (4, 18), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        hidden, _ = network.features(inputs[rows])
        # Gradients are averaged over processes.
        loss = network.nll(hidden, targets[rows]).sum() * world_size / targets.numel()
        loss.backward()
        grads = {name: p.grad for name, p in network.named_parameters()}
        whole = {n: g.full_tensor() if world_size > 1 else g.clone() for n, g in grads.items()}
        optimizer.step()
        found.append((loss.detach() / world_size, whole))
    return found


def work(rank: int, port: str, path: str) -> None:
    """Train half of the rows with half of every parameter, and all of it alone."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    torch.set_num_threads(1)
    network, mesh = language_model(), init_device_mesh("cpu", (2,))
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for name in ("features", "nll"):
        register_fsdp_forward_method(network, name)
    sharded = train(network, slice(2 * rank, 2 * rank + 2), world_size=2)
    for loss, _ in sharded:
        dist.all_reduce(loss)
    whole = language_model()
    found = {
        "sharded": sharded,
        "alone": train(whole, slice(0, 4), world_size=1),
        "mine": sum(p.to_local().numel() for p in network.parameters()),
        "all": sum(p.numel() for p in whole.parameters()),
    }
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    start_processes(work, tuple(sys.argv[1:]), nprocs=2, start_method="spawn")

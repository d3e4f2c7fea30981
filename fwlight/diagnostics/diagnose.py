"""All measurements of one memory, from the tensors that its operator used."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.diagnostics.beta import beta_statistics, beta_values
from fwlight.diagnostics.capacity import capacity_statistics, cluster_keys, random_interference
from fwlight.diagnostics.decay import decay_statistics, half_life
from fwlight.diagnostics.kind import rule_kind
from fwlight.diagnostics.norms import (
    norm_statistics,
    old_values,
    state_norms,
    states_along,
    write_norms,
    write_norms_of_states,
)
from fwlight.diagnostics.projection import projection_of, shrunk_statistics
from fwlight.diagnostics.recall import (
    finalise_recall,
    nearest_writes,
    read_state,
    recall,
    recall_statistics,
)
from fwlight.diagnostics.statistics import (
    OCTAVES,
    Statistics,
    binned,
    merge,
    octave,
    summarise,
    written,
)
from fwlight.diagnostics.verdict import best_error, best_statistics, verdicts
from fwlight.diagnostics.written import UpdateRule, Written

MIXED = (2.0, 1.0)
"""Exponents p and q of the mixed norm unless said otherwise; see `state_norms`."""


class Diagnosis(NamedTuple):
    """What a layer's memory does."""

    values: dict[str, Tensor]
    """Every reported value by name, `[H]`, or `[H, OCTAVES]` for curves."""
    verdicts: list[str]
    """"healthy", "rule-limited", "over capacity" or "unused", one a head; of capacity only."""


def diagnose(
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    beta: Float[Tensor, "b h t"] | None,
    *,
    rule: UpdateRule,
    q: Float[Tensor, "b h n k"] | None = None,
    key_sum: Float[Tensor, "b h k"] | None = None,
    read_eps: float = 0.0,
    padding_mask: Bool[Tensor, "b t"] | None = None,
    initial_state: Float[Tensor, "b h k v"] | None = None,
    query_mask: Bool[Tensor, "b n"] | None = None,
    mixed: tuple[float, float] = MIXED,
    gates: Mapping[str, Tensor] = MappingProxyType({}),
) -> Diagnosis:
    """Write these associations and say what the memory made of them.

    The tensors may come from any layer, for instance

        diagnosis = diagnose(k, v, beta, rule=fwlight.ops.delta_rule)

    Arguments are as in `Written`; mixed are the exponents p and q of the mixed norm.
    """
    own = {"q": q, "query_mask": query_mask, "key_sum": key_sum, "read_eps": read_eps}
    w = Written(k, v, beta, rule, gates, initial_state, padding_mask, **own)
    return finalise_diagnosis(diagnosis_statistics(w.real(), mixed=mixed), k.shape[-1])


def diagnosis_statistics(w: Written, *, mixed: tuple[float, float] = MIXED) -> Statistics:
    """Return what `diagnose` reports as statistics that `merge` adds.

    Their names depend on nothing but on whether there are queries, a decay, and a projection.

    Args:
        w: What is written, `real`.
        mixed: Exponents p and q of the mixed norm.
    """
    parts = [memory_norms(w, mixed=mixed), memory_capacity(w)]
    parts.append(beta_statistics(w.k, w.beta, padding_mask=w.padding_mask))
    if "decay" in w.gates:
        parts.append(decay_statistics(w.gates["decay"], padding_mask=w.padding_mask))
    if projection_of(w) != "none":
        parts.append(shrunk_statistics(w))
    return merge(*parts)


def finalise_diagnosis(statistics: Statistics, d_dot: int) -> Diagnosis:
    """Return the reported values and the verdicts of whatever was measured of a layer.

    All that was described is summarised; `interference/random_mean` and `_p95` are those of random
    directions in d_dot dimensions, to be held against `mean` and `p95`.
    """
    sums, values = statistics.sums, summarise(statistics)
    if "growth/states" in sums:
        values["growth/frobenius"] = sums["growth/frobenius"] / sums["growth/states"]
    if "beta/count" in sums:
        values |= beta_values(statistics)
    if "decay/count" in sums:
        values["decay/half_life"] = half_life(values["decay/log/mean"])
    if "interference/count" in sums:
        for name, x in zip(("mean", "p95"), random_interference(d_dot), strict=True):
            values[f"interference/random_{name}"] = torch.full_like(values["load/mean"], x)
    if "best/size" not in sums:
        return Diagnosis(values, [])
    values["best/error"] = best_error(statistics)
    for name in ("last", "superseded", "queries"):
        if f"{name}/age/counted" in sums:
            values |= finalise_recall(statistics, name)
    return Diagnosis(values, verdicts(values["best/error"], values["last/scaled_error"]))


def memory_norms(w: Written, *, mixed: tuple[float, float] = MIXED) -> Statistics:
    """Return the norms of the last state, of every write, and after 1, 2, 4, ... positions."""
    length = w.k.shape[2]
    steps = [2**i for i in range(length.bit_length())]
    positions = torch.tensor(steps, dtype=torch.long, device=w.k.device)
    states = states_along(w, [*steps, length])
    norms = states[:, :, :-1].double().square().sum((3, 4)).sqrt()
    reached = torch.ones_like(norms)
    if w.padding_mask is not None and length:
        # A shorter sequence has not grown further, however far it is padded.
        places = torch.arange(1, length + 1, device=w.k.device)
        reached *= positions <= (~w.padding_mask * places).amax(1)[:, None, None]
    bins = octave(positions).expand(norms.shape)
    growth = {
        "growth/frobenius": binned(norms * reached, bins, OCTAVES),
        "growth/states": binned(reached, bins, OCTAVES),
    }
    kind = rule_kind(w.rule, w.k, w.v, w.beta)
    if kind == "other" or "decay" in w.gates:  # what is forgotten is removed, too
        writes = write_norms_of_states(w)
    else:
        writes = write_norms(w.k, w.v, w.beta, old_values(w) if kind == "delta" else None)
    p, q = mixed
    return merge(
        norm_statistics(state_norms(states[:, :, -1], p=p, q=q)),
        norm_statistics(writes, written(w.k, w.padding_mask)),
        Statistics(growth, {}),
    )


def memory_capacity(w: Written) -> Statistics:
    """Return load, interference, the best possible error, and what every key and query recalls."""
    clusters = cluster_keys(w.k, padding_mask=w.padding_mask)
    found = [capacity_statistics(w.k, clusters), best_statistics(w.k, w.v, clusters)]
    _, S = w.run(start=w.initial_state)
    reads = read_state(w.k, S, key_sum=w.key_sum, eps=w.read_eps)
    superseded = clusters.written & ~clusters.last
    for name, counted in (("last", clusters.last), ("superseded", superseded)):
        outcome = recall(reads, w.v, clusters, counted=counted)
        found.append(recall_statistics(name, outcome, clusters))
    if w.q is not None:
        own = read_state(w.q, S, key_sum=w.key_sum, eps=w.read_eps)
        counted = written(w.q, w.query_mask) & clusters.written.any(-1, keepdim=True)
        targets = nearest_writes(w.q, clusters)
        outcome = recall(own, w.v, clusters, targets=targets, counted=counted)
        found.append(recall_statistics("queries", outcome, clusters))
    return merge(*found)

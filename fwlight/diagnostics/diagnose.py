"""All measurements of one layer at once, from the tensors that its operator used."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.diagnostics.beta import beta_statistics, finalise_beta
from fwlight.diagnostics.capacity import (
    Clusters,
    capacity_statistics,
    cluster_keys,
    finalise_capacity,
)
from fwlight.diagnostics.decay import decay_statistics, finalise_decay
from fwlight.diagnostics.kind import rule_kind
from fwlight.diagnostics.norms import (
    NO_GATES,
    UpdateRule,
    finalise_norms,
    norm_statistics,
    old_values,
    state_norms,
    states_along,
    write_norms,
    write_norms_of_states,
)
from fwlight.diagnostics.recall import (
    finalise_recall,
    nearest_writes,
    read_state,
    recall,
    recall_statistics,
)
from fwlight.diagnostics.statistics import OCTAVES, Statistics, binned, merge, octave, written
from fwlight.diagnostics.verdict import best_error, best_statistics, verdicts

PARTS = ("norms", "capacity", "beta", "decay")


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
    mixed: tuple[float, float] = (2.0, 1.0),
    gates: Mapping[str, Tensor] = NO_GATES,
) -> Diagnosis:
    """Write these associations and say what the memory made of them.

    The tensors may come from any layer, for instance

        diagnosis = diagnose(k, v, beta, rule=fwlight.ops.delta_rule)

    Args:
        k: Keys as the operator used them, after feature map and normalisation.
        v: Values.
        beta: Write strengths; None for rules without.
        rule: A function like those of `fwlight.ops`, options bound.
        q: The model's own queries, features already; None measures without them.
        key_sum: z, the sum of the keys, where reads are divided by z . q; None divides nothing.
        read_eps: Added to that divisor.
        padding_mask: True where a position is padding: it writes nothing.
        initial_state: The state before the first write; None is zero.
        query_mask: True where a query is padding.
        mixed: Exponents p and q of the mixed norm; see `state_norms`.
        gates: What the rule takes beside beta, by keyword: decay, erase_key.
    """
    statistics = diagnosis_statistics(
        k,
        v,
        beta,
        rule=rule,
        q=q,
        key_sum=key_sum,
        read_eps=read_eps,
        padding_mask=padding_mask,
        initial_state=initial_state,
        query_mask=query_mask,
        mixed=mixed,
        gates=gates,
    )
    return finalise_diagnosis(statistics, k.shape[-1])


def diagnosis_statistics(
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
    mixed: tuple[float, float] = (2.0, 1.0),
    gates: Mapping[str, Tensor] = NO_GATES,
    parts: Collection[str] = PARTS,
) -> Statistics:
    """Return what `diagnose` reports as statistics that `merge` adds; arguments as there.

    Their names depend on nothing but `parts`, those of `PARTS` to measure, and on whether there
    are queries.
    """
    if padding_mask is not None:
        hole = padding_mask[:, None]
        k, v = (x.masked_fill(hole[..., None], 0.0) for x in (k, v))
        beta = None if beta is None else beta.masked_fill(hole, 0.0)
        gates = {
            name: x.masked_fill(hole if x.ndim == 3 else hole[..., None], 0.0)
            for name, x in gates.items()
        }
    k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
    found = []
    if "norms" in parts:
        found.append(_norms(k, v, beta, rule, initial_state, padding_mask, mixed, gates))
    if "capacity" in parts:
        clusters = cluster_keys(k, padding_mask=padding_mask)
        found += [capacity_statistics(k, clusters), best_statistics(k, v, clusters)]
        _, S = rule(None, k, v, beta, initial_state=initial_state, **gates)
        reads = read_state(k, S, key_sum=key_sum, eps=read_eps)
        for name, counted in (
            ("last", clusters.last),
            ("superseded", clusters.written & ~clusters.last),
        ):
            outcome = recall(reads, v, clusters, counted=counted)
            found.append(recall_statistics(name, outcome, clusters))
        if q is not None:
            own = read_state(q, S, key_sum=key_sum, eps=read_eps)
            found.append(_queries(q, own, v, clusters, query_mask))
    if "beta" in parts:
        found.append(beta_statistics(k, beta, padding_mask=padding_mask))
    if "decay" in parts and "decay" in gates:
        found.append(decay_statistics(gates["decay"], padding_mask=padding_mask))
    return merge(*found)


def finalise_diagnosis(statistics: Statistics, d_dot: int) -> Diagnosis:
    """Return the reported values and the verdicts of `diagnosis_statistics`."""
    sums = statistics.sums
    values: dict[str, Tensor] = {}
    if "growth/states" in sums:
        values |= finalise_norms(statistics)
        values["growth/frobenius"] = sums["growth/frobenius"] / sums["growth/states"]
    if "beta/count" in sums:
        values |= finalise_beta(statistics)
    if "decay/count" in sums:
        values |= finalise_decay(statistics)
    if "best/size" not in sums:
        return Diagnosis(values, [])
    values |= finalise_capacity(statistics, d_dot)
    values["best/error"] = best_error(statistics)
    for name in ("last", "superseded", "queries"):
        if f"{name}/age/counted" in sums:
            values |= finalise_recall(statistics, name)
    return Diagnosis(values, verdicts(values["best/error"], values["last/scaled_error"]))


def _norms(
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    rule: UpdateRule,
    initial_state: Tensor | None,
    padding_mask: Tensor | None,
    mixed: tuple[float, float],
    gates: Mapping[str, Tensor],
) -> Statistics:
    """Return the norms of the last state, of every write, and after 1, 2, 4, ... positions."""
    length = k.shape[2]
    steps = [2**i for i in range(length.bit_length())]
    positions, along = torch.tensor(steps, dtype=torch.long, device=k.device), [*steps, length]
    states = states_along(k, v, beta, along, rule=rule, initial_state=initial_state, gates=gates)
    norms = states[:, :, :-1].double().square().sum((3, 4)).sqrt()
    reached = torch.ones_like(norms)
    if padding_mask is not None and length:
        # A shorter sequence has not grown further, however far it is padded.
        ends = (~padding_mask * torch.arange(1, length + 1, device=k.device)).amax(1)
        reached *= positions <= ends[:, None, None]
    bins = octave(positions).expand(norms.shape)
    growth = {
        "growth/frobenius": binned(norms * reached, bins, OCTAVES),
        "growth/states": binned(reached, bins, OCTAVES),
    }
    kind = rule_kind(rule, k, v, beta)
    if kind == "other" or "decay" in gates:  # what is forgotten is removed, too
        writes = write_norms_of_states(
            k, v, beta, rule=rule, initial_state=initial_state, gates=gates
        )
    else:
        old = None
        if kind == "delta":
            old = old_values(k, v, beta, rule=rule, initial_state=initial_state, gates=gates)
        writes = write_norms(k, v, beta, old)
    p, q = mixed
    return merge(
        norm_statistics(state_norms(states[:, :, -1], p=p, q=q)),
        norm_statistics(writes, written(k, padding_mask)),
        Statistics(growth, {}),
    )


def _queries(
    q: Tensor, reads: Tensor, v: Tensor, clusters: Clusters, query_mask: Tensor | None
) -> Statistics:
    counted = written(q, query_mask) & clusters.written.any(-1, keepdim=True)
    targets = nearest_writes(q, clusters)
    outcome = recall(reads, v, clusters, targets=targets, counted=counted)
    return recall_statistics("queries", outcome, clusters)

"""The parameters of a network by what they are, which decides how they are updated."""

from torch import nn

from fwlight.mixers import Gate

KINDS = ("matrices", "embeddings", "others", "vectors", "gates")

Named = list[tuple[str, nn.Parameter]]


def parameters_by_kind(module: nn.Module) -> dict[str, Named]:
    """Return the names and trainable parameters of every kind that there is.

    - matrices: weights of linear maps
    - embeddings: tables of tokens, and whatever maps back to tokens (a part named `output`)
    - others: what else has two dimensions or more, as short convolutions
    - vectors: biases, and gains of norms
    - gates: the numbers of gates that depend on no token, A_log and dt_bias for two

    Args:
        module: Whose parameters.
    """
    of_gates, of_tables, of_maps = (
        {p for part in module.modules() if isinstance(part, kind) for p in part.parameters()}
        for kind in (Gate, nn.Embedding, nn.Linear)
    )

    def kind(name: str, parameter: nn.Parameter) -> str:
        if parameter.ndim < 2:
            return "gates" if parameter in of_gates else "vectors"
        if parameter in of_tables or "output" in name.split("."):
            return "embeddings"
        return "matrices" if parameter in of_maps else "others"

    found: dict[str, Named] = {name: [] for name in KINDS}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found[kind(name, parameter)].append((name, parameter))
    return {name: named for name, named in found.items() if named}

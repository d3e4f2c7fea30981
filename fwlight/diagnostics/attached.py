"""Somebody else's model with memories of this library in the place of its layers' kernels."""

import inspect
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwlight.diagnostics.calls import arguments_of, programmed
from fwlight.diagnostics.layers import Layer
from fwlight.errors import ConfigError
from fwlight.evaluation import undisturbed
from fwlight.feature_maps import IdentityFeatureMap
from fwlight.mixers import FastWeights, Gate, Gates
from fwlight.ops import delta_rule, sum_rule
from fwlight.types import IGNORE_INDEX, Sequences

_LAYER = re.compile(r"(DeltaNet|DeltaAttention|LinearAttention)$")
"""Ends of the names of types: of transformers Qwen3NextGatedDeltaNet, OlmoHybridGatedDeltaNet,
KimiLinearDeltaAttention and relatives; of fla DeltaNet, GatedDeltaNet, KimiDeltaAttention,
LinearAttention and GatedLinearAttention."""
_KERNEL = re.compile(
    r"(torch_|fused_)?(chunk|recurrent)_"
    r"(gated_delta_rule|delta_rule|kimi_delta_attention|kda|linear_attn|gla)"
)
_SUMS = ("linear_attn", "gla")
_PROBE = 16
"""Tokens on which a kernel and the memory in its place are compared when they are attached."""
_ROUNDING = {torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""How far they may be apart, relative to the largest output; 1e-3 in other formats."""


class Attached(nn.Module):
    """A model as `find_out` and `intervene` take one, until its context ends.

        with attach(model) as attached:
            findings = find_out(attached, batches, layers=attached.layers)
            effects = intervene(attached, batches, layers=attached.layers)

    Meanwhile what its layers pass to their kernels goes to `FastWeights`, whose reads they get.
    Batches are `fwlight.types.LMBatch`; calls with a state, as decoding makes them, or with packed
    sequences go to the kernel and are not seen.
    """

    left_out: dict[str, str]
    """Names and types of layers that are called like such but called no kernel that is known."""

    def __init__(self, model: nn.Module, named: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        found = {name: part for name, part in named.items() if any(True for _ in _kernels(part))}
        self.left_out = {name: type(named[name]).__name__ for name in named.keys() - found.keys()}
        self.places = nn.ModuleList(_Place(name, type(x).__name__) for name, x in found.items())
        labels = Counter(place.label for place in self._places())
        for place, layer in zip(self._places(), found.values(), strict=True):
            place.label = place.name if labels[place.label] > 1 else place.label
            names = [name for name, _ in layer.named_children()]
            place.short_conv = any("conv1d" in name for name in names) or None
            place.beta_max = 2.0 if getattr(layer, "allow_neg_eigval", False) else 1.0
        self.n_types = embedding_of(model).num_embeddings
        self._running: list[_Place] = []
        self._undo = ExitStack()
        try:
            self._open(list(found.values()))
        except BaseException:
            self.close()
            raise

    @property
    def network(self) -> nn.Module:
        """What is watched: this, the memories beside the model."""
        return self

    @property
    def layers(self) -> list[Layer]:
        """Its memories, called as the blocks that hold them: `layer<i>`."""
        return [Layer(x.label, x.memory, x.memory.n_heads, self.n_types) for x in self._places()]

    def forward(self, batch: Any) -> Tensor:
        """Negative log-likelihood `[b, t]` of every target; 0 where it is `IGNORE_INDEX`."""
        logits = self.model(input_ids=batch.inputs, use_cache=False).logits.float()
        targets = batch.targets
        return F.cross_entropy(logits.mT, targets, reduction="none", ignore_index=IGNORE_INDEX)

    def sequences(self, batch: Any) -> dict[str, Sequences]:
        """The inputs."""
        return {"": Sequences(batch.inputs)}

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the layers their kernels back."""
        self._undo.close()

    def _open(self, layers: Sequence[nn.Module]) -> None:
        """Take the kernels' places, and look what they are given."""
        taken: dict[tuple[int, str], Any] = {}
        for place, layer in zip(self._places(), layers, strict=True):
            begin = layer.register_forward_pre_hook(
                lambda *_, place=place: self._running.append(place)
            )
            end = layer.register_forward_hook(
                lambda *_: [None, self._running.pop()][0], always_call=True
            )
            self._undo.callback(begin.remove)
            self._undo.callback(end.remove)
            for owner, name, kernel in _kernels(layer):
                taken.setdefault((id(owner), name), (owner, name, kernel))
        for owner, name, kernel in taken.values():
            owner[name] = partial(self._called, name, kernel)
            self._undo.callback(owner.__setitem__, name, kernel)
        device = next(self.model.parameters()).device
        ids = torch.arange(_PROBE, device=device)[None] % self.n_types
        with undisturbed(self.model):
            self.model(input_ids=ids, use_cache=False)
        # A name says little: KimiLinearAttention is softmax attention, and calls no such kernel.
        self.left_out |= {place.name: place.kind for place in self._places() if not place.checked}
        self.places = nn.ModuleList(place for place in self._places() if place.checked)

    def _called(self, name: str, kernel: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Let the memory of the layer that runs do what a kernel would."""
        given = arguments_of(kernel, args, options) if self._running else {}
        if not given or any(given.get(x) is not None for x in ("initial_state", "cu_seqlens")):
            return kernel(*args, **options)
        place = self._running[-1]
        output, state = place.run(name, given)
        if name not in place.checked:
            place.check(name, output, kernel(*args, **options)[0])
        return output, state if given.get("output_final_state") else None

    def _places(self) -> Iterator["_Place"]:
        yield from self.places  # pyright: ignore


def attach(model: nn.Module) -> Attached:
    """Put memories of this library in the place of the kernels of a model's layers.

    Layers are found by the names of their types, kernels by those of the functions that layers have
    as attributes or that stand where their code is: the delta rule, with or without a decay for
    each head or key channel, and linear attention. Nothing of the model's library is imported, and
    no parameter is changed. The model runs once on 16 tokens, on which every memory must return
    what the kernel does.

    Args:
        model: A language model, called as those of transformers: `model(input_ids=...).logits`.

    Returns:
        A context at whose end the layers have their kernels again.

    Raises:
        ConfigError: If there is no such layer, a kernel does not do what its name says, or another
            model, or this one, has its memories in the place of these kernels already.
    """
    named = {
        name: part for name, part in model.named_modules() if _LAYER.search(type(part).__name__)
    }
    if not named:
        raise ConfigError(
            f"{type(model).__name__} has no layer of (gated) delta rule or linear attention "
            "that is known here"
        )
    attached = Attached(model, named)
    if not attached.layers:
        attached.close()
        kinds = ", ".join(sorted({type(x).__name__ for x in named.values()}))
        raise ConfigError(f"{type(model).__name__}: {kinds} called no kernel that is known here")
    return attached


def embedding_of(model: nn.Module) -> nn.Embedding:
    """Return a model's embedding of tokens; ConfigError if it has none."""
    found = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # pyright: ignore
    if not isinstance(found, nn.Embedding):
        raise ConfigError(f"{type(model).__name__} has no embedding of tokens to begin with")
    return found


class _Emitted(Gate):
    """A decay that the model computes itself."""

    emits = ("decay",)
    rows = 0
    per_write = False

    def __init__(self, **sizes: int) -> None:
        super().__init__()


class _Place(nn.Module):
    """One layer's name, and the memory that does the work of its kernels."""

    short_conv: bool | None = None
    """Whether the layer has one."""
    beta_max = 1.0

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.name, self.kind = name, kind
        numbers = [part for part in name.split(".") if part.isdecimal()]
        self.label = f"layer{numbers[-1]}" if numbers else name
        self.checked: set[str] = set()
        """Kernels that do what the memory does."""
        self.memory: Any = None

    def run(self, name: str, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return what a kernel would, `[b, t, h, v]`, and its last state."""
        q, k, v, gates = programmed(given)
        if self.memory is None:
            self.memory = self._made(name, given, q, k, v, gates)
        output, state = self.memory(q, k, v, gates)
        return output.transpose(1, 2).to(given["v"].dtype), state.weights

    def check(self, name: str, output: Tensor, wanted: Tensor) -> None:
        """Refuse what the memory returns if it is not what the kernel does."""
        same = output.shape == wanted.shape
        size = float(wanted.abs().max()) if same else 0.0
        apart = float((output - wanted).abs().max()) if same else float("inf")
        if not apart <= _ROUNDING.get(wanted.dtype, 1e-3) * size:
            raise ConfigError(
                f"{self.name} ({self.kind}): {name} does something else than its name says: it is "
                f"up to {apart:.3g} from what the rule returns, which is at most {size:.3g}"
            )
        self.checked.add(name)

    def _made(
        self, name: str, given: Mapping[str, Any], q: Tensor, k: Tensor, v: Tensor, gates: Gates
    ) -> FastWeights:
        """Return a memory like the kernel."""
        sums = name.endswith(_SUMS)
        unit = all(bool(((x.square().sum(-1) - 1).abs() < 1e-2).all()) for x in (q, k))
        norm = "l2_smooth" if given.get("use_qk_l2norm_in_kernel") else "l2" if unit else "none"
        divided = name.endswith("linear_attn") and given.get("normalize")
        scale = given.get("scale")
        with warnings.catch_warnings():
            # A sum without any norm, or with a divisor that may vanish: it is the model's own.
            warnings.simplefilter("ignore", RuntimeWarning)
            return FastWeights(
                k.shape[-1],
                d_value=v.shape[-1],
                n_heads=v.shape[1],
                feature_map=IdentityFeatureMap,
                update_rule=sum_rule if sums else delta_rule,
                beta_max=self.beta_max,
                decay=None if gates.decay is None else _Emitted,
                key_norm=norm,
                key_norm_eps=1e-6 if norm == "l2_smooth" else 0.0,
                query_norm_eps=1e-6 if norm == "l2_smooth" else 0.0,
                read_norm="output" if divided else "none",
                read_eps=1e-10,
                # Reads that are divided have the scale of their queries in the divisor, too.
                output_scale=1.0 if divided else scale,
            )


def _kernels(layer: nn.Module) -> Iterator[tuple[dict[str, Any], str, Callable[..., Any]]]:
    """Yield the kernels of a layer, and the dictionary each is in: its own, or its code's."""
    code = inspect.unwrap(type(layer).forward)
    there = getattr(code, "__globals__", vars(sys.modules[type(layer).__module__]))
    for owner in (vars(layer), there):
        for name, value in owner.items():
            if not (callable(value) and _KERNEL.fullmatch(name)):
                continue
            if isinstance(getattr(getattr(value, "func", None), "__self__", None), Attached):
                raise ConfigError(
                    f"a model with {type(layer).__name__} is attached already, and they share "
                    "their kernels: leave its context, or call its close(), first"
                )
            yield owner, name, value

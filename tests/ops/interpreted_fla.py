"""The kernels of fla-core on a CPU, in Triton's interpreter, against the token loop in float64.

A process of its own, as Triton reads TRITON_INTERPRET when it is first imported; it prints the
largest relative error of every case. The numbers are float16: the interpreter multiplies the bits
of bfloat16 numbers as if they were integers.
"""

import builtins
import itertools
import os
import sys

os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch
from triton.runtime.autotuner import Autotuner

from fwlight.ops import backends, delta_rule, fla, sum_rule
from tests.ops.discovery import make_gates, make_inputs, relative_error, weighted_sum


class Index(int):
    """The counter of a loop; in a compiled kernel it is a tensor."""

    def to(self, dtype):
        return self


def run_first(self, *args, **kwargs):
    """Take the first configuration: there is no device on which to time them."""
    self.nargs = dict(zip(self.arg_names, args, strict=False))
    config = self.prune_configs(kwargs)[0]
    chosen = {**kwargs, **config.all_kwargs()}
    if config.pre_hook is not None:
        config.pre_hook({**self.nargs, **chosen})
    return self.fn.run(*args, **chosen)


def results(function, backend, inputs, *, carried, reads):
    arguments = [inputs[0] if reads else None, *inputs[1:4]]
    state = inputs[4] if carried else None
    gates = {"decay": inputs[5]} if len(inputs) > 5 else {}
    o, last = function(*arguments, **gates, initial_state=state, backend=backend)
    assert last.dtype == (torch.float64 if backend == "recurrent" else torch.float32)
    assert o is None or o.dtype == inputs[2].dtype
    outputs = [None if x is None else x.double() for x in (o, last)]
    leaves = [x for x in (*arguments, state, *gates.values()) if x is not None]
    gradients = torch.autograd.grad(weighted_sum(*outputs), leaves)
    return [*(x for x in outputs if x is not None), *gradients]


def main():
    assert all(fla._import_obstacle(modules) is None for modules in fla._MODULES.values())
    for module in (sys.modules[x.__module__] for x in (delta_rule, sum_rule)):
        able = (x._replace(obstacle=backends.no_obstacle) for x in module.BACKENDS)
        module.BACKENDS = tuple(able)
    Autotuner.run = run_first
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops."):
            module.range = lambda *limits: map(Index, builtins.range(*limits))
    decays = (None, "b h t", "b h t k")
    cases = itertools.product((delta_rule, sum_rule), (2, 70), (False, True), (True, False), decays)
    for function, t, carried, reads, dims in cases:
        gates = [] if dims is None else make_gates((("decay", dims),), t, d_key=16).values()
        *tokens, state = (x.detach() for x in make_inputs(t, d_key=16, d_value=32))
        inputs = [x.requires_grad_() for x in (*(x.half() for x in tokens), state.float())]
        # Gently: what is left of the first token is not small beside rounding errors.
        inputs += [(x.detach().float() / 32).requires_grad_() for x in gates]
        exact = [x.detach().double().requires_grad_() for x in inputs]
        found = results(function, "fla", inputs, carried=carried, reads=reads)
        wanted = results(function, "recurrent", exact, carried=carried, reads=reads)
        errors = [relative_error(x, y) for x, y in zip(found, wanted, strict=True)]
        print(function.__name__, t, carried, reads, dims, max(errors), sep=";", flush=True)


if __name__ == "__main__":
    main()

"""Several processes of one run, of which each holds a share of the weights alone."""

import copy
import itertools
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from fwlight.compiling import is_compiled
from fwlight.errors import ConfigError
from fwlight.lightning_internals import leave_out_of_synchronisation
from fwlight.models import Stack
from fwlight.run.ranks import RanksStrategy
from fwlight.sharding import laid_out_as
from fwlight.training.module import TrainingModule

_STEPS = ("training_step", "validation_step", "test_step", "rehearse")
"""What of a module is called from outside: within, it may use any parameter."""
_BY_ELEMENT = (Adam, AdamW, SGD)
"""Optimisers that update every number by itself, so that a share is updated as the whole is."""
_STORED_WHOLE = ("state_dict", "optimizer_states", "average")


class FullyShardedStrategy(RanksStrategy):
    """Data parallel with shares: FSDP2, its units the blocks of every `Stack`, then all the rest.

    Every process holds its share of weights, gradients and optimiser state; the weights of a unit
    are gathered while it is at work. Checkpoints are those of one process: they are written whole
    by the first one, and every process takes its share of what it reads.

    Lightning's ModelParallelStrategy is not its base: that writes and reads checkpoints past the
    `CheckpointIO`, restores after its set-up, and wants modules to shard themselves. Of DDPStrategy
    only the wrapper is replaced.
    """

    def setup(self, trainer: Trainer) -> None:
        """Check that what is asked for can be exact, and set up.

        Raises:
            ConfigError: It cannot.
        """
        module = self.lightning_module
        assert module is not None
        if not (isinstance(module, TrainingModule) and module.shardable):
            raise ConfigError(
                "trainer=fsdp shards the networks of task=lm and task=translation; use trainer=ddp"
            )
        if is_compiled(module.network):
            raise ConfigError(
                "compile=true with trainer=fsdp would gather weights within compiled code; use "
                "compile=false, or trainer=ddp"
            )
        if trainer.precision == "16-mixed":
            raise ConfigError(
                "trainer.precision=16-mixed scales gradients by what one process sees of them; "
                "with trainer=fsdp use bf16-mixed"
            )
        trainer.test_loop.inference_mode = False  # weights gathered in that mode would stay of it
        super().setup(trainer)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Make the optimiser of this process's share.

        Raises:
            ConfigError: It is none that updates a share as it would the whole.
        """
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if type(optimizer) not in _BY_ELEMENT:
                raise ConfigError(
                    f"optimizer.algorithm: {type(optimizer).__name__} may need whole matrices, of "
                    "which trainer=fsdp has shares; use optimizer=adam or sgd, or trainer=ddp"
                )

    def model_to_device(self) -> None:
        """Move the module, and shard it if it is not yet."""
        super().model_to_device()
        module = cast(TrainingModule, self.lightning_module)
        if isinstance(module, FSDPModule):
            return
        for buffer in module.buffers():  # of which every process keeps all: as DDP does
            torch.distributed.broadcast(buffer, src=0)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        stacks = [part for part in module.modules() if isinstance(part, Stack)]
        blocks = [block for stack in stacks for block in stack.blocks()]
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
            if hasattr(block, "write"):
                register_fsdp_forward_method(block, "write")
        fully_shard(module, mesh=mesh, reshard_after_forward=False)
        # What is gathered next in a backward pass is said here: by default it follows from all
        # forward passes since the last one, and a sample of text is one of the first process alone.
        units = cast(list[FSDPModule], [*blocks[:1], *blocks, module])
        for before, unit in itertools.pairwise(units):
            unit.set_modules_to_backward_prefetch([before])
        for name in _STEPS:
            register_fsdp_forward_method(module, name)
        leave_out_of_synchronisation(module, [name for name, _ in module.named_parameters()])

    def configure_ddp(self) -> None:
        """Wrap nothing."""

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, and let the weights go that a backward pass would need."""
        try:
            return super().validation_step(*args, **kwargs)
        finally:
            cast(FSDPModule, self.lightning_module).reshard()

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, likewise."""
        try:
            return super().test_step(*args, **kwargs)
        finally:
            cast(FSDPModule, self.lightning_module).reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return parameters and buffers themselves: what is shared is stored as one."""
        return cast(nn.Module, self.lightning_module).state_dict(keep_vars=True)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Gather what is sharded, tensor by tensor, and let the first process write the file."""
        gathered: dict[int, Any] = {}
        parts = {
            name: self._consolidated(checkpoint[name], gathered)
            for name in _STORED_WHOLE
            if name in checkpoint
        }
        super().save_checkpoint({**checkpoint, **parts}, filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's share of a whole state."""
        states = [
            {**state, "state": _shares(optimizer, state["state"])}
            for optimizer, state in zip(
                self.optimizers, checkpoint["optimizer_states"], strict=True
            )
        ]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def _consolidated(self, value: Any, gathered: dict[int, Any]) -> Any:
        """Return a part of a checkpoint as one process would have it; others keep their shares.

        Args:
            value: The part.
            gathered: What was gathered already, by identity.
        """
        if isinstance(value, dict):
            made = copy.copy(value)  # a state_dict knows its version
            made.update({k: self._consolidated(x, gathered) for k, x in value.items()})
            return made
        if isinstance(value, list):
            return [self._consolidated(x, gathered) for x in value]
        if not isinstance(value, Tensor):
            return value
        if id(value) not in gathered:
            x = value.detach()
            if isinstance(x, DTensor):
                full = x.full_tensor()
                x = full.cpu() if self.is_global_zero else x
            gathered[id(value)] = x
        return gathered[id(value)]


def _shares(optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def share(value: Any, parameter: Tensor) -> Any:
        of_all = isinstance(value, Tensor) and value.shape == parameter.shape
        return laid_out_as(value.to(parameter.device), parameter) if of_all else value

    return {
        number: {name: share(value, parameters[number]) for name, value in values.items()}
        for number, values in state.items()
    }

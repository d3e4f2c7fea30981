import pytest
import torch

from fwlight.errors import CheckpointError
from fwlight.run.averaging import average_checkpoints
from fwlight.run.checkpoint_io import AtomicCheckpointIO, load_checkpoint


def save(folder, step: int, value: float) -> None:
    weights = {"w": torch.full((2, 3), value), "draws": torch.tensor(step)}
    checkpoint = {"state_dict": weights, "global_step": step, "callbacks": {}}
    AtomicCheckpointIO().save_checkpoint(checkpoint, folder / f"step-{step:06d}.ckpt")


def test_average_is_the_mean_of_the_newest(tmp_path) -> None:
    for step, value in ((100, 100.0), (200, 1.0), (300, 2.0), (400, 6.0)):
        save(tmp_path, step, value)
    path = average_checkpoints(tmp_path, last=3)
    found = load_checkpoint(path)
    assert torch.equal(found["state_dict"]["w"], torch.full((2, 3), 3.0))
    assert found["state_dict"]["draws"] == found["global_step"] == 400
    with pytest.raises(CheckpointError, match=r"average_last=5, but .* holds 4 kept copies"):
        average_checkpoints(tmp_path, last=5)

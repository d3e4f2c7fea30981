import pytest
import torch

from fwlight.errors import CheckpointError
from fwlight.run.averaging import average_checkpoints
from fwlight.run.checkpoint_io import AtomicCheckpointIO, load_checkpoint


def save(folder, step: int, value: float) -> None:
    weights = {"w": torch.full((2, 3), value), "draws": torch.tensor(step)}
    checkpoint = {"state_dict": weights, "global_step": step, "callbacks": {}}
    AtomicCheckpointIO().save_checkpoint(checkpoint, folder / f"step-{step:06d}.ckpt")


def test_average_is_the_mean_of_the_newest(tmp_path, capsys) -> None:
    for step, value in ((100, 100.0), (200, 1.0), (300, 2.0), (400, 6.0)):
        save(tmp_path, step, value)
    path = average_checkpoints(tmp_path, last=3)
    found = load_checkpoint(path)
    assert torch.equal(found["state_dict"]["w"], torch.full((2, 3), 3.0))
    assert found["state_dict"]["draws"] == found["global_step"] == 400
    path.unlink()
    assert average_checkpoints(tmp_path, last=5) is None
    assert not path.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "average_last=5, but the training ended with 4 kept copies" in line


def test_average_of_other_models_is_refused(tmp_path) -> None:
    save(tmp_path, 100, 1.0)
    other = {"state_dict": {"v": torch.zeros(2)}, "global_step": 200, "callbacks": {}}
    AtomicCheckpointIO().save_checkpoint(other, tmp_path / "step-000200.ckpt")
    with pytest.raises(CheckpointError, match="of another model"):
        average_checkpoints(tmp_path, last=2)

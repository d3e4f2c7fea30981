import pytest
import torch

from cli import acting
from cli.composition import compose_config
from fwlight.run import flushing_denormals


def half_of_the_smallest(dtype: torch.dtype) -> float:
    return (torch.tensor(torch.finfo(dtype).tiny, dtype=dtype) / 2).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_below_the_smallest_normal_one_are_zero_inside_only(dtype):
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush denormals")
    assert half_of_the_smallest(dtype) > 0
    with flushing_denormals():
        assert half_of_the_smallest(dtype) == 0
    assert half_of_the_smallest(dtype) > 0
    with pytest.raises(KeyError), flushing_denormals():
        raise KeyError
    assert half_of_the_smallest(dtype) > 0


def test_a_run_flushes_them(monkeypatch):
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush denormals")
    monkeypatch.setattr(acting, "train", lambda *_: {"half": half_of_the_smallest(torch.float32)})
    assert acting.act(compose_config([])) == {"half": 0.0}

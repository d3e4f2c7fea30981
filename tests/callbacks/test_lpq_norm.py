"""Norms that are watched, made dear and bounded, in trainings of a few updates."""

import math

import pytest
import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from callbacks.lpq import LpqNorm
from fwlight.diagnostics.lpq import lpq_norm
from fwlight.lightning_internals import count_updates
from fwlight.models import MLP, ConvNet
from fwlight.training.classification import ClassificationModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import ImageBatch

INF = math.inf
OPTIMIZER = OptimizerConfig(lr=0.05, schedule="constant", warmup_steps=0)


class Recording(ClassificationModule):
    """Keeps gradients as they are used, and what is logged."""

    def __init__(self, kind: type = MLP) -> None:
        torch.manual_seed(0)
        sizes = {"d_ff": 8} if kind is MLP else {"d_model": 8}
        made = kind(n_classes=3, shape=(1, 4, 4), n_layers=2, dropout=0.0, **sizes)
        super().__init__(made, optimizer=OPTIMIZER, max_steps=6)
        self.gradients, self.logged = [], {}

    def configure_gradient_clipping(self, *args, **kwargs):
        self.gradients.append([p.grad.clone() for p in self.network.parameters()])

    def record(self, metrics, step):
        super().record(metrics, step)
        self.logged[step] = self.logged.get(step, {}) | metrics


class Watching(Callback):
    """Keeps the largest norm of a layer after every batch."""

    def __init__(self, of: LpqNorm) -> None:
        self.of, self.largest = of, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        largest = max(norms(pl_module.network, p=self.of.p, q=self.of.q).values())
        self.largest.append(largest)


def norms(network, *, p: float, q: float) -> dict[str, float]:
    found = {}
    for name, layer in network.named_modules():
        if getattr(layer, "weight", None) is not None and layer.weight.ndim > 1:
            V = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).T.double()
            found[name] = float(lpq_norm(V.detach(), p=p, q=q))
    return found


def train(module, *callbacks, ckpt_path=None, n=12, **settings):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (12, 5, 1, 4, 4), generator=generator, dtype=torch.uint8)
    classes = torch.randint(0, 3, (12, 5), generator=generator)
    batches = [ImageBatch(x, y) for x, y in zip(pixels[:n], classes[:n], strict=True)]
    batches[1] = ImageBatch(batches[1].images[:2], batches[1].targets[:2])
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **{"max_steps": 6, "accumulate_grad_batches": 2} | settings,
    )
    # As of every run: of Lightning's own loop the first batch after an epoch that the training
    # ended with is one too many, in that epoch still.
    count_updates(trainer)
    loader = DataLoader(batches, batch_size=None)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer


@pytest.mark.parametrize("kind", [MLP, ConvNet])
@pytest.mark.parametrize(("p", "q"), [(1.0, INF), (2.0, INF), (1.0, 1.0), (2.0, 1.0)])
def test_norms_stay_within_the_bound_after_every_update(kind, p, q):
    free = Recording(kind)
    train(free)
    bound = 0.7 * max(norms(free.network, p=p, q=q).values())
    module, callback = Recording(kind), LpqNorm(mode="project", p=p, q=q, bound=bound)
    watching = Watching(callback)
    train(module, callback, watching)
    # The first of two accumulated batches makes no update.
    assert len(watching.largest) == 12
    assert max(watching.largest[1:]) <= bound * (1 + 1e-6)
    assert max(watching.largest[1:]) > bound * (1 - 1e-6)
    assert not module.trainer.optimizers[0]._optimizer_step_post_hooks


def test_projection_goes_on_from_the_end_of_an_epoch(tmp_path):
    settings = {"n": 6, "max_epochs": -1}

    def projecting() -> LpqNorm:
        return LpqNorm(mode="project", bound=1.5)

    whole, first, rest = Recording(), Recording(), Recording()
    train(whole, projecting(), **settings)
    # Three updates of two batches are an epoch.
    train(first, projecting(), max_steps=3, **settings).save_checkpoint(tmp_path / "x.ckpt")
    train(rest, projecting(), ckpt_path=tmp_path / "x.ckpt", **settings)
    assert max(norms(rest.network, p=1.0, q=INF).values()) == pytest.approx(1.5)
    for one, other in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_penalty_is_the_gradient_of_the_weighted_norms(accumulated):
    settings = {"max_steps": 1, "accumulate_grad_batches": accumulated}
    free, dear = Recording(), Recording()
    train(free, **settings)
    train(dear, LpqNorm(mode="penalty", weight=0.3, p=2.0, q=1.0), **settings)
    network = Recording().network
    total = sum(
        torch.cat([x.weight, x.bias[:, None]], 1).norm(dim=1).sum()
        for x in network.modules()
        if isinstance(x, torch.nn.Linear)
    )
    added = torch.autograd.grad(0.3 * total, list(network.parameters()))
    for one, other, more in zip(dear.gradients[0], free.gradients[0], added, strict=True):
        torch.testing.assert_close(one, other + more, rtol=1e-5, atol=1e-7)


def test_norms_are_logged_by_layer_and_change_nothing():
    free, watched = Recording(), Recording()
    train(free)
    train(watched, LpqNorm(p=2.0, q=INF))
    for one, other in zip(free.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    logged = {k: v for k, v in watched.logged[6].items() if k.startswith("norm_lpq/")}
    expected = norms(watched.network, p=2.0, q=INF)
    assert logged == pytest.approx({f"norm_lpq/{x}": y for x, y in expected.items()})
    assert set(expected) == {"layers.0", "layers.3", "output"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "prjoect"}, "mode=prjoect is none of log, penalty, project"),
        ({"p": 0.0}, "p=0.0 must be at least 1"),
        ({"bound": 0.0}, "bound=0 must be above 0"),
        ({"weight": INF}, "weight=inf must be above 0 and finite"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LpqNorm(**options)

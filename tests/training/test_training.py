"""Metrics, schedule, optimiser, and what a training step does."""

import copy
import math

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from fwlight.errors import ConfigError, NumericalError
from fwlight.run import exit_code_and_line
from fwlight.training.lm import LanguageModelingModule
from fwlight.training.metrics import PositionLoss, TokenLoss
from fwlight.training.optim import OptimizerConfig, build_optimizer, lr_factor, warmup_cosine
from fwlight.types import IGNORE_INDEX, LMBatch

VOCABULARY = 7


class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY, dtype=torch.float64)

    def features(self, tokens, *, initial_state=None):
        return self.table(tokens), None

    def nll(self, hidden, targets):
        flat = nn.functional.cross_entropy(
            hidden.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
        )
        return flat.view(targets.shape)


class Recording(LanguageModelingModule):
    """Keeps gradients before clipping, the learning rate in force and what is logged."""

    def __init__(self, **settings):
        super().__init__(Bigram(), **settings)
        self.gradients, self.rates, self.logged = [], [], {}

    def configure_gradient_clipping(self, optimizer, *args, **kwargs):
        self.gradients.append(self.network.table.weight.grad.clone())
        self.rates.append(optimizer.param_groups[0]["lr"])
        super().configure_gradient_clipping(optimizer, *args, **kwargs)

    def record(self, metrics, step):
        super().record(metrics, step)
        self.logged[step] = self.logged.get(step, {}) | metrics


def batches(n, *, seed=0):
    """Batches whose numbers of targets differ."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in range(1, n + 1):
        tokens = torch.randint(0, VOCABULARY, (3, 6), generator=generator)
        targets = tokens[:, 1:].clone()
        targets[:, size % 5 + 1 :] = IGNORE_INDEX
        made.append(LMBatch(tokens[:, :-1], targets))
    return made


def train(module, data, *, ckpt_path=None, **settings):
    trainer = Trainer(
        accelerator="cpu",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    loader = DataLoader(data, batch_size=None)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer


def mean_loss(weight, data):
    """Mean over all targets of all batches, by a loop."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in data:
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            for token, target in zip(inputs, targets, strict=True):
                if target != IGNORE_INDEX:
                    total = total - weight[token].log_softmax(-1)[target]
                    count += 1
    return total / count


def test_token_loss_is_the_mean_over_all_tokens_not_of_means():
    metric, data = TokenLoss(), batches(4)
    weight = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64)
    for batch in data:
        nll = -weight[batch.inputs].log_softmax(-1)
        nll = nll.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
        nll[batch.targets == IGNORE_INDEX] = float("nan")  # whatever stands there is not read
        metric.update(nll, batch.targets)
    values = metric.compute()
    expected = mean_loss(weight, data)
    torch.testing.assert_close(values["loss"], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(values["ppl"], expected.exp(), rtol=1e-12, atol=0)
    assert values["tokens"] == sum(int((b.targets >= 0).sum()) for b in data)


def test_token_loss_keeps_float64_sums_of_float32_values():
    metric = TokenLoss()
    metric.update(torch.tensor([[1e8, 1.0]]), torch.zeros(1, 2, dtype=torch.int64))
    assert metric.nll.dtype == torch.float64
    assert metric.compute()["loss"].item() == (1e8 + 1) / 2


def test_token_loss_without_targets_is_nan():
    metric = TokenLoss()
    metric.update(torch.zeros(1, 2), torch.full((1, 2), IGNORE_INDEX))
    assert metric.compute()["loss"].isnan()


@pytest.mark.parametrize(
    ("n", "factor"),
    [
        (1, 0.01),
        (50, 0.5),
        (100, 1.0),
        (101, 0.5 * (1 + math.cos(math.pi * 0.101))),
        (500, 0.5),
        (1000, 0.0),
        (1500, 0.0),
    ],
)
def test_warmup_cosine_follows_its_formula(n, factor):
    value = 3.0 * warmup_cosine(n, warmup_steps=100, max_steps=1000)
    assert value == pytest.approx(3 * factor, rel=1e-12, abs=1e-12)


def test_warmup_cosine_without_warmup_starts_at_the_cosine():
    assert warmup_cosine(1, warmup_steps=0, max_steps=2) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr": float("nan")},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
        {"eps": 0.0},
        {"weight_decay": -0.1},
        {"warmup_steps": -1},
        {"schedule": "linera"},
        {"decay_steps": 0},
        {"ema_decay": 1.0},
    ],
)
def test_optimizer_config_refuses_values_without_meaning(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)


def test_module_refuses_a_cosine_without_end_and_a_warmup_beyond_it():
    for schedule in ("cosine", "cosine_reference", "linear", "wsd"):
        config = OptimizerConfig(schedule=schedule)
        with pytest.raises(ValueError, match=f"{schedule} ends at trainer.max_steps, which is -1"):
            LanguageModelingModule(Bigram(), optimizer=config, max_steps=-1)
    config = OptimizerConfig(schedule="wsd", warmup_steps=2, decay_steps=4)
    with pytest.raises(ValueError, match="warmup_steps=2 and decay_steps=4 together"):
        LanguageModelingModule(Bigram(), optimizer=config, max_steps=5)
    with pytest.raises(ValueError, match="warmup_steps=9"):
        LanguageModelingModule(Bigram(), optimizer=OptimizerConfig(warmup_steps=9), max_steps=5)
    LanguageModelingModule(Bigram(), optimizer=OptimizerConfig(schedule="constant"), max_steps=-1)


def test_optimizer_decays_matrices_only_and_refuses_a_frozen_model():
    layer = nn.Linear(3, 3)
    decays = {
        group["params"][0].ndim: group["weight_decay"]
        for group in build_optimizer(layer, OptimizerConfig(weight_decay=0.1)).param_groups
    }
    assert decays == {2: 0.1, 1: 0.0}
    with pytest.raises(ValueError, match="trainable"):
        build_optimizer(layer.requires_grad_(False), OptimizerConfig())


def test_optimizer_without_decay_is_adam():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    config = OptimizerConfig(lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    optimizers = (
        build_optimizer(ours, config),
        torch.optim.Adam(theirs.parameters(), lr=0.1, betas=(0.8, 0.95), eps=1e-3),
    )
    for _ in range(4):
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=0)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_gradient_is_that_of_the_mean_over_all_targets_of_the_update(accumulate):
    data = batches(6)
    torch.manual_seed(0)
    module = Recording(optimizer=OptimizerConfig(lr=0.1), max_steps=6 // accumulate)
    weights = [module.network.table.weight.detach().clone()]
    module.on_train_batch_end = lambda *_: weights.append(
        module.network.table.weight.detach().clone()
    )
    train(module, data, max_steps=6 // accumulate, accumulate_grad_batches=accumulate)
    for step, gradient in enumerate(module.gradients):
        chunk = data[step * accumulate : (step + 1) * accumulate]
        weight = weights[step * accumulate].requires_grad_()
        (expected,) = torch.autograd.grad(mean_loss(weight, chunk), weight)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14)


def test_logged_values_are_those_of_the_step_itself():
    data = batches(6)
    torch.manual_seed(0)
    config = OptimizerConfig(lr=0.1, warmup_steps=2)
    module = Recording(optimizer=config, max_steps=6)
    weights = [module.network.table.weight.detach().clone()]
    module.on_train_batch_end = lambda *_: weights.append(
        module.network.table.weight.detach().clone()
    )
    train(module, data, max_steps=6, log_every_n_steps=4, gradient_clip_val=1e-3)
    assert sorted(module.logged) == [4, 6]  # every fourth, and the last
    for step in (4, 6):
        loss = mean_loss(weights[step - 1], data[step - 1 : step]).item()
        rate = 0.1 * warmup_cosine(step, warmup_steps=2, max_steps=6)
        assert module.logged[step] == pytest.approx(
            {
                "train/loss": loss,
                "train/ppl": math.exp(loss),
                "train/lr": rate,
                "train/grad_norm": module.gradients[step - 1].norm().item(),
            },
            rel=1e-9,
        )
        assert module.rates[step - 1] == rate


def test_clipping_bounds_the_gradient_that_is_used():
    class Clipped(Recording):
        def optimizer_zero_grad(self, *args):
            if self.network.table.weight.grad is not None:
                used.append(self.network.table.weight.grad.norm().item())
            super().optimizer_zero_grad(*args)

    used = []
    module = Clipped(optimizer=OptimizerConfig(), max_steps=3)
    train(module, batches(3), max_steps=3, gradient_clip_val=1e-3)
    assert used == pytest.approx([1e-3, 1e-3], rel=1e-3)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_step_that_is_not_finite_raises_before_the_update(where):
    class Faulty(Recording):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if batch_idx != 2:
                return loss
            if where == "loss":
                return self.update_loss(loss * math.nan, torch.tensor(0))
            loss.register_hook(lambda gradient: gradient * math.inf)
            return loss

    module = Faulty(optimizer=OptimizerConfig(), max_steps=4)
    with pytest.raises(NumericalError, match=f"{where} of step 3 .*optimizer.lr"):
        train(module, batches(4), max_steps=4)
    assert module.network.table.weight.isfinite().all()


def test_module_keeps_its_state_dict_keys():
    module = LanguageModelingModule(Bigram(), optimizer=OptimizerConfig(), max_steps=1)
    assert list(module.state_dict()) == ["network.table.weight"]


def test_inverse_square_root_schedule_rises_and_falls() -> None:
    config = OptimizerConfig(schedule="inverse_sqrt", warmup_steps=4)
    factors = [lr_factor(config, n, max_steps=-1) for n in (1, 4, 16, 400)]
    assert factors == pytest.approx([0.25, 1.0, 0.5, 0.1])


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"schedule": "linear"}, [0.25, 1.0, 15 / 16, 4 / 16, 0.0, 0.0]),
        ({"schedule": "linear", "warmup_steps": 0}, [0.95, 0.8, 0.75, 0.2, 0.0, 0.0]),
        ({"schedule": "wsd", "decay_steps": 8}, [0.25, 1.0, 1.0, 0.5, 0.0, 0.0]),
        ({"schedule": "wsd"}, [0.25, 1.0, 1.0, 1.0, 0.0, 0.0]),  # a fifth of 20
    ],
)
def test_schedules_that_end_in_a_line_follow_their_formulas(options, factors) -> None:
    config = OptimizerConfig(**{"warmup_steps": 4, **options})
    found = [lr_factor(config, n, max_steps=20) for n in (1, 4, 5, 16, 20, 25)]
    assert found == pytest.approx(factors, rel=1e-12)


class Own(Recording):
    """With an optimiser of its own, made by `build`."""

    def __init__(self, build, **settings):
        super().__init__(**settings)
        self.build = build

    def configure_optimizers(self):
        return self.build(self.parameters())


def halved(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize(
    ("build", "rates"),
    [
        (lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9), [0.5] * 4),
        (lambda parameters: torch.optim.Adam(parameters, lr=0.5, betas=(0.5, 0.6)), [0.5] * 4),
        (lambda parameters: torch.optim.Adagrad(parameters, lr=0.5), [0.5] * 4),
        (halved, [0.5, 0.25, 0.125, 0.0625]),
    ],
    ids=["sgd", "adam", "adagrad", "scheduled"],
)
def test_optimizer_of_a_subclass_is_taken_as_it_is_and_resumed(tmp_path, build, rates):
    def made():
        return Own(build, optimizer=OptimizerConfig(warmup_steps=2), max_steps=4)

    data, whole = batches(1) * 4, made()
    initial = copy.deepcopy(whole.state_dict())
    train(whole, data, max_steps=4)
    assert whole.rates == rates
    assert whole.trainer.optimizers[0].defaults["lr"] == 0.5
    first, second = made(), made()
    first.load_state_dict(initial)
    train(first, data, max_steps=2).save_checkpoint(tmp_path / "x.ckpt")
    trainer = train(second, data, ckpt_path=tmp_path / "x.ckpt", max_steps=4)
    assert second.rates == rates[2:]
    assert trainer.global_step == 4
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_subclass_without_an_optimizer_is_refused():
    module = Own(lambda parameters: None, optimizer=OptimizerConfig(), max_steps=1)
    with pytest.raises(ConfigError, match="one optimizer"):
        train(module, batches(1), max_steps=1)


@pytest.mark.parametrize("automatic", [True, False])
def test_subclass_with_several_optimizers_is_refused_in_one_line(automatic):
    def several(parameters):
        every = list(parameters)
        return [torch.optim.SGD(every, lr=0.5), torch.optim.SGD(every, lr=0.25)]

    module = Own(several, optimizer=OptimizerConfig(), max_steps=1)
    module.automatic_optimization = automatic
    with pytest.raises((ConfigError, RuntimeError)) as caught:
        train(module, batches(1), max_steps=1)
    code, line = exit_code_and_line(caught.value)
    assert code == 2
    assert "configure_optimizers must give one optimizer" in line


def test_groups_of_a_subclass_keep_the_ratio_of_their_rates():
    class Slow(Recording):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.param_groups[0]["lr"] /= 4
            return optimizer

    config = OptimizerConfig(lr=0.5, warmup_steps=2, schedule="constant")
    module = Slow(optimizer=config, max_steps=3)
    train(module, batches(3), max_steps=3)
    assert module.rates == [0.0625, 0.125, 0.125]


def test_loss_by_position_is_the_mean_of_a_doubling_range():
    nll = torch.arange(12.0).reshape(2, 6)
    targets = torch.ones(2, 6, dtype=torch.int64)
    targets[0, 3] = targets[:, 5] = IGNORE_INDEX
    metric = PositionLoss()
    for rows in (slice(0, 1), slice(1, 2)):
        metric.update(nll[rows], targets[rows])
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found == {
        "loss_position_1": (0 + 6) / 2,
        "loss_position_2": (1 + 7) / 2,
        "loss_position_4": (2 + 8 + 9) / 3,
        "loss_position_5": (4 + 10) / 2,
    }

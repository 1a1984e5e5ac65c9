"""Strategies that compute gradients from a client's update need plain SGD steps, and name what they got instead."""

from functools import partial
from typing import Any

import pytest
import torch

from flrl.errors import ClientError
from flrl.sampling import AllClients
from flrl.strategies import Scaffold
from flrl.trainers import EagerTrainer, LightningTrainer
from tests.toys import Linear, fit, make_worker, setup_of

AVERAGE: dict[str, Any] = {
    "rounds": 1,
    "sampler": AllClients(),
    "server_optimizer": partial(torch.optim.SGD, lr=1.0),
}
options = pytest.mark.parametrize("option", [1, 2])


def groups(module: Linear) -> Any:
    return torch.optim.SGD([{"params": module.net.weight}, {"params": module.net.bias, "lr": 0.2}], lr=0.1)


@options
@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
            r"plain torch\.optim\.SGD with one lr, got SGD, momentum=0\.9, lr=0\.1",
        ),
        (lambda m: torch.optim.SGD(m.parameters(), lr=0.1, dampening=0.5), r"dampening=0\.5"),
        (lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.01), r"weight_decay=0\.01"),
        (
            lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
            r"momentum=0\.9, nesterov=True",
        ),
        (lambda m: torch.optim.SGD(m.parameters(), lr=0.1, maximize=True), r"maximize=True"),
        (lambda m: torch.optim.Adam(m.parameters(), lr=0.1), r"got Adam, lr=0\.1"),
        (lambda m: type("Mine", (torch.optim.SGD,), {})(m.parameters(), lr=0.1), r"got Mine, lr=0\.1"),
        (groups, r"one lr, got SGD, lr=0\.1, lr=0\.2"),
    ],
)
def test_all_but_plain_sgd_is_refused_by_name(option: int, optimizer: Any, message: str) -> None:
    class Other(Linear):
        def configure_optimizers(self) -> Any:
            return optimizer(self)

    strategy = Scaffold(option=option, **AVERAGE)
    with pytest.raises(ValueError, match=message):
        strategy.check(setup_of(Other(), strategy=strategy))
    with pytest.raises(ClientError, match=message):  # also where nobody has called `check`
        fit(make_worker(strategy, module=Other()))


@options
@pytest.mark.parametrize(
    "trainer",
    [
        EagerTrainer(gradient_clip_val=1.0),
        EagerTrainer(gradient_clip_val=1.0, gradient_clip_algorithm="value"),
        LightningTrainer(trainer_options={"gradient_clip_val": 1.0}),
    ],
)
def test_gradient_clipping_is_refused_by_name(option: int, trainer: Any) -> None:
    strategy = Scaffold(option=option, **AVERAGE)
    with pytest.raises(ValueError, match=r"trainer\.gradient_clip_val=1\.0: must be null"):
        strategy.check(setup_of(Linear(), trainer, strategy))


class Scheduled(Linear):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)]


@pytest.mark.parametrize("module", [Linear, Scheduled])
def test_plain_sgd_with_or_without_a_schedule_is_accepted(module: Any) -> None:
    for trainer in (EagerTrainer(keep_optimizer_state=True, lr_decay=0.9), LightningTrainer()):
        strategy = Scaffold(**AVERAGE)
        strategy.check(setup_of(module(), trainer, strategy))


def test_an_optimizer_that_needs_a_real_trainer_is_looked_at_when_it_steps() -> None:
    class Needs(Linear):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.1 * bool(self.trainer.strategy))

    strategy, trainer = Scaffold(**AVERAGE), LightningTrainer(batch_size=8)
    strategy.check(setup_of(Needs(), trainer, strategy))
    with pytest.raises(ClientError, match=r"got SGD, momentum=0\.1"):
        fit(make_worker(strategy, module=Needs(), trainer=trainer))

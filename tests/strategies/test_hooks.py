"""What a strategy overrides: hooks that are never called are an error that others have made; personal parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from flrl.layout import digest
from flrl.sampling import AllClients
from flrl.strategies import AFL, FedAvg, FedSAM, Moon, QFedAvg
from flrl.trainers import EagerTrainer, LightningTrainer, TracedTrainer, VectorizedTrainer
from tests.toys import Linear, fit, make_worker, setup_of

HOOKS = (
    "check initialize broadcast weight vector_sizes plan local adjust_loss adjust_gradient aggregate weight_of_all"
).split()
OPTIONS: dict[str, Any] = {"rounds": 2, "sampler": AllClients(), "server_optimizer": partial(torch.optim.SGD, lr=1.0)}


def noting(hook: str, called: set[str]) -> Callable[..., Any]:
    original = getattr(FedAvg, hook)

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        called.add(hook)
        return original(self, *args, **options)

    return noted


@pytest.mark.parametrize("engine", [EagerTrainer, TracedTrainer, LightningTrainer, partial(VectorizedTrainer, width=2)])
def test_every_hook_is_called_on_every_engine(engine: Any) -> None:
    called: set[str] = set()
    strategy = type("Noting", (FedAvg,), {hook: noting(hook, called) for hook in HOOKS})(**OPTIONS)
    worker = make_worker(strategy, trainer=engine(batch_size=8))
    setup_of(worker.model.module, worker.trainer, strategy).check()
    fit(worker)
    assert sorted(called) == sorted(HOOKS)


@pytest.mark.parametrize(
    ("make", "same"),
    [
        (partial(Moon, layer="net", mu=0.0), True),
        (partial(Moon, layer="net", mu=1.0), False),
        (partial(QFedAvg, q=0.0), True),
        (partial(QFedAvg, q=1.0), False),
        (partial(AFL, mixture_lr=0.0), True),
        (partial(AFL, mixture_lr=1.0), False),
        (partial(FedSAM, rho=0.0), True),
        (partial(FedSAM, rho=0.3), False),
    ],
)
def test_parameters_may_be_personal(make: Any, same: bool) -> None:
    """They stay with their client, who trains them too; without its term each strategy is FedAvg to the bit."""
    found = []
    for strategy in (make(personal=["net.bias"], **OPTIONS), FedAvg(personal=["net.bias"], **OPTIONS)):
        torch.manual_seed(0)
        state, _ = fit(make_worker(strategy, module=Linear(), sizes=(16, 32, 16)))
        assert state.vector.shape == (15,)
        found.append([digest(state.vector), *(digest(memory["personal"]) for memory in dict(state.memory).values())])
    assert (found[0] == found[1]) == same

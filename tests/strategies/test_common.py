"""What every strategy does. A new one joins by being listed; `pytest -m slow` on this file has the rest."""

from functools import partial
from typing import Any

import pytest
import torch

from flrl.evaluation import Evaluator
from flrl.layout import digest
from flrl.models.two_heads import TwoHeads
from flrl.runs.checkpoint import load_checkpoint, save_checkpoint
from flrl.sampling import AllClients, UniformSampler
from flrl.strategies import (
    AFL,
    APFL,
    CFL,
    DSFL,
    IFCA,
    Centralized,
    Ditto,
    FedALA,
    FedAMP,
    FedAvg,
    FedBABU,
    FedDC,
    FedDF,
    FedDistill,
    FedDyn,
    FedExP,
    FedGEMS,
    FedLin,
    FedMD,
    FedNova,
    FedProx,
    FedRep,
    FedRoD,
    FedSAM,
    FedSGD,
    LocalOnly,
    Mime,
    MimeLite,
    Moon,
    PerFedAvg,
    PFedMe,
    QFedAvg,
    Scaffold,
    Strategy,
)
from flrl.strategies.server_optimizers import UncorrectedAdam, Yogi
from flrl.trainers import EagerTrainer
from flrl.types import Aggregate, ServerState
from tests import toys
from tests.toys import Linear, Normed, Rich, fit, setup_of

SGD = partial(torch.optim.SGD, lr=1.0)
STRATEGIES = {
    "fedavg": partial(FedAvg, server_optimizer=SGD),
    "fedavgm": partial(FedAvg, server_optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9)),
    "fedadam": partial(FedAvg, server_optimizer=partial(torch.optim.Adam, lr=0.05, eps=1e-3)),
    "fedadam-uncorrected": partial(FedAvg, server_optimizer=partial(UncorrectedAdam, lr=0.05)),
    "fedadagrad": partial(FedAvg, server_optimizer=partial(torch.optim.Adagrad, lr=0.1)),
    "fedyogi": partial(FedAvg, server_optimizer=partial(Yogi, lr=0.05)),
    "fedprox": partial(FedProx, mu=0.1, server_optimizer=SGD),
    "fedsgd": partial(FedSGD, server_optimizer=partial(torch.optim.SGD, lr=0.5)),
    "moon": partial(Moon, layer="net", mu=1.0, server_optimizer=SGD),
    "qfedavg": partial(QFedAvg, q=1.0, server_optimizer=SGD),
    "afl": partial(AFL, mixture_lr=0.1, server_optimizer=SGD),
    "mimelite": partial(MimeLite, betas=(0.5, 0.9), server_optimizer=SGD),
    "mimelite-adam": partial(MimeLite, statistics="adam", betas=(0.5, 0.9), eps=0.3, server_optimizer=SGD),
    "mime": partial(Mime, betas=(0.5, 0.9), server_optimizer=SGD),
    "fedsam": partial(FedSAM, rho=0.05, server_optimizer=SGD),
    "fedasam": partial(FedSAM, rho=0.05, adaptive=True, server_optimizer=SGD),
    "scaffold": partial(Scaffold, server_optimizer=SGD),
    "scaffold-1": partial(Scaffold, option=1, server_optimizer=SGD),
    "fednova": partial(FedNova, server_optimizer=SGD),
    "feddyn": partial(FedDyn, alpha=0.1, server_optimizer=SGD),
    "fedexp": partial(FedExP, server_optimizer=SGD),
    "fedlin": partial(FedLin, server_optimizer=SGD),
    "feddc": partial(FedDC, alpha=0.1, server_optimizer=SGD),
    "fedbn": partial(FedAvg, batchnorm="personal", server_optimizer=SGD),
    "fedper": partial(FedAvg, personal=["net*bias"], server_optimizer=SGD),
    "fedrep": partial(FedRep, head_epochs=2, personal=["net*bias"], server_optimizer=SGD),
    "lgfedavg": partial(FedAvg, personal=["net*weight"], server_optimizer=SGD),
    "fedbabu": partial(FedBABU, personal=["net*bias"], server_optimizer=SGD),
    "ditto": partial(Ditto, lam=0.1, server_optimizer=SGD),
    "centralized": partial(Centralized, server_optimizer=SGD),
    "local": partial(LocalOnly),
    "apfl": partial(APFL, adaptive=True, server_optimizer=SGD),
    "pfedme": partial(PFedMe, lam=1.0, lr=0.5, inner_steps=2, server_optimizer=SGD),
    "perfedavg": partial(PerFedAvg, beta=0.2, server_optimizer=SGD),
    "ifca": partial(IFCA, clusters=2, server_optimizer=SGD),
    "cfl": partial(CFL, eps1=0.1, eps2=0.05, server_optimizer=SGD),
    "fedala": partial(FedALA, share=1.0, server_optimizer=SGD),  # a smaller share is drawn for each client
    "fedamp": partial(FedAMP, lam=0.01, server_optimizer=SGD),
    "fedrod": partial(FedRoD, server_optimizer=SGD),
    "fedmd": partial(FedMD, public_samples=12, num_classes=3),
    "dsfl": partial(DSFL, public_samples=12, num_classes=3),
    "feddf": partial(FedDF, public_samples=12, num_classes=3, server_optimizer=SGD),
    "feddistill": partial(FedDistill, num_classes=3),
    "fedgems": partial(FedGEMS, public_samples=12, num_classes=3),
}
# These refuse momentum, by name.
STEPPING = (Scaffold, FedNova, FedDC, APFL, PFedMe, PerFedAvg, Mime, MimeLite)
PLAIN_SGD = [make for make in STRATEGIES.values() if getattr(make, "func", make) in STEPPING]
every = pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES.keys())
COVERING = (
    "fedavg", "fedadam", "fedsgd", "scaffold", "moon", "afl", "mime", "fedlin", "fedrep", "ditto", "apfl", "ifca",
    "fedamp", "fedmd", "feddf", "local", "centralized",
)  # fmt: skip
"""Those that differ most in what they send, keep and yield; `-m slow` takes the others."""
covering = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=() if name in COVERING else pytest.mark.slow)
        for name, make in STRATEGIES.items()
    ],
)
Make = Any


def strategy(make: Make, rounds: int = 3, **options: Any) -> Strategy:
    return make(rounds=rounds, **({"sampler": AllClients()} | options))


def make_worker(strategy: Strategy, *, module: Any = None, **options: Any) -> Any:
    """A worker; for FedRoD the module gets a second head."""
    if isinstance(strategy, FedRoD):
        module = _seeded(Linear) if module is None else module
        module.net = TwoHeads(net=torch.nn.Sequential(module.net))
    return toys.make_worker(strategy, module=module, **options)


def digests(state: ServerState) -> dict[str, str]:
    """Of all that a state holds: without a global model, the rest is what there is."""
    kept = {f"{client}/{name}": t for client, memory in state.memory.items() for name, t in memory.items()}
    return {name: digest(t.reshape(-1)) for name, t in {"vector": state.vector, **state.variables, **kept}.items()}


def start(worker: Any) -> ServerState:
    return worker.strategy.initialize(worker.model.vector.clone(), worker.model.layout)


@every
def test_zero_updates_leave_the_model_unchanged(make: Make) -> None:
    worker = make_worker(strategy(make))
    state, layout = start(worker), worker.model.layout
    means = {name: torch.zeros(size).double() for name, size in worker.strategy.vector_sizes(layout).items()}
    after = worker.strategy.aggregate(state, Aggregate(means, 90.0, ()), layout)
    assert torch.equal(after.vector, state.vector)


@covering
def test_equal_clients_are_one_client(make: Make) -> None:
    """Every client has the same samples in the same order, so the mean is any one of them."""
    one = make_worker(strategy(make), sizes=(30,))
    indices = one.data.train_indices(0)
    many = make_worker(strategy(make), sizes=(10, 10, 10))
    object.__setattr__(many, "data", _Copies(many.data, indices))
    several, alone = fit(many)[0], fit(one)[0]
    assert digest(several.vector) == digest(alone.vector)
    assert all(torch.equal(several.memory[0][name], kept) for name, kept in alone.memory.get(0, {}).items())


class _Copies:
    def __init__(self, data: Any, indices: Any) -> None:
        self._data, self._indices = data, indices
        self.sizes = data.sizes * 0 + len(indices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def train_indices(self, client_id: int, round: int = 0) -> Any:
        return self._indices


@covering
def test_the_order_of_clients_is_harmless(make: Make) -> None:
    class Reversed(AllClients):
        def __call__(self, num_clients: int, *, seed: int, round: int) -> Any:
            return super().__call__(num_clients, seed=seed, round=round)[::-1]

    forward, backward = (fit(make_worker(strategy(make, sampler=s)))[0] for s in (AllClients(), Reversed()))
    assert digests(forward) == digests(backward)


@every
def test_the_state_survives_a_checkpoint(make: Make, tmp_path: Any) -> None:
    sampler = AllClients() if make.func is AFL else UniformSampler(num=2)  # AFL's mixture needs all losses
    options = {"sampler": sampler, "rounds": 4}
    trainer = EagerTrainer(batch_size=8, keep_optimizer_state=True)
    kind = Normed if make is STRATEGIES["fedbn"] else Linear
    module = partial(kind, momentum=0.0 if make in PLAIN_SGD else 0.9)
    whole, history = fit(make_worker(strategy(make, **options), module=_seeded(module), trainer=trainer))
    half_way, _ = fit(make_worker(strategy(make, **options | {"rounds": 2}), module=_seeded(module), trainer=trainer))
    path = save_checkpoint(tmp_path, half_way, {"a": 1})
    worker = make_worker(strategy(make, **options), module=_seeded(module), trainer=trainer)
    resumed, _ = fit(worker, state=load_checkpoint(path, {"a": 1}), history=history[:2])
    assert digests(resumed) == digests(whole)
    assert {name: t.tolist() for name, t in resumed.optimizer.items()} == {
        name: t.tolist() for name, t in whole.optimizer.items()
    }
    assert sorted(resumed.memory) == sorted(whole.memory)
    assert all(torch.equal(resumed.variables[name], tensor) for name, tensor in whole.variables.items())


def _seeded(make: Any) -> Any:
    torch.manual_seed(0)
    return make()


@every
def test_the_loss_falls_on_a_toy_problem(make: Make) -> None:
    made, name, options = strategy(make, rounds=15), "test/loss", {}
    parts = [STRATEGIES[name] for name in ("local", "lgfedavg", "fedbn")]
    if make in parts:  # their global models have initial parts: clients' own losses fall
        name = "train/loss"
    elif made.personal == ("*",):  # FedMD and FedDistill have no global model: the clients' own ones are evaluated
        name, options = "clients/personal/loss_mean", {"evaluator": Evaluator(clients_every=1), "holdout": 0.2}
    _, history = fit(make_worker(made, **options))
    losses = [record.metrics[name] for record in history]
    assert losses[-1] < 0.8 * losses[0]


@covering
def test_a_module_with_everything_trains_unchanged(make: Make) -> None:
    if make in PLAIN_SGD:
        with pytest.raises(ValueError, match=r"plain torch\.optim\.SGD"):
            strategy(make).check(setup_of(Rich(), strategy=strategy(make)))
        return
    worker = make_worker(strategy(make, rounds=2), module=_seeded(Rich))
    (state, history), (repeated, _) = fit(worker), fit(make_worker(strategy(make, rounds=2), module=_seeded(Rich)))
    assert digests(state) == digests(repeated)
    for record in history:
        clients = 1.0 if "centralized" in str(make).lower() else 3.0  # who has all samples is one client
        assert (record.metrics["clients/num"], record.metrics["clients/rejected"]) == (clients, 0.0)


@covering
def test_rounds_are_given_and_state_is_not_changed_in_place(make: Make) -> None:
    worker = make_worker(strategy(make, rounds=2))
    state = start(worker)
    before = state.vector.clone()
    after, history = fit(worker, state=state)
    assert torch.equal(state.vector, before)
    assert [record.round for record in history] == [1, 2]
    assert after.round == 2
    sizes = worker.strategy.vector_sizes(worker.model.layout)
    ones = Aggregate({name: torch.ones(size).double() for name, size in sizes.items()}, 1.0, ())
    aggregated = worker.strategy.aggregate(after, ones, worker.model.layout)
    parts = {**aggregated.optimizer, **aggregated.variables}
    kept = {name: tensor.clone() for name, tensor in parts.items()}
    worker.strategy.aggregate(aggregated, ones, worker.model.layout)
    assert all(torch.equal(parts[name], tensor) for name, tensor in kept.items())

"""DP-SGD: clipped per-sample gradients as Opacus and by hand, Poisson batches, noise, the same on all engines."""

import contextlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from scipy import stats
from torch import Tensor, nn

from flrl.data import TensorSource
from flrl.layout import ParameterLayout
from flrl.strategies import Ditto, FedAvg, FedProx, Scaffold
from flrl.trainers import EagerTrainer, LocalProblem, TracedTrainer, VectorizedTrainer
from flrl.trainers.private import DPSGD
from flrl.trainers.private.clipped_sum import ClippedSum
from flrl.types import Broadcast, ClientTask
from tests.toys import Linear, blobs, make_worker
from tests.trainers.nets import AVERAGE, Net, mlp, trained

PLAIN = DPSGD(max_norm=math.inf, noise_multiplier=0.0)
ENGINES = (EagerTrainer, TracedTrainer, VectorizedTrainer)


def clipped(
    module: pl.LightningModule, batch: Sequence[Tensor], private: DPSGD, weights: Tensor | None = None
) -> Tensor:
    """The sum of clipped per-sample gradients, `[d]`."""
    layout, tensors = ParameterLayout(module), dict(module.named_parameters())
    function = ClippedSum(module, layout, range(len(layout.trained)), private, batch, contextlib.nullcontext)
    given = [tensors[entry.name].detach() for entry in layout.trained]
    ones = torch.ones(len(batch[0])) if weights is None else weights
    return torch.cat(function([*given, *module.buffers()], batch, ones)[1 + len(function.logged) :]).double()


def singles(module: pl.LightningModule, batch: Sequence[Tensor]) -> Tensor:
    """The gradient of each sample by autograd, `[samples, d]`."""
    rows = []
    for sample in zip(*batch, strict=True):
        loss = nn.functional.cross_entropy(module.net(sample[0][None]), sample[1][None])
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]).double())
    return torch.stack(rows)


class Characters(nn.Module):
    """An embedding, an LSTM and a dense layer."""

    def __init__(self, lstm: Any) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(9, 4), lstm(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0][:, -1])


def cnn() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*layers)


def characters() -> nn.Module:
    from opacus.layers import DPLSTM

    return Characters(DPLSTM)


MODULES: dict[str, tuple[Any, Any]] = {
    "2NN": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), (5,)),
    "CNN with GroupNorm": (cnn, (1, 8, 8)),
    "embedding and LSTM": (characters, 6),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_clipped_sum_is_that_of_opacus(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer
    make, shape = MODULES[name]
    torch.manual_seed(0)
    net, labels = make(), torch.arange(12) % 3
    inputs = torch.randint(9, (12, shape)) if isinstance(shape, int) else torch.randn(12, *shape)
    ours = clipped(Net(net), (inputs, labels), DPSGD(max_norm=0.5, noise_multiplier=0.0))
    module: Any = GradSampleModule(net)
    sgd = torch.optim.SGD(module.parameters(), lr=1.0)
    optimizer: Any = DPOptimizer(sgd, noise_multiplier=0.0, max_grad_norm=0.5, expected_batch_size=1)
    nn.functional.cross_entropy(module(inputs), labels).backward()
    optimizer.clip_and_accumulate()
    theirs = torch.cat([parameter.summed_grad.reshape(-1) for parameter in module.parameters()])
    assert 0.2 < float(theirs.norm()) < 6
    assert float((ours - theirs).abs().max()) < 1e-6


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 4, "num_layers": 2}], ids=str)
def test_an_lstm_of_torch_is_clipped_as_by_hand(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = Characters(partial(nn.LSTM, **options))
    net.head = nn.Linear({"bidirectional": 10, "proj_size": 4}.get(next(iter(options), ""), 5), 3)
    batch = (torch.randint(9, (8, 6)), torch.arange(8) % 3)
    rows = singles(Net(net), batch)
    limit = float(rows.norm(dim=1).median())
    expected = (rows * (limit / rows.norm(dim=1)).clamp(max=1)[:, None]).sum(dim=0)
    assert torch.allclose(clipped(Net(net), batch, DPSGD(max_norm=limit, noise_multiplier=0.0)), expected, atol=2e-6)


def test_single_samples_are_clipped_by_hand() -> None:
    torch.manual_seed(0)
    module, source = Net(mlp(0.0)), blobs(10)
    batch = (source.inputs * torch.linspace(0.1, 3, 10)[:, None], source.targets)
    rows = singles(module, batch)
    norms = rows.norm(dim=1)
    limit = float(norms.median())
    expected = (rows * (limit / norms).clamp(max=1)[:, None]).sum(dim=0)
    flat = DPSGD(max_norm=limit, noise_multiplier=0.0)
    assert torch.allclose(clipped(module, batch, flat), expected, atol=1e-5)
    layers = torch.split(rows, [parameter.numel() for parameter in module.parameters()], dim=1)
    share = limit / math.sqrt(len(layers))
    assert len(layers) == 4
    each = torch.cat([(part * (share / part.norm(dim=1)).clamp(max=1)[:, None]).sum(dim=0) for part in layers])
    by_layer = DPSGD(max_norm=limit, noise_multiplier=0.0, clipping="per_layer")
    assert torch.allclose(clipped(module, batch, by_layer), each, atol=1e-5)
    assert not torch.allclose(each, expected, atol=1e-2)


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_without_any_one_sample_the_sum_moves_by_at_most_the_bound(clipping: Any) -> None:
    torch.manual_seed(0)
    module, source = Net(mlp(0.0)), blobs(12)
    batch = (10 * source.inputs, source.targets)
    private = DPSGD(max_norm=0.3, noise_multiplier=0.0, clipping=clipping)
    whole, moved = clipped(module, batch, private), []
    for left_out in range(12):
        weights = (torch.arange(12) != left_out).float()
        moved.append(float((whole - clipped(module, batch, private, weights)).norm()))
        kept = weights.bool()
        alone = clipped(module, (batch[0][kept], batch[1][kept]), private)
        assert float((whole - alone).norm()) <= 0.3 + 1e-6
    assert max(moved) <= 0.3 + 1e-6
    assert max(moved) > 0.25


def problem_of(module: pl.LightningModule, num_samples: int = 40, **changes: Any) -> LocalProblem:
    worker = make_worker(FedAvg(**AVERAGE), module=module, sizes=(num_samples,))
    sent = Broadcast(changes.pop("round", 1), worker.model.vector.clone(), 1.0)
    task = ClientTask(sent.round, changes.pop("client_id", 0), num_samples, 1.0)
    source, seed = worker.data.splits.train, changes.pop("seed", 0)
    return LocalProblem.of(worker.model, source, np.arange(num_samples), task, sent, seed)


def test_noise_is_normal_and_follows_seed_round_client_training_and_step() -> None:
    private = DPSGD(max_norm=0.5, noise_multiplier=3.0)
    problem = problem_of(Linear())
    noise = private.noise(problem, 40_000, 0).numpy()
    assert stats.kstest(noise / 1.5, "norm").pvalue > 0.01
    assert abs(noise.mean()) < 4 * 1.5 / 200
    assert noise.std() == pytest.approx(1.5, rel=0.015)
    others = [
        private.noise(problem_of(Linear(), seed=1), 40_000, 0),
        private.noise(problem_of(Linear(), round=2), 40_000, 0),
        private.noise(problem_of(Linear(), client_id=1), 40_000, 0),
        private.noise(replace(problem, training=1), 40_000, 0),
        private.noise(problem, 40_000, 1),
    ]
    draws = np.stack([noise, *(other.numpy() for other in others)])
    assert np.abs(np.corrcoef(draws) - np.eye(6)).max() < 0.025
    assert np.array_equal(private.noise(problem_of(Linear()), 40_000, 0).numpy(), noise)


def test_secure_noise_is_normal_and_never_the_same() -> None:
    private = DPSGD(max_norm=0.5, noise_multiplier=3.0, secure_noise=True)
    problem = problem_of(Linear())
    first, second = (private.noise(problem, 40_000, 0).numpy() for _ in range(2))
    assert stats.kstest(first / 1.5, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04
    assert len(private.batch(problem, 10, 0)) < 40
    assert not np.array_equal(private.batch(problem, 20, 0), private.batch(problem, 20, 0))


def test_each_sample_is_in_a_batch_with_the_same_probability_independently() -> None:
    private, problem = DPSGD(max_norm=1.0, noise_multiplier=1.0), problem_of(Linear())
    drawn = np.zeros((2000, 40))
    for step in range(2000):
        batch = private.batch(problem, 10, step)
        assert (np.diff(np.searchsorted(np.sort(problem.indices), np.sort(batch))) > 0).all()
        drawn[step] = np.isin(problem.indices, batch)
    assert np.abs(drawn.mean(axis=0) - 0.25).max() < 4 * math.sqrt(0.25 * 0.75 / 2000)
    sizes = np.bincount(drawn.sum(axis=1).astype(int), minlength=41)
    expected = 2000 * stats.binom.pmf(np.arange(41), 40, 0.25)
    kept = expected > 5
    assert stats.chisquare(sizes[kept], expected[kept] * sizes[kept].sum() / expected[kept].sum()).pvalue > 0.01
    assert np.array_equal(private.batch(problem, 64, 0), problem.indices)  # fewer samples than a batch


def stepped(private: DPSGD, *, kind: Any = EagerTrainer, net: Any = None, **options: Any) -> Tensor:
    """Minus the sum of the gradients that two clients' steps went along, from one round of SGD at rate 1."""
    optimizer = partial(torch.optim.SGD, lr=1.0)
    trainer = kind(**{"batch_size": 10, "private": private, **options})
    strategy = FedAvg(**{**AVERAGE, "rounds": 1})
    return trained(strategy, lambda: Net(mlp(0.0) if net is None else net, optimizer), trainer, sizes=(40, 25))[0]


def start() -> Tensor:
    torch.manual_seed(0)
    return torch.cat([parameter.detach().reshape(-1) for parameter in Net(mlp(0.0)).parameters()])


def test_without_noise_and_bound_a_whole_batch_is_plain_sgd() -> None:
    options: dict[str, Any] = {"batch_size": 64, "local_epochs": 3}
    plain, *private = (
        trained(FedProx(mu=0.3, **AVERAGE), lambda: Net(mlp(0.0), schedule=True), kind(private=p, **options))
        for kind, p in ((EagerTrainer, None), *((kind, PLAIN) for kind in ENGINES))
    )
    for vector, history in private:
        assert float((vector - plain[0]).norm()) < 1e-6 * float(plain[0].norm())
        for name in ("train/loss", "train/double"):
            assert history[-1].metrics[name] == pytest.approx(plain[1][-1].metrics[name], rel=1e-6)


@pytest.mark.parametrize("kind", [EagerTrainer, VectorizedTrainer])
def test_steps_do_not_depend_on_how_many_samples_are_in_memory(kind: Any) -> None:
    private = [DPSGD(max_norm=0.2, noise_multiplier=0.5, physical_batch_size=size) for size in (None, 1, 3, 16)]
    whole, *parts = (stepped(each, kind=kind) for each in private)
    for part in parts:
        assert float((part - whole).norm()) < 1e-6 * float(whole.norm())
    assert float((whole - start()).norm()) > 0.1


def test_an_empty_batch_is_a_step_of_noise() -> None:
    private = DPSGD(max_norm=0.5, noise_multiplier=2.0)
    problem = problem_of(Net(mlp(0.0), partial(torch.optim.SGD, lr=1.0)))
    object.__setattr__(private, "batch", lambda problem, batch_size, step: problem.indices[:0])
    for kind in (EagerTrainer, VectorizedTrainer):
        trainer = kind(batch_size=10, local_steps=1, private=private)
        done = trainer.fit(problem, FedAvg(**AVERAGE))
        noise = private.noise(problem, problem.num_trainable, 0)
        assert torch.allclose(-10 * done.difference, noise, atol=1e-5)
        assert done.num_steps == 1
        assert "train/loss" not in done.metrics


def test_a_sample_whose_gradient_is_no_number_counts_as_zero() -> None:
    module, source = Net(mlp(0.0)), blobs(40)
    spoiled = TensorSource(source.inputs.clone(), source.targets)
    spoiled.inputs[3] = torch.nan
    for kind in ENGINES:
        trainer = kind(batch_size=64, private=DPSGD(max_norm=0.3, noise_multiplier=0.0))
        options: dict[str, Any] = {"sizes": (40,), "source": spoiled}
        vector, _ = trained(FedAvg(**{**AVERAGE, "rounds": 1}), lambda: Net(mlp(0.0)), trainer, **options)
        torch.manual_seed(0)
        module = Net(mlp(0.0))
        kept = torch.arange(40) != 3
        total = clipped(module, (source.inputs[kept], source.targets[kept]), trainer.private)  # type: ignore[arg-type]
        assert torch.allclose(vector.double(), start() - 0.1 * total / 40, atol=1e-6)


OPTIMIZERS: dict[str, Any] = {
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": partial(torch.optim.Adam, lr=0.01),
}
CASES: list[Any] = [
    pytest.param(partial(FedAvg, **AVERAGE), "adam", {"gradient_clip_val": 0.1}, id="fedavg adam clipped"),
    *(
        pytest.param(*case, id=name, marks=pytest.mark.slow)
        for name, case in {
            "fedavg momentum": (partial(FedAvg, **AVERAGE), "momentum", {"local_epochs": 2}),
            "fedprox": (partial(FedProx, mu=0.5, **AVERAGE), "momentum", {}),
            "scaffold": (partial(Scaffold, **AVERAGE), None, {}),
            "ditto": (partial(Ditto, lam=0.5, **AVERAGE), None, {}),
            "fedper": (partial(FedAvg, personal=["net.3.*"], **AVERAGE), None, {}),
        }.items()
    ),
]


@pytest.mark.parametrize(("strategy", "optimizer", "options"), CASES)
def test_engines_agree(strategy: Any, optimizer: str | None, options: dict[str, Any]) -> None:
    private = DPSGD(max_norm=0.5, noise_multiplier=1.0, physical_batch_size=6)

    def make() -> Net:
        return Net(mlp(0.0), OPTIMIZERS.get(optimizer or ""))

    given = [kind(batch_size=8, private=private, **options) for kind in ENGINES]
    eager, traced, stacked = (trained(strategy(), make, trainer) for trainer in given)
    assert torch.equal(traced[0], eager[0])
    assert float((stacked[0] - eager[0]).norm()) < 1e-6 * float(eager[0].norm())
    for name in ("train/loss", "train/double"):
        assert stacked[1][-1].metrics[name] == pytest.approx(eager[1][-1].metrics[name], rel=1e-6)
    noiseless = DPSGD(max_norm=0.5, noise_multiplier=0.0)
    without = trained(strategy(), make, EagerTrainer(batch_size=8, private=noiseless, **options))[0]
    assert float((eager[0] - without).norm()) > 0.02


def test_steps_are_replayed_with_the_same_bits_dropout_too() -> None:
    private = DPSGD(max_norm=0.5, noise_multiplier=1.0)
    options: dict[str, Any] = {"batch_size": 8, "local_epochs": 3, "private": private}
    replaying = TracedTrainer(**options)
    traced, eager = (
        trained(FedAvg(**AVERAGE), lambda: Net(mlp()), trainer)[0] for trainer in (replaying, EagerTrainer(**options))
    )
    (recordings,) = replaying._private.values()
    assert len(recordings.recorded) > 1
    assert not recordings.closed
    assert torch.equal(traced, eager)


@pytest.mark.parametrize("kind", [TracedTrainer, pytest.param(VectorizedTrainer, marks=pytest.mark.slow)])
def test_a_clients_bits_do_not_depend_on_what_was_trained_before(kind: Any) -> None:
    checksums = []
    for before in (0, 2):
        torch.manual_seed(0)
        trainer = kind(batch_size=4, private=DPSGD(max_norm=0.5, noise_multiplier=1.0))
        worker = make_worker(FedAvg(**AVERAGE), module=Net(mlp()), trainer=trainer, sizes=(20, 10))
        sent, reports = Broadcast(1, worker.model.vector.clone(), 30.0), []
        for client in [0] * before + [1]:
            worker.train(sent, [ClientTask(1, client, 20 - 10 * client, 1.0)], reports.append)  # type: ignore[attr-defined]
        checksums.append(reports[-1].checksum)  # type: ignore[attr-defined]
    assert len(set(checksums)) == 1


def test_a_term_of_the_strategy_is_added_after_the_noise() -> None:
    """It has no part in what is clipped: far from the global model it is larger than the bound."""
    private = DPSGD(max_norm=1e-3, noise_multiplier=0.0)
    problem = problem_of(Net(mlp(0.0), partial(torch.optim.SGD, lr=1.0)), num_samples=8)
    far = problem.start + 1
    values = {"global": problem.broadcast.vector[: problem.num_trainable]}
    asked = replace(problem, start=far, values=values)
    trainer = EagerTrainer(batch_size=8, local_steps=1, private=private)
    done = trainer.fit(asked, FedProx(mu=0.5, **AVERAGE))
    assert torch.allclose(done.difference[: problem.num_trainable], torch.tensor(-0.5).double(), atol=1e-3)


def test_two_trainings_of_a_client_in_a_round_have_noise_of_their_own() -> None:
    seen: list[tuple[int, int]] = []

    class Watched(DPSGD):
        def noise(self, problem: LocalProblem, size: int, step: int) -> Tensor:
            seen.append((problem.training, step))
            return super().noise(problem, size, step)

    trainer = EagerTrainer(batch_size=10, private=Watched(max_norm=0.5, noise_multiplier=1.0))
    worker = make_worker(Ditto(lam=0.5, **AVERAGE), module=Net(mlp(0.0)), trainer=trainer, sizes=(20,))
    worker.train(Broadcast(1, worker.model.vector.clone(), 20.0), [ClientTask(1, 0, 20, 1.0)], lambda report: None)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_frozen_parameters_have_no_part_in_the_bound_and_no_noise() -> None:
    problem = problem_of(Net(mlp(0.0), partial(torch.optim.SGD, lr=1.0)))
    asked = replace(problem, trainable=frozenset(["net.3.weight", "net.3.bias"]))
    difference = {}
    for kind in ENGINES:
        trainer = kind(batch_size=64, local_steps=1, private=DPSGD(max_norm=1e-2, noise_multiplier=0.0))
        difference[kind] = trainer.fit(asked, FedAvg(**AVERAGE)).difference
        assert torch.count_nonzero(difference[kind][: 5 * 16 + 16]) == 0
    rows = singles(problem.module, (blobs(40).inputs, blobs(40).targets))[:, 5 * 16 + 16 :]
    assert float(rows.norm(dim=1).min()) > 1e-2
    mean = (rows * 1e-2 / rows.norm(dim=1, keepdim=True)).mean(dim=0)
    assert torch.allclose(-difference[EagerTrainer][5 * 16 + 16 :], mean, atol=1e-6)
    assert torch.allclose(difference[VectorizedTrainer], difference[EagerTrainer], atol=1e-7)


def test_an_embedding_is_trained_on_all_engines() -> None:
    tokens = TensorSource(torch.randint(9, (48, 5), generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3)
    private = DPSGD(max_norm=0.5, noise_multiplier=1.0)
    found = [
        trained(
            FedAvg(**{**AVERAGE, "rounds": 1}),
            lambda: Tokens(Characters(nn.LSTM)),
            kind(batch_size=8, private=private),
            sizes=(32, 16),
            source=tokens,
        )[0]
        for kind in ENGINES
    ]
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[2], found[0], atol=1e-6)


class Tokens(Net):
    """Is not tested: the test samples are no tokens."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", torch.zeros(()))

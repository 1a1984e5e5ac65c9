"""SCAFFOLD against an implementation in NumPy, closed forms of quadratics, and what it promises of its variates."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flrl.aggregation import Median
from flrl.callbacks import Callback
from flrl.data import TensorSource
from flrl.evaluation import Evaluator
from flrl.layout import digest
from flrl.runs.checkpoint import load_checkpoint, save_checkpoint
from flrl.sampling import AllClients, UniformSampler
from flrl.strategies import FedAvg, Scaffold
from flrl.strategies.base import Local
from flrl.trainers import EagerTrainer, LightningTrainer, LocalProblem
from flrl.transforms.clip_norm import ClipNorm
from flrl.types import ServerState
from tests.toys import Linear, Notes, Rich, fit, make_worker, setup_of

SIZES = (20, 30, 40)
options = pytest.mark.parametrize("option", [1, 2])


def averaging(rounds: int, num: int | None = None, *, lr: float = 1.0, **more: Any) -> dict[str, Any]:
    sampler = AllClients() if num is None else UniformSampler(num=num)
    return {"rounds": rounds, "sampler": sampler, "server_optimizer": partial(torch.optim.SGD, lr=lr), **more}


class States(Callback):
    """Keeps the state after every round."""

    def __init__(self) -> None:
        self.states: list[ServerState] = []

    def on_round_end(self, state: ServerState, history: Any) -> None:
        self.states.append(replace(state, vector=state.vector.clone()))


def states(worker: Any) -> list[ServerState]:
    watch = States()
    fit(worker, callbacks=[watch])
    return watch.states


def mean_variate(state: ServerState, sizes: Sequence[int]) -> Tensor:
    """The weighted mean of the variates of all clients; one that never took part has zeros."""
    kept = {client: memory["control"].double() for client, memory in state.memory.items()}
    return sum(sizes[client] / sum(sizes) * control for client, control in kept.items())  # type: ignore[return-value]


class Double(Linear):
    """In float64, so that numbers can be compared to many digits."""

    def __init__(self, rates: Callable[[int], float] = lambda step: 0.1) -> None:
        super().__init__(lr=1.0)
        self.rates = rates
        self.double()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step((batch[0].double(), batch[1]), batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rates)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Plain(Rich):
    """Dropout, BatchNorm and hooks, with plain SGD."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


# Against NumPy.


def gradient(w: np.ndarray, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """That of the mean cross-entropy of softmax(A x + b); w is A's rows one after the other, then b."""
    scores = inputs @ w[:15].reshape(3, 5).T + w[15:]
    shares = np.exp(scores - scores.max(1, keepdims=True))
    errors = (shares / shares.sum(1, keepdims=True) - np.eye(3)[labels]) / len(labels)
    return np.concatenate([(errors.T @ inputs).reshape(-1), errors.sum(0)])


def reference(
    w: np.ndarray, clients: list[Any], cohorts: list[list[int]], *, option: int, epochs: int, batch: int,
    rates: Callable[[int, int], float], server_lr: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, set[int]]:  # fmt: skip
    """Algorithm 1 of the paper with n_c as weights: the model, c, all c_i and who has taken part."""
    weights = np.array([len(labels) for _, labels in clients], float)
    c, variates = np.zeros_like(w), np.zeros((len(clients), len(w)))
    for round, cohort in enumerate(cohorts):
        moved, changed = np.zeros_like(w), np.zeros_like(w)
        for i in cohort:
            (inputs, labels), y, travelled, step = clients[i], w.copy(), 0.0, 0
            for _ in range(epochs):
                for start in range(0, len(labels), batch):
                    chosen = slice(start, start + batch)
                    lr, step = rates(round, step), step + 1
                    y -= lr * (gradient(y, inputs[chosen], labels[chosen]) - variates[i] + c)
                    travelled += lr
            new = gradient(w, inputs, labels) if option == 1 else variates[i] - c + (w - y) / travelled
            moved += weights[i] / weights[cohort].sum() * (y - w)
            changed += weights[i] / weights.sum() * (new - variates[i])
            variates[i] = new
        w, c = w + server_lr * moved, c + changed
    return w, c, variates, {i for cohort in cohorts for i in cohort}


@options
@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_rounds_agree_with_numpy(option: int, num: int | None, scheduled: bool) -> None:
    rates = (lambda step: 0.1 * 0.7**step) if scheduled else (lambda step: 0.1)
    strategy = Scaffold(option=option, **averaging(4, num, lr=0.8))
    trainer = EagerTrainer(batch_size=8, local_epochs=2, lr_decay=0.9)
    worker = make_worker(strategy, module=seeded(partial(Double, rates)), sizes=SIZES, trainer=trainer)
    source = worker.data.splits.train
    indices = [worker.data.train_indices(client) for client in range(3)]
    clients = [(source.inputs[i].double().numpy(), source.targets[i].numpy()) for i in indices]
    cohorts = [strategy.sampler(3, seed=0, round=round).tolist() for round in range(1, 5)]
    start = worker.model.vector.clone().numpy()
    for rounds, state in enumerate(states(worker), start=1):
        w, c, variates, seen = reference(
            start, clients, cohorts[:rounds], option=option, epochs=2, batch=8, server_lr=0.8,
            rates=lambda round, step: rates(step) * 0.9**round,
        )  # fmt: skip
        np.testing.assert_allclose(state.vector.numpy(), w, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(state.variables["control"].numpy(), c, rtol=1e-10, atol=1e-13)
        assert set(state.memory) == seen
        for client in seen:
            np.testing.assert_allclose(
                state.memory[client]["control"].numpy(), variates[client], rtol=1e-10, atol=1e-13
            )


# Quadratics, where the drift of FedAvg is known in closed form.


class Quadratic(Double):
    """A sample is (a, b) and its loss a / 2 * (w - b)^2."""

    def __init__(self) -> None:
        super().__init__(lambda step: LR)
        self.net = nn.Linear(1, 1, bias=False).double()
        nn.init.constant_(self.net.weight, 3.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (batch[0][:, 0] / 2 * (self.net.weight.reshape(()) - batch[0][:, 1]) ** 2).mean()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.net.weight.sum() * 0)


A, B, N = np.array([1.0, 4.0, 0.5]), np.array([-2.0, 1.0, 5.0]), np.array([5, 3, 2])
STEPS, LR = 6, 0.05  # at 0.1, option 1 diverges with one client a round: the variates are too old for such steps


def quadratic(strategy: FedAvg, batch_size: int = 5) -> float:
    """The model that STEPS steps a round on three quadratics lead to; N * STEPS with batches of one sample."""
    samples = torch.from_numpy(np.repeat(np.stack([A, B], axis=1), N, axis=0))
    source = TensorSource(samples, torch.zeros(10))
    trainer = EagerTrainer(batch_size=batch_size, local_epochs=STEPS)
    worker = make_worker(
        strategy, module=Quadratic(), sizes=N.tolist(), source=source, trainer=trainer, evaluator=Evaluator(every=999)
    )
    assert [len(worker.data.train_indices(client)) for client in range(3)] == N.tolist()
    return float(fit(worker)[0].vector)


OPTIMUM = float((N * A * B).sum() / (N * A).sum())


@options
@pytest.mark.parametrize("num", [None, 2, 1])
def test_scaffold_reaches_the_optimum_of_quadratics(option: int, num: int | None) -> None:
    rounds = 300 if num == 1 else 60
    assert quadratic(Scaffold(option=option, **averaging(rounds, num))) == pytest.approx(OPTIMUM, abs=1e-8)


def test_fedavg_stops_at_its_biased_point() -> None:
    """STEPS steps take w to b_i + (1 - lr a_i)^STEPS (w - b_i); the mean of these is a fixed point."""
    pull = N * (1 - (1 - LR * A) ** STEPS)
    biased = float((pull * B).sum() / pull.sum())
    assert abs(biased - OPTIMUM) > 0.1
    assert quadratic(FedAvg(**averaging(60))) == pytest.approx(biased, abs=1e-9)


# The variates.


@options
@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
@pytest.mark.parametrize("make", [Linear, Plain])
def test_the_first_round_is_that_of_fedavg_bit_for_bit(option: int, num: int | None, make: Any) -> None:
    scaffold, average = (
        [digest(state.vector) for state in states(make_worker(strategy, module=seeded(make), sizes=SIZES))]
        for strategy in (Scaffold(option=option, **averaging(2, num)), FedAvg(**averaging(2, num)))
    )
    assert scaffold[0] == average[0]
    assert scaffold[1] != average[1]


def test_gradients_of_the_first_round_keep_the_sign_of_zero() -> None:
    signs = Notes()

    class Signed(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.net.weight * -0.0).sum() + self.net.bias.sum()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            signs.add(bool(torch.signbit(self.net.weight.grad).all()))

    fit(make_worker(Scaffold(**averaging(1)), module=Signed(), sizes=SIZES))
    assert signs.all() == [True] * 12


def test_one_client_has_no_drift_to_correct() -> None:
    """c is c_i to the bit, in float32 too, so all rounds are FedAvg's."""
    for option in (1, 2):
        scaffold = fit(make_worker(Scaffold(option=option, **averaging(5)), sizes=(40,)))[0]
        assert digest(scaffold.vector) == digest(fit(make_worker(FedAvg(**averaging(5)), sizes=(40,)))[0].vector)
        assert torch.equal(scaffold.variables["control"], scaffold.memory[0]["control"].double())


@options
@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
@pytest.mark.parametrize("make", [Linear, Plain])
def test_c_is_the_weighted_mean_of_all_variates_after_every_round(option: int, num: int | None, make: Any) -> None:
    worker = make_worker(Scaffold(option=option, **averaging(8, num)), module=seeded(make), sizes=SIZES)
    for state in states(worker):
        control = state.variables["control"]
        assert control.dtype == torch.float64
        assert {memory["control"].dtype for memory in state.memory.values()} == {torch.float32}
        assert float(control.norm()) > 1e-2
        torch.testing.assert_close(control, mean_variate(state, SIZES), rtol=1e-13, atol=1e-14)


@options
def test_a_client_that_is_left_out_leaves_c_and_its_own_variate_alone(option: int) -> None:
    class Spoilt(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.nan if self.trainer.num_training_batches == 4 else loss  # client 1

    before, history = fit(make_worker(Scaffold(option=option, **averaging(2)), sizes=SIZES))
    worker = make_worker(Scaffold(option=option, **averaging(3)), module=Spoilt(), sizes=SIZES)
    after, history = fit(worker, state=before, history=history)
    assert [report.rejected is None for report in history[-1].reports] == [True, False, True]
    assert torch.equal(before.memory[1]["control"], after.memory[1]["control"])
    assert not torch.equal(before.memory[0]["control"], after.memory[0]["control"])
    torch.testing.assert_close(after.variables["control"], mean_variate(after, SIZES), rtol=1e-13, atol=1e-14)


@options
def test_who_sits_out_keeps_its_variate(option: int) -> None:
    strategy = Scaffold(option=option, **averaging(6, 1))
    before: Any = {}
    sat_out = 0
    for state in states(make_worker(strategy, sizes=SIZES)):
        [client] = strategy.sampler(3, seed=0, round=state.round).tolist()
        assert set(state.memory) == {*before, client}
        for other in set(before) - {client}:
            assert torch.equal(state.memory[other]["control"], before[other])
            sat_out += 1
        if client in before:
            assert not torch.equal(state.memory[client]["control"], before[client])
        before = {i: memory["control"] for i, memory in state.memory.items()}
    assert sat_out > 0


def test_a_client_that_takes_no_step_keeps_its_variate() -> None:
    class Lazy(Linear):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if self.trainer.num_training_batches == 3 and self.lazy else None  # client 0

    module = seeded(Lazy)
    module.lazy = False
    worker = make_worker(Scaffold(**averaging(1)), module=module, sizes=SIZES)
    first, _ = fit(worker)
    module.lazy = True
    second, history = fit(make_worker(Scaffold(**averaging(2)), module=module, sizes=SIZES), state=first)
    assert [report.num_steps for report in history[0].reports] == [0, 4, 5]
    assert history[0].metrics["clients/rejected"] == 0
    assert torch.equal(second.memory[0]["control"], first.memory[0]["control"])


def test_memory_of_others_stays() -> None:
    """What a subclass adds is kept beside the variate."""

    class Counting(Scaffold):
        def local(self, problem: LocalProblem) -> Local:
            update = yield from super().local(problem)
            return replace(update, memory={**update.memory, "steps": torch.tensor(update.num_steps)})

    state, _ = fit(make_worker(Counting(**averaging(1)), sizes=SIZES))
    assert {i: (int(memory["steps"]), len(memory)) for i, memory in state.memory.items()} == {
        0: (3, 2), 1: (4, 2), 2: (5, 2)
    }  # fmt: skip


@options
def test_a_resumed_run_ends_in_the_same_bits(option: int, tmp_path: Any) -> None:
    def worker(rounds: int) -> Any:
        trainer = EagerTrainer(batch_size=8, shuffle=True, keep_optimizer_state=True)
        return make_worker(Scaffold(option=option, **averaging(rounds, 2)), module=seeded(Plain), trainer=trainer)

    whole, history = fit(worker(6))
    half_way, _ = fit(worker(3))
    state = load_checkpoint(save_checkpoint(tmp_path, half_way, {}), {})
    resumed, _ = fit(worker(6), state=state, history=history[:3])
    assert digest(resumed.vector) == digest(whole.vector)
    assert torch.equal(resumed.variables["control"], whole.variables["control"])
    assert {i: m["control"].tolist() for i, m in resumed.memory.items()} == {
        i: m["control"].tolist() for i, m in whole.memory.items()
    }


def test_the_trainers_agree_to_the_bit() -> None:
    trainers = EagerTrainer(batch_size=8), LightningTrainer(batch_size=8)
    first, second = (fit(make_worker(Scaffold(**averaging(3)), trainer=t, sizes=SIZES))[0] for t in trainers)
    assert digest(first.vector) == digest(second.vector)
    assert digest(first.variables["control"]) == digest(second.variables["control"])


def test_bytes_are_counted_and_transforms_leave_the_variate_alone() -> None:
    strategy = Scaffold(**averaging(2, 2, transforms={"bound": ClipNorm(max_norm=1e-3)}))
    worker = make_worker(strategy, module=seeded(Plain))
    layout = worker.model.layout
    variate = layout.num_trainable * 4
    assert layout.nbytes > variate
    state, history = fit(worker)
    assert [record.metrics["comm/up_bytes"] for record in history] == [2 * (layout.nbytes + variate)] * 2
    down = [2 * layout.nbytes, 2 * (layout.nbytes + variate)]
    assert [record.metrics["comm/down_bytes"] for record in history] == down
    torch.testing.assert_close(state.variables["control"], mean_variate(state, SIZES), rtol=1e-13, atol=1e-14)


# What it refuses.


@pytest.mark.parametrize("option", [0, 3, "2"])
def test_options_are_1_and_2(option: Any) -> None:
    with pytest.raises(ValueError, match=rf"strategy\.option={option}: must be 1 or 2"):
        Scaffold(option=option, **averaging(1))


def test_other_rules_than_the_mean_are_refused() -> None:
    strategy = Scaffold(**averaging(1, aggregator=Median()))
    with pytest.raises(ValueError, match=r"^strategy\.aggregator=Median: Scaffold's variates need the mean, "):
        strategy.check(setup_of(strategy=strategy))

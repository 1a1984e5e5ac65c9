"""DP-SGD in a run: what it refuses, what is charged, and that a run is the same when it is resumed."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flrl.data import TensorSource
from flrl.errors import ClientError
from flrl.privacy import Charged, epsilon, mechanism_of, sampled_gaussian
from flrl.sampling import PowerOfChoice
from flrl.strategies import AFL, IFCA, Centralized, FedAvg, FedLin, FedSAM, FedSGD, Mime, QFedAvg, Scaffold
from flrl.trainers import EagerTrainer, LightningTrainer, TracedTrainer, VectorizedTrainer, choose_engine
from flrl.trainers.private import DPSGD
from flrl.trainers.private.loop import padded
from flrl.transforms import Soteria
from tests.toys import Linear, Normed, fit, make_worker, setup_of
from tests.trainers.nets import AVERAGE, Net, mlp, trained

DP = DPSGD(max_norm=1.0, noise_multiplier=1.0)


def checked(strategy: Any = None, module: Any = None, kind: Any = EagerTrainer, **options: Any) -> None:
    kind(private=DP, **options).check(setup_of(module, EagerTrainer(private=DP), strategy))


class Hooked(Linear):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "BatchNorm": (lambda: checked(module=Normed()), "BatchNorm1d has statistics of samples.*use GroupNorm"),
    "hooks": (lambda: checked(module=Hooked()), "Hooked overrides on_after_batch_transfer, which may mix"),
    "FedSGD": (lambda: checked(FedSGD(**AVERAGE)), "strategy FedSGD releases losses, gradients or outputs"),
    "AFL": (lambda: checked(AFL(mixture_lr=0.1, **AVERAGE)), "strategy AFL releases"),
    "q-FedAvg": (lambda: checked(QFedAvg(q=1.0, **AVERAGE)), "strategy QFedAvg releases"),
    "IFCA": (lambda: checked(IFCA(clusters=2, **AVERAGE)), "strategy IFCA releases"),
    "Mime": (lambda: checked(Mime(**AVERAGE)), "strategy Mime releases"),
    "FedLin": (lambda: checked(FedLin(**AVERAGE)), "strategy FedLin releases"),
    "SCAFFOLD, option 1": (lambda: checked(Scaffold(option=1, **AVERAGE)), "strategy Scaffold releases"),
    "FedSAM": (lambda: checked(FedSAM(rho=0.1, **AVERAGE)), "strategy FedSAM changes the loss of whole batches"),
    "centralized": (lambda: checked(Centralized(**AVERAGE)), "strategy Centralized pools the samples of clients"),
    "lightning": (lambda: checked(kind=LightningTrainer), "trainer=lightning does not take private steps"),
    "auto": (lambda: choose_engine(None, private=DP), "trainer=auto does not try private steps"),  # type: ignore[arg-type]
    "fuse": (lambda: checked(kind=TracedTrainer, fuse=True), "trainer.fuse and trainer.compile must be false"),
    "channels last": (lambda: checked(memory_format="channels_last"), "must be 'contiguous' with trainer.private"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_release_more_than_noisy_steps_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_what_measures_samples_is_refused() -> None:
    private = EagerTrainer(private=DP)
    with pytest.raises(ValueError, match=r"strategy.transforms.soteria measures samples, without noise"):
        private.check(
            setup_of(None, private, FedAvg(transforms={"soteria": Soteria(layer="net", share=0.5)}, **AVERAGE))
        )
    chosen = {**AVERAGE, "sampler": PowerOfChoice(num=1, candidates=2)}
    with pytest.raises(ValueError, match=r"strategy.sampler PowerOfChoice chooses by losses, which have no noise"):
        private.check(setup_of(None, private, FedAvg(**chosen)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_norm": 0.0}, r"trainer\.private\.max_norm=0\.0: must be positive"),
        ({"noise_multiplier": -1.0}, r"noise_multiplier=-1\.0: must be at least 0 and finite, or null"),
        ({"max_norm": float("inf")}, r"max_norm=inf: there is no noise for it but noise_multiplier=0"),
        ({"clipping": "ghost"}, r"clipping='ghost': must be 'flat' or 'per_layer'"),
        ({"sampling": "shuffle"}, r"sampling='shuffle': must be 'poisson'"),
        ({"physical_batch_size": 0}, r"physical_batch_size=0: must be at least 1, or null"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPSGD(**{"max_norm": 1.0, "noise_multiplier": 1.0, **settings})


class Stepped(Linear):
    """Its training step is a function."""

    def __init__(self, step: Callable[[Any, Any], Any], buffer: bool = False) -> None:
        super().__init__()
        self.step = step
        if buffer:
            self.register_buffer("seen", torch.zeros(5))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(self, batch)


def losses(module: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(module.net(batch[0]), batch[1], reduction="none")


def compared(module: Any, batch: Any) -> Tensor:
    """Samples are compared with each other."""
    scores = module.net(batch[0])
    return losses(module, batch).mean() + (scores - scores.mean(dim=0)).square().sum(dim=1).mean()


def counted(module: Any, batch: Any) -> Tensor:
    module.seen.add_(batch[0].sum(dim=0))
    return losses(module, batch).mean()


def renewed(module: Any, batch: Any) -> Tensor:
    module.seen = module.seen + batch[0].sum(dim=0)
    return losses(module, batch).mean()


def branching(module: Any, batch: Any) -> Tensor:
    loss = losses(module, batch).mean()
    return loss if loss > -1 else 2 * loss


STEPS: dict[str, tuple[Any, str]] = {
    "samples that depend on each other": (compared, "is neither the mean nor the sum of its samples' losses"),
    "a buffer that counts": (counted, "cannot be taken for each sample by torch.func.vmap"),
    "a buffer that is replaced": (renewed, "changes the buffer 'seen', which is sent without noise"),
    "a branch": (branching, "cannot be taken for each sample by torch.func.vmap"),
    "no loss": (lambda module, batch: None, "training_step returned None; every sample needs a loss"),
}


@pytest.mark.parametrize(("step", "message"), STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("kind", [EagerTrainer, VectorizedTrainer])
def test_steps_that_cannot_be_taken_sample_by_sample_are_refused(step: Any, message: str, kind: Any) -> None:
    trainer = kind(batch_size=8, private=DP)
    with pytest.raises((ClientError, ValueError, RuntimeError), match=message):
        trained(FedAvg(**AVERAGE), lambda: Stepped(step, buffer=True), trainer, sizes=(20,))


def test_a_sum_of_losses_is_taken_for_a_mean_and_a_step_may_draw() -> None:
    def model(step: Callable[[Any, Any], Tensor]) -> Tensor:
        trainer = EagerTrainer(batch_size=8, private=DP)
        return trained(FedAvg(**AVERAGE), lambda: Stepped(step), trainer, sizes=(20,))[0]

    mean = model(lambda module, batch: losses(module, batch).mean())
    assert torch.equal(model(lambda module, batch: losses(module, batch).sum()), mean)
    dropped = model(lambda module, batch: nn.functional.dropout(losses(module, batch), 0.5).mean())
    assert dropped.isfinite().all()
    assert not torch.equal(dropped, mean)


def test_only_gradient_problems_and_more_steps_than_are_charged_are_refused() -> None:
    class Sneaking(FedAvg):
        def local(self, problem: Any) -> Any:
            full = yield replace(problem, only_gradient=True)
            return full.update(problem)

    class Longer(FedAvg):
        def local(self, problem: Any) -> Any:
            long = yield replace(problem, epochs=2)
            return long.update(problem)

    class Partial(FedAvg):
        def local(self, problem: Any) -> Any:
            part = yield replace(problem, indices=problem.indices[:3])
            return part.update(problem)

    class Doubling(FedAvg):
        def local(self, problem: Any) -> Any:
            twice = yield replace(problem, indices=np.full_like(problem.indices, problem.indices[0]))
            return twice.update(problem)

    class Turning(FedAvg):
        def local(self, problem: Any) -> Any:
            turned = yield replace(problem, indices=problem.indices[::-1].copy())
            return turned.update(problem)

    for kind, message in (
        (Sneaking, "Sneaking needs whole gradients or losses"),
        (Longer, "Longer takes 6 steps of a round, and 3 are counted by its `passes`"),
        (Partial, "Partial trains on other samples than each of a client's once"),
        (Doubling, "Doubling trains on other samples than each of a client's once"),
    ):
        with pytest.raises(ClientError, match=message):
            trained(kind(**AVERAGE), Linear, EagerTrainer(batch_size=8, private=DP), sizes=(20,))
    trained(Turning(**AVERAGE), Linear, EagerTrainer(batch_size=8, private=DP), sizes=(20,))


def test_a_loss_that_weighs_classes_is_refused_once_they_are_seen() -> None:
    """Of one sample the weights cancel; the weight of class 2 alone is another one, and its first sample comes late."""

    def weighing(module: Any, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(module.net(batch[0]), batch[1], weight=torch.tensor([1.0, 1.0, 50.0]))

    inputs = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    late = torch.tensor([0, 1] * 19 + [2, 0])
    for targets, refused in ((late.clamp(max=1), False), (late, True)):
        for kind in (EagerTrainer, VectorizedTrainer):
            trainer = kind(batch_size=8, local_epochs=4, private=DPSGD(max_norm=1.0, noise_multiplier=0.0))
            with pytest.raises(ClientError, match="neither the mean nor the sum") if refused else nullcontext():
                trained(
                    FedAvg(**AVERAGE), partial(Stepped, weighing), trainer, sizes=(40,),
                    source=TensorSource(inputs, targets),
                )  # fmt: skip


def test_the_clients_of_which_no_other_spends_more_are_charged() -> None:
    trainer = EagerTrainer(batch_size=10, local_epochs=2, private=DP)
    setup = setup_of(None, trainer, sizes=(40, 100, 5, 35, 0))
    key, mechanism = mechanism_of(setup) or ("", None)
    assert (key, mechanism) == ("trainer.private", DP)
    participations = np.array([2, 3, 1, 2, 7])
    # steps of a round: 2 epochs of 4, 10, 1, 4 batches; probabilities 1/4, 1/10, 1, 2/7
    events = DP.events(setup, Charged(3, participations), 1.3)
    expected = [(1.0, 2), (10 / 35, 16), (0.1, 60)]
    assert events == [sampled_gaussian(1.3, probability, steps) for probability, steps in expected]
    all_of_them = [(0.25, 16), *expected]
    worst = max(epsilon(sampled_gaussian(1.3, *each), delta=1e-5, accountant="rdp") for each in all_of_them)
    assert max(epsilon(event, delta=1e-5, accountant="rdp") for event in events) == worst
    steps = setup_of(None, EagerTrainer(batch_size=10, local_steps=7, private=DP), sizes=(40,))
    assert DP.events(steps, Charged(1, np.array([3])), 2.0) == [sampled_gaussian(2.0, 0.25, 21)]


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one() -> None:
    def worker(rounds: int) -> Any:
        torch.manual_seed(0)
        trainer = EagerTrainer(batch_size=8, private=DP)
        return make_worker(
            Scaffold(**{**AVERAGE, "rounds": rounds}), module=Net(mlp()), trainer=trainer, sizes=(20, 30)
        )

    whole, _ = fit(worker(3))
    state, history = fit(worker(1))
    resumed, _ = fit(worker(3), state=state, history=history)
    assert torch.equal(resumed.vector, whole.vector)


@pytest.mark.slow
def test_a_budget_gives_the_noise_and_the_summary_says_what_was_spent(cli: Any) -> None:
    options = ("strategy.rounds=2", "logger=none", "callbacks=none", "partition.num_clients=4", "trainer.batch_size=40")
    private = ("trainer/private=dp_sgd", "trainer.private.noise_multiplier=null", "privacy.accountant=rdp")
    done = cli(*options, *private, "privacy.epsilon=3", "hydra.run.dir=run")
    assert done.code == 0, done.err
    privacy = json.loads(Path("run/summary.json").read_text())["privacy"]
    assert (privacy["mechanism"], privacy["unit"], privacy["kind"]) == ("trainer.private", "sample", "dp_sgd")
    event = sampled_gaussian(privacy["noise_multiplier"], 40 / 359, 18)
    assert privacy["epsilon"] == pytest.approx(epsilon(event, delta=1e-5, accountant="rdp"))
    assert 2.99 < privacy["epsilon"] <= 3
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert 0 < rows[-2]["privacy/epsilon"] < rows[-1]["privacy/epsilon"] == privacy["epsilon"]


def test_samples_must_be_tensors_of_the_same_length() -> None:
    assert padded((torch.arange(3), torch.ones(3, 2)), 3, 5)[0].tolist() == [0, 1, 2, 0, 0]
    for batch in ((torch.arange(3), "text"), (torch.arange(3), torch.ones(2)), (torch.arange(3), torch.tensor(1.0))):
        with pytest.raises(ValueError, match="batches must be tensors whose first dimension is that of the samples"):
            padded(batch, 3, 5)

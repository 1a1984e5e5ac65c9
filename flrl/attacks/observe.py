"""Makes the observation of a finished run that an attack is given, and apart from it the truth that it is scored by."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.attacks.base import Candidates, Inputs, Local, Observation
from flrl.attacks.samples import gathered, pairs
from flrl.cli.instantiation import make
from flrl.data import TensorSource
from flrl.data.facts import bounds_of, facts_of
from flrl.lightning.plain_sgd import not_plain_sgd
from flrl.lightning.stand_in import OnlyRealTrainerError, TrainerStandIn, attached, configure
from flrl.replay import Exchange, Replay
from flrl.seeding import generator_for, isolated_randomness
from flrl.trainers import LocalProblem
from flrl.types import Broadcast, ClientTask
from flrl.worker import Worker


@dataclass(frozen=True, slots=True)
class Truth:
    """What the observed clients have trained on; no attack sees it.

    Attributes:
        inputs: the samples, `[n, *inputs.shape]`, in the order in which they were first used.
        labels: their classes, int64 `[n]`; None where targets are no classes.
        members: for each candidate whether the clients have trained on it, bool `[candidates]`.
    """

    inputs: Tensor
    labels: Tensor | None
    members: np.ndarray


def observe(
    replay: Replay, round: int, client: int | None, *, seed: int = 0, num_candidates: int = 1000, device: str = "cpu"
) -> tuple[Observation, Truth]:
    """What an observer of a client, or of the mean over a cohort, knows in a round; and the truth.

    Half of the test samples, drawn by the seed, are public; of the other half come candidates that are no members.

    Args:
        replay: of the run.
        round: the round, counted from 1.
        client: the client; None for the mean over the cohort.
        seed: of all that the attack draws.
        num_candidates: of these candidates at most so many are members, and at most so many are not.
        device: where the attack may compute.

    Raises:
        ValueError: the client takes no part in the round, or samples are no pairs of tensors.
        FlrlError: what is recomputed is not what the run has recorded.
    """
    data, worker = replay.worker.data, replay.worker
    exchange = replay.whole_exchange(round) if client is None else replay.exchange(round, client)
    clients = [task.client_id for task in exchange.tasks]
    used = [gathered(*replay.trained_on(round, client_id)) for client_id in clients]
    own_inputs, own_targets = torch.cat([own.inputs for own in used]), torch.cat([own.targets for own in used])
    if not len(own_inputs):
        raise ValueError(f"round={round}: no sample was asked for by the observed clients: there is nothing to find")
    labels = own_targets if own_targets.dtype == torch.int64 and own_targets.ndim == 1 else None
    rng = generator_for(seed, round, clients[0], "attack/public")
    order = rng.permutation(len(data.splits.test))
    public, others = np.sort(order[: len(order) // 2]), order[len(order) // 2 :][:num_candidates]
    members = np.arange(len(own_inputs))[np.sort(rng.permutation(len(own_inputs))[:num_candidates])]
    strangers = gathered(data.splits.test, others)
    shuffled = rng.permutation(len(members) + len(others))
    candidates = TensorSource(
        torch.cat([own_inputs[members], strangers.inputs])[shuffled],
        torch.cat([own_targets[members], strangers.targets])[shuffled],
    )
    observation = Observation(
        round=round,
        clients=clients,
        module=_module(replay, exchange.broadcast.vector),
        layout=replay.layout,
        sent=exchange.broadcast.vector.detach().cpu().clone(),
        update=exchange.vectors["update"],
        vectors={name: vector for name, vector in exchange.vectors.items() if name != "update"},
        num_samples=sum(task.num_samples for task in exchange.tasks),
        local=local_of(worker, exchange.broadcast, exchange.tasks[0]),
        inputs=inputs_of(replay, own_inputs),
        seed=seed,
        public=gathered(data.splits.test, public),
        candidates=Candidates(candidates, np.arange(len(candidates))),
        model_before=_until(replay, round),
        update_in=None if client is None else _updates_of(replay, client),
        device=device,
        trainer=make(replay.recipe.config, "trainer"),  # the worker's own has recorded steps, with clients' samples
        strategy=replay.recipe.strategy(),
    )
    return observation, Truth(own_inputs, labels, shuffled < len(members))


def local_of(worker: Worker, broadcast: Broadcast, task: ClientTask) -> Local:
    """How the clients of a round train: what the strategy asks for first, with the trainer's settings."""
    source, indices = worker.data.splits.train, worker.data.train_indices(task.client_id)
    sent = worker.on_device(broadcast)
    with isolated_randomness(worker.seed, torch.device("cpu")):
        part = worker.strategy.local(LocalProblem.of(worker.model, source, indices, task, sent, worker.seed))
        problem = next(part)
        part.close()
    steps = worker.trainer.num_steps(problem)
    return Local(
        only_gradient=problem.only_gradient,
        lr=_plain_lr(worker, problem),
        batch_size=worker.trainer.batch_size,
        epochs=worker.trainer.num_epochs(problem) if steps is None else None,
        steps=steps,
        shuffle=worker.trainer.shuffle,
    )


def _plain_lr(worker: Worker, problem: LocalProblem) -> float | None:
    trainer, strategy = worker.trainer, worker.strategy
    clipped = getattr(trainer, "trainer_options", {}).get("gradient_clip_val", trainer.gradient_clip_val)
    if clipped is not None or strategy.adjusts_gradient or strategy.adjusts_loss:
        return None
    stand_in = TrainerStandIn(trainer.num_epochs(problem), trainer.num_batches(problem), engine=trainer.engine)
    with attached(problem.module, stand_in), suppress(OnlyRealTrainerError):
        optimizer, schedulers = configure(problem.module, stand_in)
        if not schedulers and not not_plain_sgd(optimizer):
            return float(optimizer.param_groups[0]["lr"]) * trainer.lr_factor(problem)
    return None


def inputs_of(replay: Replay, example: Tensor) -> Inputs:
    """What samples look like; bounds follow from the normalisation of pixels, else from the test samples.

    Args:
        replay: of the run.
        example: some inputs, of which shape and dtype are taken.
    """
    splits = replay.worker.data.splits
    known = bounds_of(splits.train)
    if known is None:
        parts = [part for part, _ in pairs(splits.test, np.arange(len(splits.test)))]
        known = torch.stack([part.min() for part in parts]).min(), torch.stack([part.max() for part in parts]).max()
    low, high = (bound.detach().cpu() for bound in known)
    return Inputs(tuple(example.shape[1:]), example.dtype, low, high, facts_of(splits).num_classes)


def _module(replay: Replay, sent: Tensor) -> Any:
    """A new module with the model that was sent; personal parts are the initial ones."""
    module = replay.recipe.module()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, tensor in replay.layout.unflatten(sent.detach().cpu()).items():
            tensors[name].copy_(tensor)
    return module


def _until(replay: Replay, last: int) -> Any:
    def model_before(round: int) -> Tensor:
        if not 1 <= round <= last + 1:
            raise ValueError(f"the models before the rounds 1 to {last + 1} are known, not that before round {round}")
        return replay.model_before(round)

    return model_before


def _updates_of(replay: Replay, client: int) -> Any:
    def update_in(round: int) -> Tensor | None:
        if client not in replay.cohort(round):
            return None
        found: Exchange = replay.exchange(round, client)
        return found.vectors["update"]

    return update_in

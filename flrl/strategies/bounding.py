"""What a mechanism of client-level differential privacy can be combined with: all else could leave its bound."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flrl.aggregation import Mean
from flrl.privacy import mechanism_of
from flrl.sampling import AllClients, PoissonSampler, expected, needs, weighs
from flrl.scheduling import Synchronous
from flrl.setup import Setup
from flrl.transforms import Transform
from flrl.transforms.apply import bounded, sent_with, unseen
from flrl.types import Broadcast, ServerState

if TYPE_CHECKING:
    from flrl.strategies.base import Strategy

_BASE = "flrl.strategies.base"
_OF_ROUNDS = ("plan", "_planned", "task")


def check_bounded(setup: Setup) -> None:
    """Raise ValueError unless the server's step depends on clients through sums that a mechanism bounds.

    A strategy is given noisy means, no reports and no client memory (`flrl.transforms.bounding`), so that any will do
    whose step is a function of means; `beyond_means` names why one is not. Who takes part and by which weight must not
    follow from what clients have sent.

    It is called in `Strategy.check`, and by the recipe of every run.
    """
    strategy, mechanism = setup.strategy, bounded(setup.transforms)
    if mechanism is None:
        return
    mechanism_of(setup)
    key, what = _key(setup, mechanism), "differential privacy"
    _check_strategy(strategy, key)
    if type(setup.aggregator) is not Mean:  # what a subclass computes is not known
        found = type(setup.aggregator).__name__
        raise ValueError(f"strategy.aggregator={found}: its sensitivity is not known, {key} needs aggregator=mean")
    if setup.aggregator.cosines:
        raise ValueError(f"strategy.aggregator.cosines=true: compares single updates, {key} needs false")
    if not isinstance(strategy.schedule, Synchronous):
        found = type(strategy.schedule).__name__
        raise ValueError(f"strategy.schedule={found}: whose updates count depends on others, {key} needs synchronous")
    if strategy.min_clients > 1:
        raise ValueError(
            f"strategy.min_clients={strategy.min_clients}: must be 1 with {what}, a run must not end because of what "
            "clients send"
        )
    if setup.devices is not None and setup.devices.availability is not None:
        raise ValueError(f"devices.availability: must be null with {what}, who is there depends on who took part")
    _check_sampler(setup, mechanism, key)
    _check_order(setup, mechanism, key)


def asked_what_to_send(
    strategy: "Strategy", state: ServerState, round: int, total_weight: float, num_clients: int
) -> Broadcast:
    """What a strategy and its transforms send to a cohort; under a bound it is told nothing of who is in it.

    Args:
        strategy: the algorithm.
        state: the server's state before the round.
        round: counted from 1.
        total_weight: the sum of the cohort's weights.
        num_clients: number of all clients.
    """
    if bounded(strategy.transforms) is None:
        sent = strategy.broadcast(state, round, total_weight)
    else:
        told = expected(strategy.sampler, num_clients)
        sent = replace(strategy.broadcast(unseen(state, strategy.transforms), round, told), total_weight=total_weight)
    return sent_with(strategy.transforms, sent, state.variables)


def _check_strategy(strategy: "Strategy", key: str) -> None:
    name = type(strategy).__name__
    if strategy.pools_samples:
        raise ValueError(f"strategy: {name} pools the samples of all clients, so that {key} bounds nobody's part")
    if strategy.beyond_means:
        raise ValueError(f"strategy: {name} cannot be combined with {key}: {strategy.beyond_means}")
    own = [method for method in _OF_ROUNDS if getattr(type(strategy), method).__module__ != _BASE]
    if own:
        raise ValueError(
            f"strategy: {name}.{own[0]} decides on tasks itself, with sight of what clients remember, which {key} does "
            "not bound"
        )


def _check_sampler(setup: Setup, mechanism: Any, key: str) -> None:
    sampler, name = setup.sampler, type(setup.sampler).__name__
    if weighs(sampler) or {*needs(sampler)} & {"losses", "norms"}:
        raise ValueError(f"strategy.sampler: {name} draws or weighs by what clients report, which {key} does not bound")
    if mechanism.cohorts == "poisson" and type(sampler) not in (PoissonSampler, AllClients):
        raise ValueError(
            f"strategy.sampler: {name} draws cohorts whose privacy is not counted here; {key} needs sampler=poisson "
            "or all"
        )


def _check_order(setup: Setup, mechanism: Any, key: str) -> None:
    names = list(setup.transforms)
    place = names.index(key.rpartition(".")[2])
    for name in names[:place]:
        if setup.transforms[name].encodes or setup.transforms[name].hides_updates:
            raise ValueError(f"{key}: put it before {name}, whose result it must not change")
    for name in names[:place] + names[place + 1 :]:
        other = setup.transforms[name]
        if type(other).reducer is not Transform.reducer and not other.hides_updates:
            raise ValueError(f"strategy.transforms.{name}: reduces updates its own way, which {key} does not bound")
    noise_from = getattr(mechanism, "noise_from", "server")
    for name in names[place + 1 :]:
        advice = _unfit(setup.transforms[name], names[place], noise_from)
        if advice is not None:
            raise ValueError(f"strategy.transforms.{name}: {advice}")


def _unfit(after: Transform, mechanism: str, noise_from: str) -> str | None:
    """Why a transform must not follow a mechanism; None if it may."""
    kind = type(after)
    if kind.measure is not Transform.measure:
        return f"put it before {mechanism}: it looks at samples, and what {mechanism} has bounded must not follow them"
    if noise_from == "client" or (kind.client is Transform.client and kind.server is Transform.server):
        return None
    if noise_from == "shares":
        why = f"put it before {mechanism}: only sums of what clients send have all of the noise"
        return None if after.hides_updates else why
    if getattr(after, "error_feedback", False):
        return f"error_feedback=true adds to what {mechanism} has bounded; error_feedback=false"
    return None if after.keeps_norm else f"put it before {mechanism}, whose bound it does not keep"


def _key(setup: Setup, mechanism: Any) -> str:
    return next(f"strategy.transforms.{name}" for name, part in setup.transforms.items() if part is mechanism)

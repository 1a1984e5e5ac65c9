"""Secure aggregation: the server learns the sum of the cohort's updates, and nothing else of any of them.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, and SecAgg+, Bell et
al., CCS 2020: `flrl.secagg` is the protocol, for a server that follows it. Clients are simulated: their secrets follow
from the run's seed, so that runs repeat.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from flrl.aggregation.base import Reducer, stats_of
from flrl.aggregation.mean import Mean, MeanReducer
from flrl.secagg import STAGES, Session
from flrl.transforms.base import Transform
from flrl.transforms.masked_sum import MaskedReducer
from flrl.types import ClientUpdate, Context, Metrics, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup

_KEY = "strategy.transforms.secagg"


class SecAgg(Transform):
    """Masks what each client sends, so that only the sum over the cohort can be seen.

    A client that drops out in one of the first three stages is not in the sum; one that does in the last is.

    Args:
        threshold: more than this share of the holders of a secret must answer in every stage, in [0.5, 1).
        neighbours: with how many others each client has masks in common, even: SecAgg+; null: with all; "auto": with
            all up to 50 clients, else with 3 log2 of their number.
        dropouts: probability that a client drops out in a stage (`advertise_keys`, `share_keys`, `masked_input`,
            `unmasking`), by stage; drawn by seed.

    Raises:
        ValueError: a setting is invalid.
    """

    hides_updates = True
    keeps_norm = True

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        neighbours: int | str | None = "auto",
        dropouts: Mapping[str, float] | None = None,
    ) -> None:
        if not 0.5 <= threshold < 1:
            raise ValueError(f"{_KEY}.threshold={threshold}: must be at least 0.5 and below 1")
        if isinstance(neighbours, str) and neighbours != "auto":
            raise ValueError(f"{_KEY}.neighbours={neighbours}: must be an even number, 'auto' or null")
        if isinstance(neighbours, int) and (neighbours < 2 or neighbours % 2):
            raise ValueError(f"{_KEY}.neighbours={neighbours}: must be even, at least 2; or 'auto', or null")
        for stage, share in (dropouts or {}).items():
            if stage not in STAGES:
                raise ValueError(f"{_KEY}.dropouts.{stage}: there are the stages {', '.join(STAGES)}")
            if not 0 <= share < 1:
                raise ValueError(f"{_KEY}.dropouts.{stage}={share}: must be at least 0 and below 1")
        self.threshold, self.neighbours = threshold, neighbours
        self.dropouts = {str(stage): float(share) for stage, share in (dropouts or {}).items()}

    def check(self, setup: "Setup") -> None:
        """Refuse rules that need more than the sum, cohorts of one client, and transforms that come after the masks."""
        if type(setup.aggregator) is not Mean:
            raise ValueError(
                f"{_KEY}: hides each update from the server, and {type(setup.aggregator).__name__} needs them: "
                "strategy/aggregator=mean"
            )
        if setup.most_updates < 2:
            raise ValueError(f"{_KEY}: the sum of one client's update is that update: strategy.sampler must draw more")
        names = list(setup.transforms)
        own = next(name for name, transform in setup.transforms.items() if transform is self)
        for name, transform in setup.transforms.items():
            key, at_client = f"strategy.transforms.{name}", type(transform).client is not Transform.client
            if transform is not self and transform.hides_updates:
                raise ValueError(f"{key}: {own} hides updates already")
            if transform.encodes:
                raise ValueError(f"{key}: what it encodes cannot be summed, and {own} sends sums of masked numbers")
            if names.index(name) > names.index(own) and at_client:
                raise ValueError(f"{key}: nothing can change a masked update: put {name} first, before {own}")

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Say what the client sends in the protocol, and whether it drops out; the masks come with the reducer."""
        words = 2 * (sum(vector.numel() for vector in update.vectors.values()) + 1)
        session, client = self._session(words, context), update.client_id
        unusable = MeanReducer({}, total_weight=context.total_weight).rejection(update, stats_of(update))
        stage = session.lost.get(client, "unmasking")
        dropped = unusable if stage == "unmasking" else f"secagg: dropped out in {stage}"
        sent = session.up_bytes(client, sends=unusable is None)
        payload = {f"secagg/{name}": length for name, length in sent.items()}
        return replace(update, payload=payload, dropped=dropped), memory, {}

    def reducer(self, inner: Reducer, context: Context) -> Reducer:
        """The sum of masked updates, in place of the exact sum."""
        if not isinstance(inner, MeanReducer):
            raise TypeError(f"{_KEY}: {type(inner).__name__} is no sum")
        return MaskedReducer(inner, self._session(2 * (sum(inner.sizes.values()) + 1), context))

    def _session(self, words: int, context: Context) -> Session:
        dropouts = tuple(self.dropouts.items())
        cohort = tuple(context.cohort)
        return _session(context.seed, context.round, cohort, words, self.threshold, self.neighbours, dropouts)


@lru_cache(maxsize=4)
def _session(
    seed: int,
    round: int,
    cohort: tuple[int, ...],
    words: int,
    threshold: float,
    neighbours: int | str | None,
    dropouts: tuple[tuple[str, float], ...],
) -> Session:
    return Session(seed, round, cohort, words, threshold, neighbours, dict(dropouts))

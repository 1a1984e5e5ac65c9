"""Base classes of attacks on updates, which can be called on plain rows too."""

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flrl.adversaries.base import Adversary, AdversaryContext
from flrl.aggregation.rows import RowRule
from flrl.layout import ParameterLayout
from flrl.seeding import SERVER
from flrl.types import ClientUpdate, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup


class UpdateAttack(Adversary):
    """Base class of adversaries whose clients change the update that they have trained, each for itself.

    On plain rows: `SignFlip()([[1.0], [3.0]])` is what a malicious client sends whose own update is the rows' mean.
    """

    @abstractmethod
    def changed(self, own: Tensor, context: AdversaryContext) -> Tensor:
        """What is sent instead of a client's own update, float64 `[d]`; `own` must not be changed."""

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> tuple[ClientUpdate, Tensors]:
        """The update with `changed` in its place; nothing is remembered."""
        return with_update(update, self.changed(update.vectors["update"], context)), memory

    def __call__(self, rows: Any, *, seed: int = 0) -> Tensor:
        """What is sent by a client whose own update is the mean of plain rows, float64 `[d]`.

        Args:
            rows: `[n, d]`, a tensor, an array or lists; or one row `[d]`, the client's own update.
            seed: of what the attack draws.
        """
        values = torch.as_tensor(rows, dtype=torch.float64)
        values = values.unsqueeze(0) if values.ndim == 1 else values
        return self.changed(values.mean(dim=0), plain_context(values, 1, seed))


class Colluder(Adversary):
    """Base class of adversaries whose clients see all honest updates of a round, then send what `rows` makes of them.

    The rows that they see have been through the honest clients' transforms; what colluders send goes to the rule as it
    is. Where no honest client takes part in a round, they send what they have trained.

    On plain rows: `IPM(scale=2)(rows)` is what each malicious client sends if `rows` are the honest clients'.
    """

    needs_rows = True

    def check(self, setup: "Setup") -> None:
        """Refuse aggregators that do not keep rows, and federations without an honest client.

        Raises:
            ValueError: the reason.
        """
        super().check(setup)
        name = f"adversary: {type(self).__name__} sees each honest client's update"
        needs_mean = [key for key, part in setup.transforms.items() if part.bounds_sensitivity or part.hides_updates]
        if needs_mean:
            raise ValueError(
                f"{name}, which needs a rule on rows, and strategy.transforms.{needs_mean[0]} needs the mean: leave "
                "one of them out"
            )
        if not isinstance(setup.aggregator, RowRule):
            raise ValueError(
                f"{name}, and strategy.aggregator={type(setup.aggregator).__name__} keeps none: choose a rule on rows, "
                "as strategy/aggregator=median; strategy/aggregator=row_mean is their mean"
            )
        count = len(self.malicious(setup.num_clients, 0))
        if count == setup.num_clients:
            raise ValueError(f"{name}, and adversary.clients={self.clients} leaves no honest client")

    @abstractmethod
    def row(self, honest: Tensor, num_malicious: int, context: AdversaryContext) -> Tensor:
        """What every malicious client sends, float64 `[d]`.

        Args:
            honest: the honest clients' updates, `[h, d]`, h at least 1.
            num_malicious: how many clients collude in this round, at least 1.
            context: the round.
        """

    def collude(self, honest: Tensor, own: Tensor, state: Tensors, context: AdversaryContext) -> tuple[Tensor, Tensors]:
        """The same row for all of them; nothing is remembered."""
        return self.row(honest, len(own), context), state

    def __call__(self, rows: Any, *, num_malicious: int = 1, seed: int = 0) -> Tensor:
        """What each malicious client sends if plain rows are the honest clients', float64 `[d]`.

        Args:
            rows: `[h, d]`, a tensor, an array or lists.
            num_malicious: how many clients collude.
            seed: of what the attack draws.

        Raises:
            ValueError: nobody colludes, or there are no rows.
        """
        if num_malicious < 1:
            raise ValueError(f"num_malicious={num_malicious}: must be at least 1")
        values = torch.as_tensor(rows, dtype=torch.float64)
        sent, _ = self.collude(
            values, values[:1].expand(num_malicious, -1), {}, plain_context(values, num_malicious, seed)
        )
        return sent if sent.ndim == 1 else sent[0]


def with_update(update: ClientUpdate, vector: Tensor) -> ClientUpdate:
    """An update with another vector `update`, float64 `[d]`."""
    return replace(update, vectors={**update.vectors, "update": vector})


def plain_context(rows: Tensor, num_malicious: int, seed: int) -> AdversaryContext:
    """A context for plain rows: round 1, malicious clients after the honest ones, equal weights, a model of zeros."""
    count = len(rows) + num_malicious
    return AdversaryContext(
        round=1,
        seed=seed,
        layout=_plain_layout(rows.shape[1]),
        cohort=range(count),
        total_weight=float(count),
        sent=torch.zeros(rows.shape[1]),
        malicious=range(len(rows), count),
        client_id=SERVER if num_malicious > 1 else count - 1,
        generator=torch.Generator().manual_seed(seed),
    )


def _plain_layout(size: int) -> ParameterLayout:
    """The layout of one parameter."""
    module = torch.nn.Module()
    module.register_parameter("rows", torch.nn.Parameter(torch.zeros(size)))
    return ParameterLayout(module)


def checked_number(name: str, value: float, *, least: float | None = None, above: float | None = None) -> float:
    """A finite number, as it is.

    Raises:
        ValueError: it is out of range; the message names `adversary.<name>`.
    """
    wanted = "finite" if least is None and above is None else ""
    wanted = f"at least {least:g}" if least is not None else wanted
    wanted = f"above {above:g}" if above is not None else wanted
    inside = abs(value) < float("inf") and (least is None or value >= least) and (above is None or value > above)
    if not inside:
        raise ValueError(f"adversary.{name}={value}: must be {wanted}" + ("" if wanted == "finite" else " and finite"))
    return value

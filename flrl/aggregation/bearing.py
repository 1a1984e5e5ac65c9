"""The base class of rules that are told how many clients may be malicious, and the check of a cohort's size."""

from typing import TYPE_CHECKING

from flrl.aggregation.rows import Before, RowRule

if TYPE_CHECKING:
    from flrl.setup import Setup


class BearingRule(RowRule):
    """Base class of rules that are told how many clients may be malicious.

    Args:
        num_malicious: f.
        before: as for `RowRule`.

    Raises:
        ValueError: f is negative.
    """

    bound = (2, 1, "an honest majority")
    """A cohort needs `bound[0] * f + bound[1]` clients, and who says so."""

    def __init__(self, *, num_malicious: int, before: Before | None = None) -> None:
        super().__init__(before=before)
        if not isinstance(num_malicious, int) or num_malicious < 0:
            raise ValueError(f"strategy.aggregator.num_malicious={num_malicious}: must be a whole number, at least 0")
        self.num_malicious = num_malicious

    @property
    def least(self) -> int:
        """The rows that its bound asks for."""
        return self.bound[0] * self.num_malicious + self.bound[1]

    def check(self, setup: "Setup") -> None:
        """Refuse cohorts that are too small for what is proved."""
        super().check(setup)
        part = f"num_malicious={self.num_malicious}: {type(self).__name__}"
        check_cohort(setup, part, self.least, self.bound[2], self.before)

    def enough(self, updates: int) -> bool:
        """Whether it gets the rows that its bound asks for; any will do if nobody is malicious."""
        rows = rows_of(updates, self.before)
        return super().enough(updates) and (rows >= self.least or not self.num_malicious)


def rows_of(updates: int, before: Before | None) -> int:
    """How many rows a rule gets of so many updates."""
    return updates if before is None else before.count(updates)


def check_cohort(setup: "Setup", part: str, least: int, source: str, before: Before | None = None) -> None:
    """Raise ValueError, naming the part, unless a rule gets at least so many rows of the largest cohort."""
    cohort = setup.most_updates
    rows = rows_of(cohort, before)
    if rows < least:
        left = "take part" if rows == cohort else f"take part, of which {type(before).__name__} makes {rows} rows"
        raise ValueError(
            f"strategy.aggregator.{part} needs at least {least} clients in a round ({source}), and {cohort} {left}"
        )

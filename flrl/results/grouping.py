"""Groups of runs to compare: what divides them, and what pairs a run of one with a run of another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flrl.cli.arguments import key_of
from flrl.results.run import Run, setting
from flrl.runs.settings import FREE
from flrl.sweeps import SEEDS

_NO_MATTER = FREE - {"strategy.rounds", "strategy.min_clients", "on_client_failure"} | {"backend"}
"""Keys, or nodes of keys, from which no result follows."""
_NO_GROUP = {*SEEDS, "name", "tags", "resume", "hparams_search"}
_MOST = 3


@dataclass(frozen=True)
class Group:
    """Runs that are compared as one.

    Attributes:
        name: their values of what divides the runs.
        runs: the runs by what pairs them with another group's: their seed, and other settings that vary in a group.
    """

    name: str
    runs: Mapping[str, Run]


def grouped(found: Sequence[Run], group_by: str | None) -> tuple[list[Group], list[str]]:
    """The groups in the order of their first runs, and keys by which they differ although they do not divide them.

    Args:
        found: the runs.
        group_by: groups and keys of the configuration, with commas; None for what the runs' overrides differ by, except
            for seeds.

    Raises:
        ValueError: no run has what is to divide them, or two runs of a group do not differ.
    """
    dividing = _varied_overrides(found) if group_by is None else [key for key in group_by.split(",") if key]
    _check(found, dividing)
    members: dict[str, list[Run]] = {}
    for run in found:
        parts = [name for key in dividing if (name := _named(run, key)) is not None]
        members.setdefault(", ".join(parts) or ("default" if dividing else "all runs"), []).append(run)
    leaves = {run: dict(_leaves(run.config)) for run in found}
    keys = [key for key in dict.fromkeys(k for own in leaves.values() for k in own) if not _below(key, dividing)]
    within = [key for key in keys if any(_differ(key, runs, leaves) for runs in members.values())]
    between = [key for key in keys if key not in within and _differ(key, found, leaves)]
    if "experiment" in dividing:
        between = []  # experiments differ by many settings
    pairing = ["seed", *(key for key in within if key != "seed")]
    groups = [Group(name, _paired(name, runs, pairing, leaves)) for name, runs in members.items()]
    return groups, between


def _paired(
    name: str, runs: Sequence[Run], pairing: Sequence[str], leaves: Mapping[Run, Mapping[str, Any]]
) -> dict[str, Run]:
    by_key: dict[str, Run] = {}
    for run in runs:
        key = " ".join(f"{key}={_text(leaves[run].get(key))}" for key in pairing)
        there = by_key.setdefault(key, run)
        if there is not run:
            raise ValueError(
                f"{there.folder} and {run.folder} are the same run twice ({name}, seed {run.seed}): leave one out"
            )
    return by_key


def _varied_overrides(found: Sequence[Run]) -> list[str]:
    """The groups and keys among the runs' overrides by which the runs differ, without seeds."""
    given = dict.fromkeys(key_of(override) for run in found for override in run.overrides)
    keys = [key for key in given if not key.startswith("hydra") and not _below(key, _NO_GROUP)]
    return [key for key in keys if len({_maybe(run, key) for run in found}) > 1]


def _maybe(run: Run, key: str) -> str | None:
    try:
        return _text(setting(run, key))
    except ValueError:
        return None


def _check(found: Sequence[Run], dividing: Sequence[str]) -> None:
    for key in dividing:
        if all(_maybe(run, key) is None for run in found):
            try:
                setting(found[0], key)
            except ValueError as error:
                raise ValueError(f"group_by={error}") from None


def _named(run: Run, key: str) -> str | None:
    """`fedprox` for a group, `lr=0.1` for a key; None if the run has neither."""
    value = _maybe(run, key)
    return value if value is None or key in run.choices else f"{key.rpartition('.')[2]}={value}"


def _leaves(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{above}{name}"
        if key in _NO_MATTER:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _below(key: str, nodes: Sequence[str] | set[str]) -> bool:
    """Whether a key is one of the nodes or groups, or belongs to one."""
    return any(f"{key}.".replace("/", ".").startswith(node.replace("/", ".") + ".") for node in nodes)


def _differ(key: str, runs: Sequence[Run], leaves: Mapping[Run, Mapping[str, Any]]) -> bool:
    return len({_text(leaves[run].get(key)) for run in runs}) > 1


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more

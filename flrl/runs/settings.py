"""The settings that a run's results depend on, which must not change when it is resumed."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flrl.config import FILLED, FROM_DATA, NO_DEVICES, NOBODY, PrivacyConfig
from flrl.runs.saved import BEFORE, read_config, saved_in
from flrl.seeding import Seeds

FREE = {
    "resume",
    "name",
    "tags",
    "paths",
    "logger",
    "callbacks",
    "log_clients",
    "console",
    "log_level",
    "optimized_metric",
    "target",
    "privacy.epsilon",
    "evaluation",
    "vars",
    "on_client_failure",
    "client_store",
    "strategy.rounds",
    "strategy.min_clients",
    "strategy.aggregator.cosines",
    "dataset.data_dir",
    "dataset.download",
}
"""Keys, and nodes of keys, that may change when a run is resumed."""
_OF_BACKENDS = {"backend.threads", "backend.device", "backend.portable"}
"""The settings of a backend that bits depend on; its kind and the number of processes may change."""
_SAME_BITS = {f"flrl.trainers.{name}Trainer" for name in ("Eager", "Traced", "Lightning")}
_AUTO = "flrl.trainers.choose_engine"
CALIBRATED = (".noise_multiplier", ".sensitivity")
"""What keys end with whose null follows from a budget, or from the run's cohorts."""
_SHOWN = 5
_ABSENT = object()


def earlier_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run in a folder as it was before this command; None if none was saved.

    Raises:
        DamagedError: its file is damaged.
        FileNotFoundError: its file is missing.
    """
    path = saved_in(folder)
    if path is None and (folder / BEFORE).is_dir():
        raise FileNotFoundError(f"{folder}: there is no run to resume ({folder}/.hydra/config.yaml is missing)")
    return None if path is None else read_config(path)


def continued(config: Mapping[str, Any], earlier: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration to resume a run with; `trainer=auto` becomes the engine that the run had.

    So does a noise multiplier of null, which is then what was calibrated.

    Args:
        config: the new configuration.
        earlier: the run's configuration so far.
        folder: the run's folder.

    Raises:
        ValueError: a setting that results depend on has changed.
    """
    config = dict(config)
    if config["trainer"].get("_target_") == _AUTO:
        options = {key: value for key, value in config["trainer"].items() if key not in ("_target_", "memory_format")}
        config["trainer"] = {**earlier["trainer"], **options}
    for key, value in _leaves(earlier):
        if key.endswith(CALIBRATED) and dict(_leaves(config)).get(key, value) is None:
            config = with_value(config, key, value)
    changed = differences(earlier, config)
    if changed:
        shown = "; ".join(f"{key} was {_text(was)}, is {_text(new)}" for key, (was, new) in changed[:_SHOWN])
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ValueError(
            f"the results of {folder} follow from settings that are not what they were: {shown}{more}. "
            "Resume it with what it had, or start a run of its own in another folder without resume; "
            "nothing was changed"
        )
    return config


def differences(earlier: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, tuple[Any, Any]]]:
    """The settings that results depend on and that differ, each with its two values, in the configuration's order."""
    was, now = (dict(_leaves(_with_seeds(tree))) for tree in (earlier, config))
    trainers = {leaves.get("trainer._target_") for leaves in (was, now)}
    found = []
    for key in [*now, *(key for key in was if key not in now)]:
        old, new = was.get(key, _ABSENT), now.get(key, _ABSENT)
        if _is_free(key) or _alike(key, old, new) or (key == "trainer._target_" and trainers <= _SAME_BITS):
            continue
        if not _follows_paths(old, new, earlier, config):
            found.append((key, (old, new)))
    return found


def _is_free(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[: end + 1]) in FREE for end in range(len(parts))) or (
        parts[0] == "backend" and key not in _OF_BACKENDS
    )


def _alike(key: str, old: Any, new: Any) -> bool:
    if key == "backend.device":
        old, new = (str(device).partition(":")[0] for device in (old, new))
    if key.partition(".")[0] in FILLED and key.rpartition(".")[2] in FROM_DATA and (old is None or new is None):
        return True  # null stands for the data's own value
    if key.endswith(CALIBRATED) and new is None:
        return True  # null stands for what was calibrated
    # Engines and backends of other kinds or versions may lack an option: that is the same as an option that is off.
    if key.startswith(("trainer.", "backend.")):
        old, new = (None if value is _ABSENT or value is False or value in ({}, []) else value for value in (old, new))
    return bool(old == new)


def _follows_paths(old: Any, new: Any, earlier: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether two values differ only by the folders of data or outputs."""
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    places = [(str(place), str(config["paths"].get(name))) for name, place in (earlier.get("paths") or {}).items()]
    return any(was and was in old and old.replace(was, now) == new for was, now in places)


def _with_seeds(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with all seeds, and what earlier versions lacked: they had one seed and nobody malicious."""
    seeds = Seeds.of(config)
    partition = {**config["partition"], "seed": seeds.partition}
    given = {"model_seed": seeds.model, "sampling_seed": seeds.sampling, "partition": partition}
    lacking = {"root_samples": 0, "held_out_clients": 0, "public_samples": 0}
    return {
        **lacking,
        **config,
        **given,
        "adversary": config.get("adversary") or NOBODY,
        "devices": config.get("devices") or NO_DEVICES,
        "privacy": config.get("privacy") or asdict(PrivacyConfig()),
    }


def with_value(config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A configuration with another value at a key that it has, such as `strategy.transforms.dp.noise_multiplier`."""
    first, _, rest = key.partition(".")
    return {**config, first: with_value(config[first], rest, value) if rest else value}


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield path, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _text(value: Any) -> str:
    return "not set" if value is _ABSENT else "null" if value is None else str(value)

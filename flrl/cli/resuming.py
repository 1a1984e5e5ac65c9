"""`resume=` starts from the configuration of the earlier run, and applies the command line's arguments to it.

The saved groups become choices, named `resumed`, of a configuration that otherwise is `conf/train.yaml`. So Hydra
applies the arguments as usual: a value replaces a value, a choice replaces a whole group by its yaml, `+` adds and `~`
removes. Nothing here imports torch.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from flrl.cli.arguments import ADDED_GROUPS, config_dirs, key_of, parted, value_of
from flrl.cli.groups import BASE, keys_in
from flrl.cli.keys import composed, holds
from flrl.config import CONF_DIR
from flrl.errors import DamagedError
from flrl.runs.saved import read_config, saved_in

RESUMED = "resumed"
"""The choice in each group that stands for the earlier run's configuration."""
_OUTPUT_DIR = "${hydra:runtime.output_dir}"


@contextlib.contextmanager
def resumable(config_name: str, arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The name of the primary configuration for a command line, and the arguments adapted to it.

    Args:
        config_name: name of the command's own configuration, which is used if no run is resumed.
        arguments: the command line's arguments, options first.
    """
    options, overrides = parted(arguments)
    saved = _earlier(options, overrides) if config_name == "train" else None
    if saved is None:
        yield config_name, list(arguments)
        return
    Plugins.instance()  # registers configurations of Hydra's own, once in a process: they are to stay
    store = ConfigStore.instance()
    before = copy.deepcopy(store.repo)
    try:
        _offer(saved, overrides)
        yield f"{config_name}_{RESUMED}", options + _spelled(options, overrides)
    finally:
        store.repo = before


def _earlier(options: Sequence[str], overrides: Sequence[str]) -> dict[str, Any] | None:
    """The configuration of the run that `resume` names; None if there is none, or it cannot be read."""
    resume = value_of("resume", overrides)
    if resume in (None, "", "null") or (resume == "auto" and {"-m", "--multirun"} & {*options}):
        return None  # each job of a sweep has a folder of its own
    folder = _run_dir(options, overrides) if resume == "auto" else resume
    path = None if folder is None else saved_in(Path(folder))
    try:
        return None if path is None else read_config(path)
    except DamagedError:  # reported when the run is resumed
        return None


def _run_dir(options: Sequence[str], overrides: Sequence[str]) -> str | None:
    folder = value_of("hydra.run.dir", overrides)
    if folder is None or "${" not in folder:
        return folder
    search = f"hydra.searchpath=[{','.join(f'file://{Path(own).resolve()}' for own in config_dirs(options))}]"
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return str(compose("train", [search, *overrides], return_hydra_config=True).hydra.run.dir)
    except (HydraException, OmegaConfBaseException):  # reported when the command line is composed
        return None


def _offer(saved: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Store the saved configuration as a primary one, and each of its groups as a choice."""
    store = ConfigStore.instance()
    own: dict[str, Any] = yaml.safe_load((CONF_DIR / "train.yaml").read_text())
    defaults: list[Any] = []
    for entry in own.pop("defaults"):
        group = next(iter(entry)) if isinstance(entry, dict) else ""
        if group not in saved:
            defaults.append(entry)
            continue
        node = _linked(saved[group] or {}, saved.get("paths") or {}, group)
        _offer_group(group, {**node, "output_dir": _OUTPUT_DIR} if group == "paths" else node)
        defaults.append({group: RESUMED})
        kept = _kept(group, saved[group] or {}, value_of(group, overrides))
        if kept:
            store.store(name=f"{RESUMED}_{group}", node=kept)
            defaults.append(f"{RESUMED}_{group}@{group}")
    body = {key: saved.get(key, value) for key, value in own.items()}
    body["partition"] = {key: saved["partition"].get(key, value) for key, value in own["partition"].items()}
    store.store(name=f"train_{RESUMED}", node={**body, "resume": None, "defaults": defaults})


def _offer_group(group: str, node: dict[str, Any]) -> None:
    """Store a group as a choice, and the groups nested in it too."""
    inner = [key for key, value in node.items() if isinstance(value, dict) and (CONF_DIR / group / key).is_dir()]
    for key in inner:
        _offer_group(f"{group}/{key}", node[key])
    rest = {key: value for key, value in node.items() if key not in inner}
    defaults = {"defaults": [*({key: RESUMED} for key in inner), "_self_"]} if inner else {}
    ConfigStore.instance().store(group=group, name=RESUMED, node={**defaults, **rest})


def _kept(group: str, node: Mapping[str, Any], choice: str | None) -> dict[str, Any]:
    """What a new choice keeps of the earlier one: keys that all backends have, or keys that both trainers have."""
    if choice is None or group not in ("backend", "trainer"):
        return {}
    common = CONF_DIR / BASE / f"{group}.yaml"
    names = {*keys_in(common if group == "backend" else CONF_DIR / group / f"{choice}.yaml")} - {"_target_"}
    return {key: value for key, value in node.items() if key in names}


def _linked(node: Any, paths: Mapping[str, Any], group: str) -> Any:
    """A node in which paths below the earlier run's folders are replaced by links to this run's folders."""
    if isinstance(node, dict):
        return {key: _linked(value, paths, group) for key, value in node.items()}
    if isinstance(node, list):
        return [_linked(value, paths, group) for value in node]
    for name in () if group == "paths" else ("output_dir", *(["data_dir"] if group == "dataset" else [])):
        was = str(paths.get(name) or "")
        if was and isinstance(node, str) and (node == was or node.startswith(f"{was}/")):
            return f"${{paths.{name}}}{node[len(was) :]}"
    return node


def _spelled(options: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Overrides adapted to the saved configuration: `+` may set a key that it has, `~` may name one that it lacks."""
    changing = [given for given in overrides if given[:1] in "+~" and key_of(given) not in ADDED_GROUPS]
    if not changing:
        return list(overrides)
    there = composed(f"train_{RESUMED}", [*options, *overrides])
    spelled = []
    for given in overrides:
        if given in changing and given.startswith("~") and "/" not in given and not holds(there, key_of(given)):
            continue
        present = given in changing and given[0] == "+" and given[1:2] != "+" and holds(there, key_of(given))
        spelled.append(f"+{given}" if present else given)
    return spelled

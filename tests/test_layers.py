"""Imports point down only, and only the entry points know Hydra."""

import ast
from pathlib import Path

import flrl

ROOT = Path(flrl.__file__).parent
LAYERS = [  # from the bottom; a module may import its own layer and those below it
    {"own_code"},
    {"types", "seeding", "errors", "config", "importing", "lightning_hooks", "snapshot", "tracebacks"},
    {"kernels", "environment"},
    {"layout"},
    {"data", "models"},
    {"trainers", "aggregation", "sampling", "transforms", "evaluation"},
    {"strategies", "backends", "callbacks", "logging", "checkpoint"},
    {"signatures"},
    {"keys"},
    {"instantiation", "explaining"},
    {"recipe"},
    {"app", "resuming", "integrity"},
    {"settings"},
    {"run", "evaluate_run"},
    {"verify_run"},
    {"train", "evaluate", "verify"},
]
ENTRY_POINTS = {
    "app",
    "explaining",
    "keys",
    "recipe",
    "run",
    "settings",
    "instantiation",
    "evaluate_run",
    "verify_run",
    "train",
    "evaluate",
    "verify",
}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports() -> list[tuple[str, str]]:
    pairs = []
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            pairs += [(parts[0], name) for name in names]
    return pairs


def test_every_module_has_a_layer() -> None:
    modules = {path.relative_to(ROOT).with_suffix("").parts[0] for path in ROOT.rglob("*.py")}
    assert modules - {"__init__"} == set(LEVEL)


def test_imports_point_down() -> None:
    up = [(a, b) for a, b in imports() if b.startswith("flrl.") and LEVEL[b.split(".")[1]] > LEVEL[a]]
    assert up == []


def test_only_backends_and_entry_points_know_of_other_processes() -> None:
    knowing = {a for a, b in imports() if b.split(".")[0] in ("mpi4py", "multiprocessing")}
    assert knowing == {"backends"}
    mentioning = {path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py") if "MPI" in path.read_text()}
    assert {part.removesuffix(".py") for part in mentioning} <= {"backends"} | ENTRY_POINTS


def test_only_entry_points_know_hydra_and_omegaconf() -> None:
    knowing = {a for a, b in imports() if b.split(".")[0] in ("hydra", "omegaconf")}
    assert knowing <= ENTRY_POINTS

"""Imports point down only; rooms have doors: who may enter which is held here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import flrl

ROOT = Path(flrl.__file__).parent
LAYERS = [  # from the bottom; a module may import its own room and those below it, none beside it
    {
        "own_code",
        "errors",
        "seeding",
        "config",
        "encryption",
        "kernels",
        "models",
        "runs.rows",
        "lightning.hooks",
        "cli.importing",
    },
    {
        "clients",
        "data",
        "layout",
        "secagg",
        "portable",
        "snapshot",
        "runs.environment",
        "runs.saved",
        "cli.tracebacks",
        "sweeps",
        "devices",
    },
    {"types", "bound_model", "setup", "cli", "fairness", "target", "privacy"},
    {"lightning", "aggregation", "sampling", "process_setup", "records", "scheduling"},
    {"transforms"},
    {"callbacks.base", "runs.checkpoint", "trainers.problem", "adversaries"},
    {"trainers.steps", "evaluation", "rounds", "runs", "logging", "callbacks"},
    {"trainers"},
    {"strategies", "examiner", "reporting"},
    {"worker", "root_update"},
    {"backends.base"},
    {"backends.serial", "backends.pool", "recipe"},
    {"backends.local", "backends.mpi", "evaluate_run"},
    {"recorded", "watched"},
    {"replay"},
    {"attacks"},
    {"run", "verify_run", "attack_run", "report_run", "results"},
    {"train", "evaluate", "verify", "attack", "report", "info", "new", "compare", "backends", "audit"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ENTRY_POINTS = {
    "cli",
    "recipe",
    "run",
    "runs",
    "runs.saved",
    "evaluate_run",
    "verify_run",
    "audit",
    "train",
    "evaluate",
    "verify",
    "attack",
    "attack_run",
    "results",
    "sweeps",
    "report",
    "report_run",
}


def room(name: str) -> str:
    """The longest known room that a module is in."""
    parts = name.split(".")
    return next(".".join(parts[:end]) for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in LEVEL)


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports when it runs, and not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        else:
            yield from imported(node)


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}
IMPORTS = [(name, other) for name, path in MODULES.items() for other in imported(ast.parse(path.read_text()))]
OWN = [(name, other.removeprefix("flrl.")) for name, other in IMPORTS if other.startswith("flrl.")]


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name in MODULES} == set(LEVEL)


def test_imports_point_down() -> None:
    pairs = {(room(name), room(other)) for name, other in OWN}
    assert sorted((a, b) for a, b in pairs if a != b and LEVEL[b] >= LEVEL[a]) == []


def entering(start: str) -> set[str]:
    """The rooms from which a room is entered."""
    return {room(name) for name, other in OWN if f"{other}.".startswith(start) and not name.startswith(start[:-1])}


def test_nobody_enters_the_rooms_of_machinery() -> None:
    """An engine is a file in trainers/, a transport a folder in backends/; neither needs to change these."""
    assert entering("trainers.steps.") == {"trainers"}
    assert entering("backends.pool.") == {"backends.local", "backends.mpi"}
    assert entering("backends.local.") == set()
    assert entering("backends.mpi.") == {"train", "evaluate", "verify", "attack"}
    assert entering("trainers.client_batch.") == {"trainers"}
    assert entering("aggregation.exact_sum.") == {"aggregation"}


def test_only_backends_know_of_other_processes() -> None:
    knowing = {room(name) for name, other in IMPORTS if other.split(".")[0] in ("mpi4py", "multiprocessing")}
    assert knowing == {"backends.local", "backends.mpi", "backends.pool"}
    mentioning = {room(name) for name, path in MODULES.items() if "MPI" in path.read_text()}
    assert mentioning <= {name for name in LEVEL if name.startswith("backends")} | ENTRY_POINTS


def test_only_entry_points_know_hydra_and_omegaconf() -> None:
    knowing = {room(name) for name, other in IMPORTS if other.split(".")[0] in ("hydra", "omegaconf")}
    assert knowing <= ENTRY_POINTS


def test_no_file_is_long() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 300} == {}

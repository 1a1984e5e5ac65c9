"""Any sequence of changes, saves, resumes and prunings is that of a plain dict, whatever the budget."""

import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flrl.clients import ClientIndex, ClientMemory, ClientStore

Plain = dict[int, dict[str, list[float]]]
ELEMENTS = 25  # 100 bytes a client
changes = st.dictionaries(st.integers(0, 9), st.none() | st.integers(0, 1000), max_size=6)


def tensors(value: int | None) -> dict[str, torch.Tensor]:
    return {} if value is None else {"control/a": torch.full((ELEMENTS,), float(value))}


def plain(memory: Any) -> Plain:
    return {client: {name: t.tolist() for name, t in own.items()} for client, own in memory.items()}


class Memories(RuleBasedStateMachine):
    """Keeps two checkpoints, as a run does, and one version besides, which may be gone back to."""

    @initialize(budget=st.sampled_from([0, 250, 10**6]))
    def start(self, budget: int) -> None:
        self.folder = Path(mkdtemp())
        self.budget = budget
        self.kept: list[tuple[ClientIndex, Plain]] = []
        self.open()
        self.memory, self.model = self.store.memory(), Plain()
        self.before: tuple[ClientMemory, Plain] = (self.memory, {})

    def open(self) -> None:
        self.store = ClientStore(budget_bytes=self.budget)
        self.store.open(self.folder)

    @rule(changed=changes)
    def update(self, changed: dict[int, int | None]) -> None:
        self.before = (self.memory, self.model)
        self.memory = self.memory.updated({client: tensors(value) for client, value in changed.items()})
        self.model = self.model | {
            client: {"control/a": [float(value)] * ELEMENTS} for client, value in changed.items() if value is not None
        }
        self.model = {client: own for client, own in self.model.items() if changed.get(client, 0) is not None}

    @rule()
    def a_round_fails(self) -> None:
        self.memory, self.model = self.before

    @rule(prune=st.booleans())
    def save(self, prune: bool) -> None:
        self.kept = [*self.kept[-1:], (self.memory.save(), self.model)]
        if prune:
            self.before = (self.memory, self.model)
            self.memory.prune([index for index, _ in self.kept])

    @rule(which=st.integers(0, 1))
    def resume(self, which: int) -> None:
        """As after a kill: nothing is known but the folder as it lies there, and a checkpoint's index."""
        if which < len(self.kept):
            index, self.model = self.kept[which]
            self.kept = self.kept[: which + 1]
            copy = Path(mkdtemp())
            shutil.copytree(self.folder, copy, dirs_exist_ok=True)
            shutil.rmtree(self.folder)
            self.folder = copy
            self.open()
            self.memory = self.store.restored(index, self.folder)
            self.before = (self.memory, self.model)

    @invariant()
    def all_is_as_in_a_dict(self) -> None:
        assert list(self.memory) == sorted(self.model)
        assert plain(self.memory) == self.model
        assert plain(self.before[0]) == self.before[1]

    @invariant()
    def the_budget_holds(self) -> None:
        assert self.store.bytes_in_ram <= self.budget

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


TestMemories = Memories.TestCase
TestMemories.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

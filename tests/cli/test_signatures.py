"""What constructors take, and which plain values fit their annotations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from flrl.cli.signatures import expected, fits, hints_of, named_by, shown, taken_by
from flrl.strategies import FedAvg


class Passing(FedAvg):
    def __init__(self, *, strength: float, **options: Any) -> None:
        super().__init__(**options)


def any_of(a: int, **others: Any) -> None: ...


def test_names() -> None:
    assert taken_by("flrl.strategies.FedAvg") == [
        "server_optimizer",
        "rounds",
        "sampler",
        "schedule",
        "aggregator",
        "transforms",
        "personal",
        "batchnorm",
        "min_clients",
    ]
    assert taken_by("flrl.strategies.FedProx") == ["mu", *(taken_by("flrl.strategies.FedAvg") or [])]
    assert taken_by("flrl.data.partitions.iid") == ["num_samples", "labels", "rng", "num_clients", "min_samples"]
    assert taken_by("flrl.sampling.AllClients") == []
    assert "momentum" in (taken_by("torch.optim.SGD") or [])
    assert taken_by("tests.cli.test_signatures.Passing") is None  # it may keep some for itself
    assert taken_by("tests.cli.test_signatures.any_of") is None


def test_what_a_name_stands_for() -> None:
    assert named_by("torch.optim.SGD") is torch.optim.SGD
    assert named_by("flrl.strategies.FedAvg.aggregate") is FedAvg.aggregate
    with pytest.raises(ValueError, match=r"^_target_=torch\.nn\.Nothing: torch\.nn has no 'Nothing'$"):
        named_by("torch.nn.Nothing")
    with pytest.raises(ValueError, match=r"^_target_=nowhere\.Model: there is no module 'nowhere' that Python finds$"):
        named_by("nowhere.Model")


def test_a_module_in_the_working_directory_where_python_does_not_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere_model.py").touch()
    message = "'nowhere_model' that Python finds; nowhere_model.py is in the working directory: put PYTHONPATH=. before"
    with pytest.raises(ValueError, match=message):
        named_by("nowhere_model.Model")


@pytest.mark.parametrize(
    ("value", "hint", "fitting", "words"),
    [
        (3, int, True, "a whole number"),
        (True, int, False, "a whole number"),
        (3, float, True, "a number"),
        ("abc", float | torch.Tensor, False, "a number"),
        (None, float | torch.Tensor, False, "a number"),
        (None, float | None, True, "a number or null"),
        ("a", Literal["a", "b"], True, "'a' or 'b'"),
        ([0.9, 0.99], tuple[float, float], True, "a list"),
        ([0.9, "x"], tuple[float, float], False, "a list"),
        ("abc", list[str], False, "a list"),
        ("adam", Callable[[int], int], False, "the configuration of an object, with _target_"),
        ({"_target_": "x"}, Callable[[int], int], True, "the configuration of an object, with _target_"),
        (0.5, FedAvg | None, False, "the configuration of an object, with _target_ or null"),
        (["abc"], Sequence[FedAvg], False, "a list of objects, each with _target_"),
        ([{"_target_": "x"}], Sequence[FedAvg], True, "a list of objects, each with _target_"),
    ],
)
def test_fitting(value: Any, hint: Any, fitting: bool, words: str) -> None:
    assert fits(value, hint) is fitting
    assert expected(hint) == words


def test_hints_are_those_of_whom_is_to_be_relied_on() -> None:
    assert hints_of("flrl.strategies.FedProx")["rounds"] is int
    assert fits(0.1, hints_of("torch.optim.Adam")["lr"])
    assert hints_of("tests.cli.test_signatures.Passing") == {}


def test_values_are_shown_as_in_a_yaml() -> None:
    assert [shown(value) for value in (None, True, False, 3, "a")] == ["null", "true", "false", "3", "a"]

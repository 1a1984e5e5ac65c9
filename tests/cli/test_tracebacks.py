"""Which line of a traceback is the user's own."""

import re
import sysconfig
from pathlib import Path

import pytest

import flrl
from flrl.cli.tracebacks import Place, culprit, described, place_in


@pytest.mark.parametrize(
    ("file", "own"),
    [
        (__file__, True),
        ("/home/me/my_model.py", True),
        (str(Path(flrl.__file__).parent / "run.py"), False),
        (re.__file__, False),
        (f"{sysconfig.get_path('stdlib')}/json/decoder.py", False),
        ("/venv/lib/python3.11/site-packages/torch/nn/functional.py", False),
        ("/usr/lib/python3/dist-packages/numpy/core.py", False),
        ("<frozen runpy>", False),
    ],
)
def test_own(file: str, own: bool) -> None:
    assert Place(file, 1, "f").own is own


def test_a_place_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(Place(str(tmp_path / "mine.py"), 7, "step")) == "mine.py:7, in step"
    assert str(Place("/elsewhere/mine.py", 7, "")) == "/elsewhere/mine.py:7"


TEXT = """Traceback (most recent call last):
  File "/home/me/data.py", line 3, in read
    raise KeyError("x")
KeyError: 'x'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/home/me/model.py", line 9, in training_step
    loss(batch)
  File "/venv/lib/python3.11/site-packages/torch/nn/functional.py", line 20, in loss
RuntimeError: no
"""


def test_the_innermost_own_line_of_a_printed_traceback() -> None:
    assert place_in(TEXT) == Place("/home/me/model.py", 9, "training_step")
    assert place_in(TEXT.replace("/home/me/model.py", "/x/site-packages/m.py")) == Place("/home/me/data.py", 3, "read")
    foreign = TEXT.replace("/home/me", "/x/site-packages")
    assert place_in(foreign) == Place("/venv/lib/python3.11/site-packages/torch/nn/functional.py", 20, "loss")
    assert place_in("worker 1 was killed") is None


def test_the_culprit() -> None:
    cause, outer = KeyError("x"), RuntimeError("no")
    try:
        raise cause
    except KeyError:
        outer.__cause__ = cause
    found, place = culprit(outer)
    assert found is cause
    assert place is not None
    assert (place.file, place.function) == (
        __file__,
        "test_the_culprit",
    )
    assert culprit(outer, causes=False) == (outer, None)


def test_a_described_error_is_one_short_line() -> None:
    assert described(ValueError("two\n  lines")) == "ValueError: two lines"
    assert described(AssertionError()) == "AssertionError"
    assert described(ValueError("x" * 700)) == f"ValueError: {'x' * 600} ..."

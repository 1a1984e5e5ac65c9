from typing import Any

import pytest

from flrl.callbacks import Callback, Callbacks, EarlyStopping, NanGuard
from flrl.types import RoundRecord, ServerState


def history(*losses: float | None) -> list[RoundRecord]:
    metrics = [{} if loss is None else {"test/loss": loss} for loss in losses]
    return [RoundRecord(round, m, "") for round, m in enumerate(metrics, start=1)]


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ((3.0, 2.0, 2.0), False),
        ((3.0, 2.0, 2.0, 2.5), True),
        ((3.0, 2.0, 2.1, 1.9), False),
        ((3.0, 2.0, None, None, 2.0), False),
        ((3.0, float("nan"), float("nan")), True),
        ((), False),
    ],
)
def test_early_stopping_counts_evaluated_rounds(losses: Any, stops: bool) -> None:
    reason = EarlyStopping(patience=2).should_stop(history(*losses))
    assert reason == ("test/loss has not improved for 2 evaluations" if stops else None)


def test_early_stopping_by_maximum_and_least_change() -> None:
    stopping = EarlyStopping(mode="max", patience=1, min_delta=0.5)
    assert stopping.should_stop(history(1.0, 1.6)) is None
    assert stopping.should_stop(history(1.0, 1.4)) is not None


def test_early_stopping_names_a_metric_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="monitor='loss' was not evaluated; there are: test/loss"):
        EarlyStopping(monitor="loss").should_stop(history(1.0))


@pytest.mark.parametrize("options", [{"mode": "least"}, {"patience": 0}, {"min_delta": -1.0}])
def test_early_stopping_checks_its_settings(options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EarlyStopping(**options)


def test_nan_guard() -> None:
    guard = NanGuard()
    guard._folder = "/somewhere"
    state = ServerState(1, None)  # type: ignore[arg-type]
    guard.on_round_end(state, history(1.0))
    with pytest.raises(FloatingPointError, match=r"round 2: test/loss is inf; lower the learning rate.*/somewhere"):
        guard.on_round_end(state, history(1.0, float("inf")))


def test_every_callback_is_called_and_closed_even_after_errors() -> None:
    calls = []

    class Breaks(Callback):
        def on_exception(self, state: Any, history: Any, error: BaseException) -> None:
            raise OSError("disk full")

        def close(self) -> None:
            calls.append("breaks")
            raise OSError("still full")

    class Listens(Callback):
        def on_exception(self, state: Any, history: Any, error: BaseException) -> None:
            calls.append(str(error))

        def close(self) -> None:
            calls.append("closed")

    callbacks, error = Callbacks([Breaks(), Listens()]), RuntimeError("first")
    callbacks.on_exception(ServerState(0, None), [], error)  # type: ignore[arg-type]
    assert error.__notes__ == ["then Breaks failed: OSError: disk full"]
    with pytest.raises(ExceptionGroup):
        callbacks.close()
    assert calls == ["first", "breaks", "closed"]


def test_callbacks_forward_every_method() -> None:
    own = {name for name in vars(Callback) if not name.startswith("_")}
    assert own <= set(vars(Callbacks))

"""When training stops, and what is said about it."""

import math

import pytest

torch = pytest.importorskip("torch")

from expc_runtime.clocks import EnvSteps, Epochs, Minutes, Updates
from expc_runtime.errors import BadValue
from expc_runtime.gates import Gate, GateWatch, Until


def stops_at(gate: Gate, values: list[float]) -> tuple[int | None, GateWatch]:
    """The first epoch, from 1, at which training stops."""
    watch = GateWatch(gate)
    for epoch, value in enumerate(values, start=1):
        if watch.see({gate.metric: value}):
            return epoch, watch
    return None, watch


@pytest.mark.parametrize(
    ("bound", "values", "epoch"),
    [
        ({"at_least": 0.9}, [0.5, 0.9, 0.95], 2),
        ({"above": 0.9}, [0.5, 0.9, 0.95], 3),
        ({"at_most": 0.1}, [0.5, 0.1, 0.05], 2),
        ({"below": 0.1}, [0.5, 0.1, 0.05], 3),
        ({"at_least": 0.9}, [0.5, 0.8, math.nan], None),
        ({"below": 1.0}, [math.nan, math.nan], None),
    ],
)
def test_the_first_epoch_that_meets_the_bound_stops(
    bound: dict[str, float], values: list[float], epoch: int | None
) -> None:
    stopped, watch = stops_at(Gate("val/f1", **bound), values)  # type: ignore[arg-type]
    assert stopped == epoch
    assert watch.met is (epoch is not None)


def test_patience_counts_epochs_without_a_better_value() -> None:
    gate = Gate("val/f1", at_least=0.9, patience=2)
    stopped, watch = stops_at(gate, [0.5, 0.4, 0.6, 0.6, 0.5, 0.9])
    assert stopped == 5
    assert not watch.met
    assert "patience was 2" in watch.message("5 epochs")


def test_falling_bounds_are_patient_downwards() -> None:
    assert stops_at(Gate("val/ce", at_most=0.1, patience=2), [3, 2, 1, 2, 3, 0.0])[0] == 5


def test_the_message_says_what_was_reached_and_what_was_asked() -> None:
    _, watch = stops_at(Gate("val/accuracy", at_least=0.95), [0.5, 0.931, 0.93])
    message = watch.message("3 epochs")
    assert "val/accuracy after 3 epochs" in message
    assert "achieved: 0.9310" in message
    assert "required: >= 0.9500" in message
    assert "reached 98.0%" in message
    assert "larger budget" in message and "learning rate" in message


def test_the_message_of_success() -> None:
    _, watch = stops_at(Gate("val/accuracy", at_least=0.99), [0.9902])
    assert watch.message("1 epoch") == "gate met: val/accuracy 0.9902 >= 0.9900"


def test_a_metric_that_was_never_finite_has_no_share() -> None:
    _, watch = stops_at(Gate("val/accuracy", at_least=0.99), [math.nan])
    assert "achieved: nothing finite" in watch.message("1 epoch")


def test_a_metric_that_is_not_measured_is_named_with_those_that_are() -> None:
    with pytest.raises(BadValue, match="reads val/f1, but what is measured is val/accuracy"):
        GateWatch(Gate("val/f1", at_least=0.5)).see({"val/accuracy": 1.0})


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({}, "one of at_least"),
        ({"at_least": 1, "below": 2}, "not 2"),
        ({"at_least": 1, "otherwise": "panic"}, "panic"),
        ({"at_least": 1, "patience": 0}, "patience"),
    ],
)
def test_a_gate_without_a_meaning_is_refused(how: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Gate("val/f1", **how)  # type: ignore[arg-type]


def test_a_gate_reads_train_or_val_never_test() -> None:
    with pytest.raises(ValueError, match="val/<name>"):
        Gate("test/f1", at_least=0.5)


def test_a_watch_goes_on_from_its_state() -> None:
    gate = Gate("val/f1", at_least=0.9, patience=3)
    _, watch = stops_at(gate, [0.6, 0.5])
    other = GateWatch(gate)
    other.load_state_dict(watch.state_dict())
    assert not other.see({"val/f1": 0.55})
    assert other.see({"val/f1": 0.55})
    assert other.best == 0.6


class Pace:
    """20 updates an epoch; from the 100th env step on an update every two of them."""

    def updates_after(self, epochs: int) -> int:
        return 20 * epochs

    def updates_at(self, env_steps: int) -> int:
        return max(0, env_steps - 100) // 2


def test_budgets_in_updates() -> None:
    assert Until(Epochs(3)).updates(Pace()) == 60
    assert Until(Updates(7)).updates(Pace()) == 7
    assert Until(EnvSteps(200)).updates(Pace()) == 50
    assert Until(Minutes(0.5)).updates(Pace()) is None


@pytest.mark.parametrize("clock", [EnvSteps, Epochs, Updates, Minutes])
def test_an_empty_budget_is_refused(clock: type[Epochs]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        clock(0)


def test_clocks_read_as_english() -> None:
    assert [str(c) for c in (Epochs(1), Updates(2), Minutes(0.5))] == [
        "1 epoch",
        "2 updates",
        "0.5 minutes",
    ]

"""Declarations against the code they stand for: names, defaults, ranges, columns."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from expc import components
from expc.components.core import Component
from expc.kinds.names import ATTRIBUTES
from expc.signatures import Parameter, find, signature

ROOT = Path(__file__).parent.parent.parent

# What generated code fills in by itself, by family.
FILLED = {
    "loss": {"pred", "target", "reduction"},
    "head": {"in_features"},
    "optim": {"params"},
    "model": set(),
    "metric": set(),
    "schedule": set(),
    "data": set(),
    "env": {"batch", "device"},
    "encoder": {"in_channels", "size"},
    "dynamics": {"embed", "actions"},
    "decoder": {"in_features", "size"},
    "layers": set(),
    "behaviour": set(),
    "evaluation": set(),
}
DECLARED = [
    component
    for family in components.FAMILIES
    for component in components.built_in(family).values()
]
# What a term of the dynamics is stands in its class; what layers and a behaviour are, in several.
TARGETS = [
    (component, target)
    for component in DECLARED
    if ":" in component.target or any(form.target for form in component.forms)
    for target in dict.fromkeys(
        form.target or component.target for form in component.forms or [None] if form
    )
    or [component.target]
]
OURS = [(c, t) for c, t in TARGETS if t.startswith("expc_runtime.")]


def _name(value: Any) -> str:
    return value.name if isinstance(value, Component) else str(value).partition(":")[2]


def _parameters(target: str) -> dict[str, Parameter]:
    module, _, name = target.partition(":")
    defined = f"{_defining(module, name)}:{name}"
    return {parameter.name: parameter for parameter in signature(defined, ROOT).parameters}


def _defining(module: str, name: str) -> str:
    """Through a package's `__init__` to the module that a class is defined in."""
    for statement in ast.parse(find(module, ROOT).read_text(encoding="utf-8")).body:
        names = statement.names if isinstance(statement, ast.ImportFrom) else []
        if name in (alias.name for alias in names):
            return str(statement.module)
    return module


def _default(component: Component, name: str) -> Any:
    info = component.params.model_fields[name]
    return ... if info.is_required() else info.get_default(call_default_factory=True)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("component", "target"), OURS, ids=_name)
def test_parameters_are_those_of_the_runtime(component: Component, target: str) -> None:
    taken = set(_parameters(target)) - FILLED[component.family]
    every = (
        set().union(*(_parameters(other) for c, other in OURS if c is component), set())
        - FILLED[component.family]
    )
    assert set(component.fields()) - set(component.of_head) == every
    assert taken <= set(component.fields())


@pytest.mark.parametrize(("component", "target"), OURS, ids=_name)
def test_defaults_are_those_of_the_runtime(component: Component, target: str) -> None:
    """A parameter that nobody wrote is not printed: the runtime's default is what runs, and `show` tells ours."""
    for name, parameter in _parameters(target).items():
        if name in FILLED[component.family] or name == "columns":
            continue
        declared = _default(component, name)
        if name == "in_features":  # later parts are given it
            assert parameter.required and component.needs_width and declared is None
            continue
        assert (declared is ...) == parameter.required, name
        if not parameter.required:
            assert _plain(declared) == _plain(parameter.default), name


LOSSES = [c for c in DECLARED if c.family == "loss" and ":" in c.target]


@pytest.mark.parametrize("component", LOSSES, ids=_name)
def test_a_loss_can_be_asked_for_any_reduction(component: Component) -> None:
    taken = _parameters(component.target)
    assert list(taken)[:2] == ["pred", "target"]
    assert taken["reduction"].default == "mean" and taken["reduction"].keyword_only


@pytest.mark.parametrize("component", [c for c in DECLARED if c.family == "optim"], ids=_name)
def test_optimizers_are_as_torch_has_them(component: Component) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch.optim, component.target.partition(":")[2])
    taken = inspect.signature(kind).parameters
    assert "fused" in taken  # generated code asks for it
    for name in component.fields():
        declared, real = _default(component, name), taken[name].default
        assert _plain(declared) == _plain(real), name


def test_every_target_is_there() -> None:
    pytest.importorskip("torch")
    for component, target in TARGETS:
        module, _, name = target.partition(":")
        made = getattr(importlib.import_module(module), name)
        assert callable(made), component.name


@pytest.mark.parametrize(
    ("family", "name", "good", "bad"),
    [
        ("loss", "gce", {"q": 1.0}, {"q": 0.0}),
        ("loss", "gce", {"q": 0.01}, {"q": 1.01}),
        ("loss", "asymmetric", {"clip": 0.0}, {"clip": 1.0}),
        ("loss", "asymmetric", {"clip": 0.99}, {"clip": -0.01}),
        ("loss", "asymmetric", {"gamma_pos": 0.0}, {"gamma_pos": -1.0}),
        ("loss", "focal", {"gamma": 0.0}, {"gamma": -1.0}),
        ("loss", "focal", {"alpha": 0.5}, {"alpha": 1.5}),
        ("loss", "smooth_l1", {"beta": 0.1}, {"beta": -1.0}),
        ("loss", "cross_entropy", {"label_smoothing": 0.0}, {"label_smoothing": 1.5}),
        ("metric", "top_k", {"k": 1}, {"k": 0}),
    ],
)
def test_ranges_are_those_that_the_runtime_holds_to(
    family: Any, name: str, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    """Refused by the declaration, so that the runtime never has to; taken by both."""
    torch = pytest.importorskip("torch")
    component = components.lookup(family, name)
    assert component is not None
    component.params.model_validate(good)
    with pytest.raises(ValidationError):
        component.params.model_validate(bad)
    module, _, function = (component.target or component.forms[0].target).partition(":")
    made = getattr(importlib.import_module(module), function)
    if family == "metric":
        made(**good)
        with pytest.raises(ValueError):
            made(**bad)
        return
    binary = name in ("focal", "asymmetric")
    pred = torch.zeros(4) if binary or name == "smooth_l1" else torch.zeros(4, 3)
    target = torch.ones(4) if pred.ndim == 1 else torch.zeros(4, dtype=torch.int64)
    assert math.isfinite(float(made(pred, target, **good)))
    with pytest.raises((ValueError, RuntimeError)):
        made(pred, target, **bad)


@pytest.mark.parametrize("component", [c for c in DECLARED if c.family == "metric"], ids=_name)
def test_metrics_rise_and_fall_as_declared(component: Component) -> None:
    pytest.importorskip("torch")
    for target in {form.target or component.target for form in component.forms}:
        module, _, name = target.partition(":")
        made = getattr(importlib.import_module(module), name)
        assert component.better == ("higher" if made.higher_is_better else "lower")


@pytest.mark.parametrize("component", [c for c in DECLARED if c.family == "model"], ids=_name)
def test_models_name_their_inputs_as_declared(component: Component) -> None:
    torch = pytest.importorskip("torch")
    module, _, name = component.target.partition(":")
    forward = getattr(importlib.import_module(module), name).forward
    assert issubclass(getattr(importlib.import_module(module), name), torch.nn.Module)
    given = list(inspect.signature(forward).parameters)[1:]
    assert len(component.inputs) + len(component.optional) == len(given)


def test_digits_hold_what_is_declared() -> None:
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("the digits come with scikit-learn")
    from expc_runtime.data.digits import Digits

    declared = components.built_in("data")["digits"]
    columns = Digits().tensors()
    assert list(declared.columns) == list(columns) == list(Digits.columns)
    for name, known in declared.columns.items():
        held = columns[name]
        assert len(held) == declared.rows
        assert tuple(held.shape[1:]) == known.shape
        if known.classes is not None:
            assert known.classes == int(held.max()) + 1 == len(torch.unique(held))
            assert known.prior == pytest.approx(float(torch.bincount(held).max()) / len(held))
        elif known.prior is not None:
            assert known.prior == pytest.approx(float(held.mean()))


def test_shogi_sources_hold_what_is_declared(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from expc_runtime.data.shogi import Games, ReachableSquares

    if importlib.util.find_spec("cshogi") is None:
        pytest.skip("legal moves come with cshogi")
    games = tmp_path / "games.tsv"
    games.write_text("one\tB\tTORYO\tme\tyou\t7g7f 3c3d 8h2b+ 3a2b\n")
    sources = {
        "shogi.reachable_squares": ReachableSquares(),
        "shogi.games": Games(str(games), min_plies=1),
    }
    for name, source in sources.items():
        declared = components.built_in("data")[name]
        held = source.tensors()
        assert [*declared.columns, *declared.groups] == list(held)
        assert list(declared.columns) == list(source.columns)
        assert declared.groups == getattr(source, "groups", ())
        for column, known in declared.columns.items():
            kind = known.dtype or ("int64" if known.classes and not known.shape else "float32")
            assert tuple(held[column].shape[1:]) == known.shape
            assert held[column].dtype == getattr(torch, kind)
            assert declared.rows is None or len(held[column]) == declared.rows
            if known.prior is not None:
                assert known.prior == pytest.approx(float(held[column].mean()))


def test_words_for_columns_mean_the_same_in_specs_and_sources() -> None:
    from expc.components.data import COLUMN_PORTS, Arrays

    annotation = str(Arrays.model_fields["columns"].annotation)
    assert all(f"'{word}'" in annotation for word in COLUMN_PORTS)


def test_no_name_of_the_spec_can_replace_an_attribute_of_a_module() -> None:
    pytest.importorskip("torch")
    from expc_runtime.module import Module

    made = Module()
    has = {name for name in {*dir(made), *vars(made)} if not name.startswith("_")}
    spellable = {name for name in has if name.islower()}
    assert spellable - ATTRIBUTES == set()

"""Properties of the whole compiler: it never crashes, has no dead knob, and edits stay where they are made."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from expc import components, digest
from expc.build import compiled
from expc.emit.python import python_file
from expc.emit.render import _python, lock_text
from expc.findings import SpecError
from expc.kinds import KINDS
from expc.lower import lower
from expc.resolve import Document, Override, document, resolve, slots_of, spec_path
from expc.sweep import conditions
from expc.tree import Where

if TYPE_CHECKING:
    from tests.compiler.conftest import Project

REPOSITORY = Path(__file__).parent.parent.parent
SPECS = sorted(
    path
    for pattern in ("specs/*.yaml", "tests/golden/*/spec.yaml")
    for path in REPOSITORY.glob(pattern)
)
WHOLE = [path for path in SPECS if "_as_" not in path.name]
SUPERVISED = KINDS["supervised"].shape

quick = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def check(text: str) -> bool:
    """Compile a text in a project of its own: valid Python comes out, or findings with a place. No third way."""
    with tempfile.TemporaryDirectory() as root:
        Path(root, "pyproject.toml").touch()
        spec = Path(root, "it.yaml")
        spec.write_text(text, encoding="utf-8")
        try:
            made = compiled(spec)
        except SpecError as error:
            assert error.findings
            for finding in error.findings:
                assert finding.span.line >= 1 and finding.message and finding.code.startswith("XC")
            return False
        for module in made.plan.modules:
            piece = python_file(module, made.plan.experiment, "it.yaml", "generated/it", ())
            compile(_python().render(m=piece), module.file, "exec")
        return True


# ----------------------------------------------------------------------------------- random specs

WORDS = ["digit", "loop", "even", "zero", "image", "backbone", "accuracy", "read", "first"]
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=5),
    st.sampled_from([*WORDS, "val/loop", "", "a.b", "{", "$x", "self"]),
    st.just([]), st.just({}), st.just([{}]), st.just({"use": "mse"}), st.just({"epochs": 1}),
)  # fmt: skip


def values(annotation: Any, info: FieldInfo | None = None) -> st.SearchStrategy[Any]:
    """Values that mostly fit an annotation."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return values(inner[0])
    if origin is Literal:
        return st.sampled_from(list(inner))
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, inner))
    if origin is list:
        return st.lists(values(inner[0]), min_size=1, max_size=3)
    if origin is dict:
        return st.dictionaries(st.sampled_from(WORDS), values(inner[1]), max_size=2)
    if annotation is int:
        return st.integers(1, 40)
    if annotation is float:
        return st.sampled_from([0.05, 0.1, 0.5, 0.9, 1, 2.0])
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        return st.sampled_from(WORDS)
    if annotation is type(None):
        return st.none()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return fields(annotation)
    return JUNK


def fields(model: type[BaseModel], without: frozenset[str] = frozenset()) -> st.SearchStrategy[Any]:
    """Maps with every key that must be there, and some of the others."""
    named = {info.alias or n: info for n, info in model.model_fields.items() if n not in without}
    return st.fixed_dictionaries(
        {n: values(info.annotation, info) for n, info in named.items() if info.is_required()},
        optional={
            n: values(info.annotation, info) for n, info in named.items() if not info.is_required()
        },
    )


def used(slot: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A component and some of its settings."""

    def one(name: str) -> st.SearchStrategy[dict[str, Any]]:
        component = components.built_in(slot.family)[name]
        own = fields(component.params)
        beside = fields(slot.shape) if slot.shape else st.just({})
        return st.builds(lambda a, b: {"use": name, **a, **b}, own, beside)

    return st.sampled_from(sorted(components.built_in(slot.family))).flatmap(one)


FITTING = st.one_of(
    st.fixed_dictionaries(
        {"use": st.sampled_from(["cross_entropy", "gce"]), "target": st.just("digit")}
    ),
    st.fixed_dictionaries(
        {"use": st.sampled_from(["bce", "mse", "focal", "asymmetric", "smooth_l1"])},
        optional={"weight": st.floats(0, 3)},
    ).map(lambda loss: {**loss, "target": "loop"}),
)


@st.composite
def stages(draw: st.DrawFn) -> dict[str, Any]:
    slots = slots_of(SUPERVISED)
    stage = dict(draw(fields(SUPERVISED, without=frozenset({*slots, "kind", "init"}))))
    stage["kind"] = "supervised"
    for key, slot in slots.items():
        if slot.many:
            names = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True))
            stage[key] = {name: draw(used(slot)) for name in names}
        elif key != "schedule" or draw(st.booleans()):
            stage[key] = draw(used(slot))
    if draw(st.booleans()):  # one whose names and ports fit
        stage |= {"data": {"use": "digits", "batch": 8}, "metrics": {}, "monitor": {}}
        stage["model"] = {"trunk": {"use": "conv_net"}}
        stage["loss"] = {head: draw(FITTING) for head in stage["heads"]}
        for head in stage["heads"].values():
            head.pop("gives", None)
        stage["until"] = {draw(st.sampled_from(["epochs", "updates"])): 2}
        stage.pop("checkpoint", None), stage.pop("schedule", None)
    if draw(st.booleans()):
        stage["init"] = draw(st.dictionaries(st.sampled_from(WORDS), JUNK, max_size=1))
    return stage


SWEEPS = st.fixed_dictionaries(
    {},
    optional={
        "seeds": st.lists(st.integers(0, 3), max_size=3),
        "grid": st.dictionaries(
            st.sampled_from(
                ["first.optim.lr", "first.loss.digit.use", "first.precision", "first.data.split.seed",
                 "first.until", "model.backbone", "first.optim", "nowhere.x", "first", ""]
            ),
            st.lists(JUNK, max_size=3),
            max_size=2,
        ),
        "zip": st.dictionaries(
            st.sampled_from(["first.clip", "first.accumulate"]), st.lists(st.integers(1, 3), max_size=2)
        ),
        "conditions": st.dictionaries(
            st.sampled_from(["a", "b", "c d", "$(x)"]),
            st.dictionaries(st.sampled_from(["first", "first.clip"]), JUNK, max_size=2),
            max_size=2,
        ),
        "exclude": st.lists(
            st.dictionaries(st.sampled_from(["first.clip", "condition", "x.y"]), JUNK), max_size=2
        ),
    },
)  # fmt: skip


@quick
@given(
    st.dictionaries(st.sampled_from(["first", "read"]), stages(), min_size=1, max_size=2), SWEEPS
)
def test_a_random_spec_compiles_or_is_told_what_is_wrong(
    made: dict[str, Any], sweep: dict[str, Any]
) -> None:
    spec = {"expc": 1, "name": "x", "about": "x", "stages": made, "sweep": sweep}
    check(yaml.safe_dump(spec, sort_keys=False))


@quick
@given(st.sampled_from(WHOLE), st.data())
def test_a_spec_with_one_value_replaced_compiles_or_is_told(
    spec: Path, data: st.DataObject
) -> None:
    tree = yaml.safe_load(spec.read_text(encoding="utf-8"))
    places = list(_places(tree))
    holder, key = data.draw(st.sampled_from(places))
    if data.draw(st.booleans()):
        holder[key] = data.draw(JUNK)
    elif isinstance(holder, dict):
        del holder[key]
    check(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


@quick
@given(st.sampled_from(SPECS), st.data())
def test_a_text_with_something_struck_out_compiles_or_is_told(
    spec: Path, data: st.DataObject
) -> None:
    text = spec.read_text(encoding="utf-8")
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    put = data.draw(st.text(st.sampled_from(":{}[],&*!|>'\"%@`#-? \n\taé1."), max_size=4))
    check(text[:start] + put + text[end:])


def test_some_random_specs_do_compile() -> None:
    """The property above would hold for a compiler that refused everything."""
    seen: list[bool] = []

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(stages())
    def count(stage: dict[str, Any]) -> None:
        spec = {"expc": 1, "name": "x", "about": "x", "stages": {"first": stage}}
        seen.append(check(yaml.safe_dump(spec)))

    count()
    assert any(seen)


# ---------------------------------------------------------------------------------- edits stay local

CHAIN = """\
expc: 1
name: chain
about: A, then B, then C.
model:
  backbone: {use: conv_net, channels: [4, 8]}
stages:
""" + "".join(
    f"""\
  {name}:
    kind: supervised
{start}    data: {{use: digits, batch: 64, split: {{val: 0.2}}}}
    heads: {{digit: {{use: linear_head, out: 10}}, loop: {{use: linear_head, out: 1}}}}
    loss: {{digit: {{use: cross_entropy}}, loop: {{use: bce, weight: 0.5}}}}
    metrics: {{right: {{use: accuracy, of: digit}}}}
    optim: {{use: adamw, lr: 0.001}}
    until: {{epochs: 2}}
"""
    for name, start in (
        ("alpha", ""),
        ("beta", "    init: {backbone: {from: alpha}}\n"),
        ("gamma", "    init: {backbone: {from: beta}}\n"),
    )
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr: 0.001", "lr: 0.5"),
        ("use: adamw", "use: sgd"),
        ("batch: 64", "batch: 8, drop_last: true"),
        ("{use: bce, weight: 0.5}", "{use: mse}"),
        ("    metrics: {right: {use: accuracy, of: digit}}\n", ""),
        ("until: {epochs: 2}", "until: {updates: 9}\n    clip: 3.0\n    precision: bf16-mixed"),
        ("    kind: supervised\n", "    kind: supervised\n    about: now about\n\n    # something\n    # else\n"),
        ("    init:", "    model: {backbone: {dropout: 0.5}}\n    init:"),
    ],
)  # fmt: skip
def test_an_edit_to_one_stage_leaves_the_files_of_the_others(
    project: Project, old: str, new: str
) -> None:
    before = project.render(CHAIN)
    head, beta, rest = CHAIN.partition("  beta:\n")
    stage, gamma, tail = rest.partition("  gamma:\n")
    assert stage.count(old) == 1
    after = project.render(head + beta + stage.replace(old, new) + gamma + tail)
    assert after.files["beta.py"] != before.files["beta.py"]
    for name in ("alpha.py", "gamma.py"):
        assert after.files[name] == before.files[name]


def test_a_stage_more_leaves_the_files_of_the_others(project: Project) -> None:
    before = project.render(CHAIN)
    more = CHAIN + CHAIN[CHAIN.index("  gamma:") :].replace("gamma", "delta").replace(
        "beta", "gamma"
    )
    after = project.render(more)
    assert {name: after.files[name] for name in before.files if name.endswith(".py")} == {
        name: text for name, text in before.files.items() if name.endswith(".py")
    }


@pytest.mark.parametrize("spec", WHOLE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_comment_changes_nothing_but_places(spec: Path, project: Project) -> None:
    for beside in spec.parent.glob("*.py"):
        project.write(beside.name, beside.read_text(encoding="utf-8"))
    for base in spec.parent.glob("*_*.yaml"):
        project.write(f"specs/{base.name}", base.read_text(encoding="utf-8"))
    if spec.parent.name == "specs":
        for own in (REPOSITORY / "mylab").glob("*.py"):
            project.write(f"mylab/{own.name}", own.read_text(encoding="utf-8"))
    text = spec.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    noted = "# one\n" + "".join(
        f"{line.rstrip()}  # é\n" if line.strip() else "\n\n" for line in lines
    )
    plain, told = project.render(text), project.render(noted)
    assert told.files == plain.files
    assert _without_lines(told.lock) == _without_lines(plain.lock)
    assert lock_text(told.lock) != lock_text(plain.lock)


def _without_lines(lock: Any) -> Any:
    return {
        name: {key: value if key != "map" else [[a, b, path] for a, b, _, path in value]
               for key, value in entry.items()}
        for name, entry in lock["files"].items()
    }  # fmt: skip


def test_bytes_do_not_hang_on_the_order_of_sets_or_the_folder_they_are_made_in() -> None:
    script = """
import hashlib, os, sys
from pathlib import Path
from expc.build import compiled
from expc.emit.render import lock_text, render
whole = hashlib.sha256()
for spec in sys.argv[1:]:
    made = compiled(Path(spec))
    rendered = render(made.experiment, made.plan, "generated/it")
    for name, text in sorted(rendered.files.items()):
        whole.update(f"{name} {text}".encode())
    whole.update(lock_text(rendered.lock).encode())
print(whole.hexdigest())
"""
    told = {
        subprocess.run(
            [sys.executable, "-c", script, *map(str, WHOLE)],
            check=True,
            capture_output=True,
            text=True,
            cwd=folder,
            env={
                "PYTHONPATH": ":".join(filter(None, sys.path)),
                "PYTHONHASHSEED": seed,
                "LC_ALL": locale,
                "TZ": zone,
                "PATH": os.environ["PATH"],
            },
        ).stdout
        for seed, folder, locale, zone in (
            ("0", REPOSITORY, "C", "UTC"),
            ("1", Path("/"), "C.UTF-8", "Asia/Tokyo"),
            ("77", REPOSITORY / "specs", "POSIX", "UTC"),
        )
    }
    assert len(told) == 1


# ------------------------------------------------------------------------------------- no dead knob

NO_EFFECT = {
    "stage.about": "prose: shown in the module's docstring, never part of what runs",
    "stage.kind": "there is one kind so far",
}


def alternatives(annotation: Any) -> Iterator[Any]:
    """Values that a field might take instead."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        yield from alternatives(inner[0])
    elif origin is Literal:
        yield from inner
    elif origin in (typing.Union, types.UnionType):
        for each in inner:
            yield from alternatives(each)
    elif origin is list and any(_models(annotation)):
        yield [{"metric": "pad_enter.event_rate", "below": 0.3}]
    elif origin is list:
        yield from ([a, b] for a, b in itertools.pairwise(alternatives(inner[0])))
        yield from ([a] for a in alternatives(inner[0]))
        yield from ([a] * 4 for a in alternatives(inner[0]))  # one for each stage of a resnet
    elif origin is dict:
        yield {"best": "val/loop"}
        yield {"image": "image"}
        yield {"features": "drift"}
        yield {"readings": "features", "level": "prob", "drift": "real"}
        yield {"backbone": {"file": "other.pt"}}
        yield {
            "id": "group",
            "boardIdPositions": "features",
            "piecesInHand": "features",
            "legalMovesLabel": "prob",
            "resultValue": "prob",
        }
    elif annotation is int:
        yield from (3, 4, 5, 7, 5000)
    elif annotation is float:
        yield from (0.375, 0.75, 1.5, 0.25)
    elif annotation is bool:
        yield from (True, False)
    elif annotation is str:
        yield from (
            "loop",
            "even",
            "digit",
            "error",
            "other.npz",
            "first",
            "best",
            "heads.x",
            "backbone",
            "12",
        )
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            for value in alternatives(info.annotation):
                yield {info.alias or name: value}


def knobs(spec: Document) -> Iterator[tuple[str, str, Any]]:
    """(the field's name, its path in a spec, its annotation) for all that a spec's stages could set."""
    experiment = resolve(spec)
    for name, stage in experiment.stages.items():
        slots = slots_of(type(stage.shape))
        for key, info in type(stage.shape).model_fields.items():
            if key not in slots and key != "run":  # of runs, no programs: see test_policy
                yield from _fields_below(f"stage.{key}", f"{name}.{key}", key, info, stage.shape)
        every = [(slots[key], use) for key, use in stage.uses.items()]
        every += [(slots[key], use) for key, many in stage.maps.items() for use in many.values()]
        for slot, use in every:
            path = ".".join(map(str, use.path[1:]))
            own = "" if use.component.own else f":{use.name}"
            for key, info in use.component.params.model_fields.items():
                if not use.component.own:
                    family = use.component.family
                    yield f"{family}{own}.{key}", f"{path}.{key}", info.annotation
            for key, info in slot.shape.model_fields.items() if slot.shape else ():
                yield from _fields_below(
                    f"{slot.family}.{key}", f"{path}.{key}", f"{slot.family}_{key}", info, use.slot
                )


def _fields_below(
    name: str, path: str, key: str, info: FieldInfo, holder: Any
) -> Iterator[tuple[str, str, Any]]:
    """A field; for one that holds a model, the model's own fields too."""
    yield name, path, info.annotation
    for model in _models(info.annotation):
        if get_origin(info.annotation) is dict:
            for entry in getattr(holder, key, {}):
                for inner, below in model.model_fields.items():
                    alias = below.alias or inner
                    yield f"{key}.{alias}", f"{path}.{entry}.{alias}", below.annotation
        else:
            for inner, below in model.model_fields.items():
                alias = below.alias or inner
                yield f"{key}.{alias}", f"{path}.{alias}", below.annotation


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


@cache
def _read(path: Path) -> Document:
    root = REPOSITORY if path.parent.name == "specs" else path.parent
    return document(path, root)


def wholes() -> Iterator[Document]:
    """Every spec, and as its conditions make it that pick another component."""
    for path in WHOLE:
        spec = _read(path)
        yield spec
        for condition in conditions(resolve(spec)):
            if any(isinstance(each.value, dict) for each in condition.overrides):
                tree = spec.tree
                for each in condition.overrides:
                    place = Where(each.span, each.span, "sweep")
                    tree = tree.override(spec_path(each.path), each.value, place)
                yield replace(spec, tree=tree)


def identities(spec: Document, override: Override | None = None) -> tuple[str, ...]:
    experiment = resolve(spec, [override] if override else [])
    made = []
    for stage in experiment.stages.values():
        program, misfits = lower(experiment, stage)
        if misfits:
            raise SpecError(*misfits)
        made.append(digest.identity(program))
    return tuple(made)


def test_every_field_of_the_language_changes_what_runs() -> None:
    alive: set[str] = set()
    every: set[str] = set()
    for spec in wholes():
        before = identities(spec)
        for name, place, annotation in knobs(spec):
            every.add(name)
            if name in alive and not any(_models(annotation)):
                continue
            for value in alternatives(annotation):
                try:
                    after = identities(spec, Override(place, value, spec.tree.where[()].key))
                except SpecError:
                    continue
                if after != before:
                    alive |= {name, *_inside(name.partition(".")[2], value)}
    assert every - alive == set(NO_EFFECT), "dead knobs, or knobs listed as dead that are not"


def _inside(key: str, value: Any) -> Iterator[str]:
    """Fields of a map that made a difference all by themselves."""
    if isinstance(value, dict) and len(value) == 1:
        ((inner, below),) = value.items()
        yield from _inside(key, below) if isinstance(below, dict) else [f"{key}.{inner}"]


def test_every_component_is_among_the_knobs() -> None:
    """The walk above sees only what the specs use: they must use everything."""
    seen = {name.rpartition(".")[0] for spec in wholes() for name, _, _ in knobs(spec)}
    for family in components.FAMILIES:
        for name, component in components.built_in(family).items():
            if component.fields():
                assert f"{family}:{name}" in seen


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: reader", "name: other"),
        ("about: Which digits have a loop?", "about: Another question."),
        ("    until:", "    about: a stage\n    until:"),
        ("    until: {epochs: 2}\n", "    until: {epochs: 2}\nsweep: {seeds: [1]}\n"),
        ("    until: {epochs: 2}\n", "    until: {epochs: 2}\nsweep: {grid: {read.clip: [1.0]}}\n"),
        ("    until: {epochs: 2}\n", "    until: {epochs: 2}\nsweep: {zip: {read.clip: [1.0]}}\n"),
        ("    until: {epochs: 2}\n", "    until: {epochs: 2}\nsweep: {conditions: {a: {}}}\n"),
    ],
)  # fmt: skip
def test_what_stands_at_the_top_changes_what_is_written(
    project: Project, old: str, new: str
) -> None:
    assert project.render(project.changed(old, new)).files != project.render().files

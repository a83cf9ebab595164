"""`expc schema`: valid JSON Schema that takes every spec that resolves, and refuses what the shapes refuse."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expc import components, schema
from expc.components import FAMILIES
from expc.findings import SpecError
from expc.project import project_root
from expc.resolve import document, resolve
from expc.source import read

jsonschema = pytest.importorskip("jsonschema")

SPECS = sorted((project_root(Path(__file__)) / "specs").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    """A validator of whole specs."""
    return jsonschema.Draft202012Validator(schema.spec())


def test_the_schema_is_valid_draft_2020_12() -> None:
    whole = schema.spec()
    assert whole["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(whole)


def test_every_component_has_a_schema_of_its_own() -> None:
    declared = {name for family in FAMILIES for name in components.built_in(family)}
    assert declared <= set(schema.names())
    for name in schema.names():
        jsonschema.Draft202012Validator.check_schema(schema.component(name))


def test_every_reference_leads_somewhere() -> None:
    whole = schema.spec()

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(whole))
    assert found
    assert {name.removeprefix("#/$defs/") for name in found} <= set(whole["$defs"])


def test_everything_a_person_may_write_is_described() -> None:
    """Editors show these texts; `kind` and `use` describe each of their choices."""
    whole = schema.spec()
    for name, definition in whole["$defs"].items():
        for key, value in definition.get("properties", {}).items():
            told = "description" in value or "const" in value or "oneOf" in value
            assert told, f"{name}.{key} has no description"


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_every_shipped_spec_that_resolves_is_valid(validator: Any, spec: Path) -> None:
    try:
        resolve(document(spec, spec.parent.parent))
    except SpecError:
        pytest.skip("it is there to be refused")
    assert [e.message for e in validator.iter_errors(read(spec, spec.parent.parent).data)] == []


def _data(project: Path) -> dict[str, Any]:
    return copy.deepcopy(read(project / "specs/small.yaml", project).data)


FAULTS = {
    "an unknown key at the top": (("stagse",), {}),
    "an unknown key of a stage": (("stages", "read", "lss"), {}),
    "an unknown kind": (("stages", "read", "kind"), "supervisd"),
    "an unknown loss": (("stages", "read", "loss", "digit"), {"use": "cros_entropy"}),
    "a parameter of another loss": (
        ("stages", "read", "loss", "digit"),
        {"use": "cross_entropy", "gamma": 2.0},
    ),
    "text for a number": (("stages", "read", "optim", "lr"), "3e-4"),
    "a rate below zero": (("stages", "read", "optim", "lr"), -1.0),
    "a batch of none": (("stages", "read", "data", "batch"), 0),
    "a head without a width": (("stages", "read", "heads", "digit"), {"use": "linear_head"}),
    "an unknown clock": (("stages", "read", "until"), {"epoch": 3}),
    "no heads": (("stages", "read", "heads"), {}),
    "another version": (("expc",), 2),
    "an unknown key of the runs": (("run",), {"timeuot": {"hours": 4}}),
    "an unknown class of failure": (("run",), {"retry": {"divergd": {"times": 1}}}),
    "another form of notice": (("run",), {"notify": {"webhook": "X", "form": "mail"}}),
    "a share of a batch beyond it": (("stages", "read", "microbatch"), 2.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_compiler_refuses_is_refused(project: Path, validator: Any, fault: str) -> None:
    path, value = FAULTS[fault]
    data = _data(project)
    assert validator.is_valid(data)
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert not validator.is_valid(data)
    (project / "specs/faulty.yaml").write_text(json.dumps(data))
    with pytest.raises(SpecError):
        resolve(document(project / "specs/faulty.yaml", project))


@pytest.mark.parametrize("key", ["name", "about", "stages", "expc"])
def test_a_spec_needs_its_head(project: Path, validator: Any, key: str) -> None:
    data = _data(project)
    del data[key]
    assert not validator.is_valid(data)


def test_a_spec_that_extends_another_may_leave_anything_out(project: Path, validator: Any) -> None:
    partial = {"extends": "small.yaml", "stages": {"read": {"optim": {"lr": 1.0e-4}}}}
    assert validator.is_valid({"expc": 1, **partial})
    head = {"expc": 1, "name": "other", "about": "Other."}
    (project / "specs/other.yaml").write_text(json.dumps({**head, **partial}))
    resolve(document(project / "specs/other.yaml", project))
    partial["stages"]["read"]["until"] = {"epochs": "many"}  # type: ignore[index]
    assert not validator.is_valid({"expc": 1, **partial})


def test_a_shared_model_may_be_completed_by_a_stage(project: Path, validator: Any) -> None:
    data = _data(project)
    data["model"] = {"trunk": {"use": "mlp", "hidden": [8]}}
    data["stages"]["read"]["model"] = {"trunk": {"in_features": 64}}
    assert validator.is_valid(data)
    (project / "specs/shared.yaml").write_text(json.dumps(data))
    resolve(document(project / "specs/shared.yaml", project))


def test_a_class_of_ones_own_is_valid(project: Path, validator: Any) -> None:
    data = _data(project)
    data["stages"]["read"]["loss"]["digit"] = {"use": "mylab.losses:Mine", "sharpness": 3}
    assert validator.is_valid(data)


def test_one_component_on_the_command_line(expc) -> None:
    said = expc("schema", "bce")
    assert said.code == 0
    bce = json.loads(said.out)
    of_heads, of_a_world = (place["properties"] for place in bce["anyOf"])
    assert set(of_heads) == {"use", "pos_weight", "weight", "of", "target"}
    assert set(of_a_world) == {"use", "pos_weight", "weight"}
    assert of_heads["pos_weight"]["description"] == "weight of the yes side"
    assert jsonschema.Draft202012Validator(bce).is_valid({"use": "bce", "pos_weight": 4.0})
    assert not jsonschema.Draft202012Validator(bce).is_valid({"use": "bce", "pos_wieght": 4.0})


def test_a_mistyped_component(expc) -> None:
    said = expc("schema", "bcee")
    assert said.code == 2 and "Did you mean `bce`?" in said.err


def test_the_whole_schema_on_the_command_line(expc) -> None:
    assert json.loads(expc("schema").out) == schema.spec()


def test_the_schema_that_editors_read_is_fresh() -> None:
    folder = Path(__file__).resolve().parents[2] / "specs"
    assert (folder / "spec.schema.json").read_text(encoding="utf-8") == schema.text(schema.spec())
    for spec in folder.glob("*.yaml"):
        first = spec.read_text(encoding="utf-8").partition("\n")[0]
        assert first == "# yaml-language-server: $schema=spec.schema.json"

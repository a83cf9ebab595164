"""Resolving: what `extends`, the shared model, overrides and defaults make of a spec, and who set each leaf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from expc.experiment import Experiment
from expc.findings import Finding, SpecError
from expc.resolve import Override, document, resolve
from expc.source import parse
from expc.tree import Tree, extend, from_source

if TYPE_CHECKING:
    from tests.compiler.conftest import Project


def tree(text: str, origin: Any = "spec", file: str = "x.yaml") -> Tree:
    return from_source(parse(text, file), origin)


def origin(made: Experiment, path: str) -> str:
    """Who set a path, as `ORIGIN FILE:LINE`."""
    keys = tuple(path.split("."))
    place = made.tree.where[keys if keys[0] in ("model", "sweep", "name") else ("stages", *keys)]
    return f"{place.origin} {place.key.file}:{place.key.line}"


def value(made: Experiment, path: str) -> Any:
    return made.tree.get(("stages", *path.split(".")))


# --------------------------------------------------------------------------------------------- trees


def test_own_keys_win_and_the_rest_is_filled_in() -> None:
    own = tree("a: {x: 1, l: [9]}\nc: 3\n")
    base = tree("a: {x: 7, y: 8, l: [1, 2, 3]}\nb: 2\n", "extends", "base.yaml")
    both = extend(own, base)
    assert both.data == {"a": {"x": 1, "y": 8, "l": [9]}, "b": 2, "c": 3}
    assert [both.where[path].origin for path in [("a", "x"), ("a", "y"), ("b",), ("c",)]] == [
        "spec",
        "extends",
        "extends",
        "spec",
    ]
    assert both.where["a", "l", 0].key.file == "x.yaml"
    assert ("a", "l", 2) not in both.where, "a place of a list that is no longer there"


def test_another_component_replaces_the_base_s_whole_map() -> None:
    own = tree("loss: {use: mse}\n")
    base = tree("loss: {use: bce, pos_weight: 2}\n", "extends", "base.yaml")
    both = extend(own, base)
    assert both.data == {"loss": {"use": "mse"}}
    assert ("loss", "pos_weight") not in both.where


def test_the_same_component_keeps_the_base_s_settings() -> None:
    base = tree("loss: {use: bce, pos_weight: 2}\n", "extends", "base.yaml")
    for text in ("loss: {use: bce, weight: 3}\n", "loss: {weight: 3}\n"):
        assert extend(tree(text), base).data == {
            "loss": {"use": "bce", "pos_weight": 2, "weight": 3}
        }


def test_an_override_makes_the_way_to_its_place() -> None:
    from expc.tree import Where

    start = tree("a: {b: {c: 1, d: 2}, e: 3}\n")
    place = start.where[("a", "e")]
    there = Where(place.key, place.value, "sweep")
    over = start.override(("a", "b"), {"c": 5}, there).override(("f", "g"), 6, there)
    assert over.data == {"a": {"b": {"c": 5}, "e": 3}, "f": {"g": 6}}
    assert over.where["a", "b", "c"].origin == over.where[("f",)].origin == "sweep"
    assert ("a", "b", "d") not in over.where
    assert start.data == {"a": {"b": {"c": 1, "d": 2}, "e": 3}}, "a tree never changes"


def test_a_path_that_stands_nowhere_is_shown_at_what_is_above_it() -> None:
    made = tree("a:\n  b: {c: 1}\n")
    assert made.at(("a", "b", "gone", "deeper")).key.line == 2
    assert made.at(("gone",)).key.line == 1


# ------------------------------------------------------------------------------------------ resolving


def test_every_leaf_knows_who_set_it(project: Project) -> None:
    project.write("specs/base.yaml", project.text)
    made = project.resolve(
        "expc: 1\nname: child\nabout: x\nextends: base.yaml\n"
        "stages:\n  read:\n    optim: {lr: 0.01}\n    clip: 2.0\n"
    )
    assert made.name == "child"
    assert origin(made, "read.optim.lr") == "spec specs/it.yaml:7"
    assert origin(made, "read.optim.use").startswith("extends specs/base.yaml:")
    assert origin(made, "read.optim.weight_decay").startswith("default ")
    assert origin(made, "read.model.backbone.channels") == "extends specs/base.yaml:5"
    assert value(made, "read.optim.weight_decay") == 0.01
    for path, _ in made.tree.leaves(("stages",)):
        assert made.tree.at(path).origin in ("spec", "extends", "default")
        assert made.tree.at(path) is not made.tree.where[()], f"{path} has no place"


def test_values_are_typed_as_their_fields_hold_them(project: Project) -> None:
    made = project.resolve(project.changed("lr: 1.0e-3", "lr: 1, eps: 1"))
    lr = value(made, "read.optim.lr")
    assert lr == 1.0 and isinstance(lr, float)
    assert isinstance(value(made, "read.data.batch"), int)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("batch: 64", "batch: 64.0", "`batch` takes a whole number, not `64.0`"),
        ("batch: 64", "batch: yes", "`batch` takes a whole number, not `true`"),
        ("batch: 64", "batch: '64'", "`batch` takes a whole number, not the text `64`"),
        ("batch: 64", "batch: 64, split: {val: 0.5, test: 0.5}", "`split` holds out every row"),
        ("batch: 64", "batch: 0", "`batch` must be at least 1, not `0`"),
        ("lr: 1.0e-3", "lr: 1e-3", "`lr` takes a number, not the text `1e-3`"),
        ("lr: 1.0e-3", "lr: -1.0", "`lr` must be above 0, not `-1.0`"),
        ("lr: 1.0e-3", "lr: .inf", "`lr` takes a finite number, not `inf`"),
        ("lr: 1.0e-3", "lr: .nan", "`lr` takes a finite number, not `nan`"),
        ("lr: 1.0e-3", "lr: null", "`lr` takes a number, not nothing"),
        ("lr: 1.0e-3", "betas: [0.9]", "`betas` needs 2 entries or more"),
        ("lr: 1.0e-3", "learning: 1", "`learning` is not a key of `adamw`"),
        ("use: adamw", "use: adamv", "there is no optimizer `adamv`"),
        ("use: adamw", "use: bce", "there is no optimizer `bce`"),
        ("use: adamw", "use: [a]", "`use` takes the name of a component"),
        ("kind: supervised", "kind: surprised", "there is no kind of stage `surprised`"),
        ("kind: supervised", "kind: [supervised]", "there is no kind of stage `['supervised']`"),
        ("    until: {epochs: 2}\n", "", "a supervised stage needs `until`"),
        ("until: {epochs: 2}", "until: {epochs: 2, foo: 1}", "`foo` is not a key of `until`"),
        ("until: {epochs: 2}", "until: {}", "`until` names no clock"),
        ("until: {epochs: 2}", "until: {epochs: 1, updates: 2}", "`until` names two clocks"),
        ("name: reader", "name: Reader!", "`Reader!` is not a name"),
        ("  read:\n", "  class:\n", "`class` is a word of Python"),
        ("      loop: {use: linear_head", "      9x: {use: linear_head", "`9x` is not a name"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_spec(
    project: Project, old: str, new: str, says: str
) -> None:
    found = project.findings(project.changed(old, new))
    assert any(finding.message.startswith(says) for finding in found), [f.message for f in found]
    for finding in found:
        told = f"{finding.message} {finding.help} {finding.why}".lower()
        assert not any(word in told for word in ("pydantic", "validationerror", "input should"))
        assert finding.span.line >= 1


def test_everything_that_is_wrong_is_told_at_once(project: Project) -> None:
    text = project.changed("batch: 64", "batch: 0").replace("lr: 1.0e-3", "rate: 1")
    text = text.replace("use: brier", "use: briar")
    assert {f.code for f in project.findings(text)} == {"XC101", "XC103", "XC104"}
    mistyped = project.findings(text.replace("until: {epochs: 2}", "untill: {epochs: 2}"))
    assert len(mistyped) == 5, "a key of the stage hides nothing inside it"


def test_a_near_word_is_offered_as_an_edit(project: Project) -> None:
    (finding,) = project.findings(project.changed("use: adamw", "use: adammw"))
    (edit,) = finding.fix
    assert edit.text == "adamw"
    text = (project.root / project.spec).read_text(encoding="utf-8")
    assert text[edit.span.start : edit.span.end] == "adammw"


# -------------------------------------------------------------------------------------- shared model

TWO = """\
expc: 1
name: two
about: Two stages, one model.
model:
  backbone: {use: conv_net, channels: [4, 8]}
stages:
  one: &stage
    kind: supervised
    data: {use: digits, batch: 64}
    heads: {digit: {use: linear_head, out: 10}}
    loss: {digit: {use: cross_entropy}}
    optim: {use: adamw}
    until: {epochs: 1}
  other:
    kind: supervised
    data: {use: digits, batch: 64}
    model: {backbone: {dropout: 0.5}}
    heads: {digit: {use: linear_head, out: 10}}
    loss: {digit: {use: cross_entropy}}
    optim: {use: adamw}
    until: {epochs: 1}
"""


def test_stages_share_the_model_and_override_parts_of_it(project: Project) -> None:
    made = project.resolve(TWO)
    assert value(made, "one.model.backbone.channels") == [4, 8]
    assert value(made, "other.model.backbone.channels") == [4, 8]
    assert value(made, "one.model.backbone.dropout") == 0.0
    assert value(made, "other.model.backbone.dropout") == 0.5
    assert origin(made, "one.model.backbone.channels") == "spec specs/it.yaml:5"
    assert origin(made, "one.model.backbone.dropout").startswith("default")
    assert origin(made, "other.model.backbone.dropout") == "spec specs/it.yaml:17"


def test_a_stage_may_have_another_model_of_the_same_name(project: Project) -> None:
    text = TWO.replace("dropout: 0.5", "use: mlp, in_features: 64")
    made = project.resolve(text)
    backbone = value(made, "other.model.backbone")
    assert backbone["use"] == "mlp" and "channels" not in backbone


def test_a_sweep_of_the_shared_model_reaches_every_stage(project: Project) -> None:
    project.write(project.spec, TWO)
    read = document(project.root / project.spec, project.root)
    made = resolve(read, [Override("model.backbone.channels", [2], read.tree.where[()].key)])
    assert value(made, "one.model.backbone.channels") == [2]
    assert value(made, "other.model.backbone.channels") == [2]
    assert origin(made, "one.model.backbone.channels").startswith("sweep")


# ------------------------------------------------------------------------------------------- overrides


def overridden(project: Project, path: str, to: Any) -> Experiment:
    read = document(project.write(project.spec, project.text), project.root)
    return resolve(read, [Override(path, to, read.tree.where[("name",)].key)])


def test_an_override_is_marked_as_the_sweep_s(project: Project) -> None:
    made = overridden(project, "read.optim.lr", 0.5)
    assert value(made, "read.optim.lr") == 0.5
    assert origin(made, "read.optim.lr") == "sweep specs/it.yaml:2"
    assert made.is_written(("stages", "read", "optim", "lr"))
    assert made.is_written(("stages", "read", "optim", "use"))


def test_an_override_may_set_what_the_spec_left_to_a_default(project: Project) -> None:
    made = overridden(project, "read.optim.eps", 1e-6)
    assert made.is_written(("stages", "read", "optim", "eps"))
    assert not made.is_written(("stages", "read", "optim", "betas"))


def test_an_override_by_a_map_replaces_the_map(project: Project) -> None:
    made = overridden(project, "read.loss.loop", {"use": "mse"})
    assert value(made, "read.loss.loop.use") == "mse"
    assert value(made, "read.loss.loop.weight") is None
    assert origin(made, "read.loss.loop.use").startswith("sweep")


def test_an_override_that_changes_a_component_keeps_what_the_new_one_takes_or_says_so(
    project: Project,
) -> None:
    assert value(overridden(project, "read.loss.loop.use", "mse"), "read.loss.loop.weight") == 0.5
    with pytest.raises(SpecError) as caught:
        overridden(project, "read.optim.use", "lion")
    assert caught.value.findings[0].span.line == 2, "it stands where the sweep says it"


def test_an_override_of_a_wrong_type_is_found_where_the_sweep_wrote_it(project: Project) -> None:
    with pytest.raises(SpecError) as caught:
        overridden(project, "read.data.batch", "many")
    (finding,) = caught.value.findings
    assert (finding.code, finding.span.line) == ("XC103", 2)


# --------------------------------------------------------------------------------------------- extends


def extends(project: Project, files: dict[str, str]) -> list[Finding]:
    for name, text in files.items():
        project.write(name, text)
    return project.findings("expc: 1\nname: x\nabout: x\nextends: a.yaml\nstages: {}\n")


def test_extends_follows_a_chain(project: Project) -> None:
    project.write("specs/a.yaml", project.text)
    project.write("specs/deep/b.yaml", "extends: ../a.yaml\nname: b\n")
    made = project.resolve("extends: deep/b.yaml\nabout: mine\n")
    assert (made.name, made.about) == ("b", "mine")
    assert [source.file for source in made.sources] == [
        "specs/it.yaml",
        "specs/deep/b.yaml",
        "specs/a.yaml",
    ]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"specs/a.yaml": "extends: a.yaml\n"},
        {"specs/a.yaml": "extends: b.yaml\n", "specs/b.yaml": "extends: it.yaml\n"},
        {"specs/a.yaml/x": ""},
    ],
)
def test_extends_that_leads_nowhere_is_a_finding(project: Project, files: dict[str, str]) -> None:
    (finding,) = extends(project, files)
    assert finding.code == "XC201"


# ------------------------------------------------------------------------------------------- own names


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("      accuracy: {use", "      forward: {use", "forward"),
        ("      accuracy: {use", "      trainer: {use", "trainer"),
        ("      accuracy: {use", "      backbone: {use", "backbone"),
        ("      accuracy: {use", "      digit_head: {use", "digit_head"),
        ("  read:\n    kind", "  random:\n    kind", "random"),
        ("  read:\n    kind", "  torch:\n    kind", "torch"),
        ("      loop: {use: linear_head", "      digit_loss: {use: linear_head", "digit_loss"),
        ("      loop: {use: bce", "      total_model: {of: loop, target: loop, use: bce", "total_model"),
    ],
)  # fmt: skip
def test_names_that_the_generated_code_has_already_are_refused(
    project: Project, old: str, new: str, name: str
) -> None:
    found = project.findings(project.changed(old, new))
    assert any(f.code == "XC105" and f"`{name}`" in f.message for f in found), found


def test_a_condition_s_name_is_a_name(project: Project) -> None:
    (finding,) = project.findings(project.swept("conditions: {'$(touch x)': {read.clip: 1.0}}"))
    assert (finding.code, finding.message) == ("XC105", "`$(touch x)` is not a name")

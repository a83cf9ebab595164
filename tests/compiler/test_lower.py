"""Lowering: the program of a stage, its typed edges, and what it may not look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from expc import digest, ir
from expc.build import compiled
from expc.ir import Call, Flag, Op, Program, Value
from expc.kinds.builder import Builder

if TYPE_CHECKING:
    from tests.compiler.conftest import Project

REPOSITORY = Path(__file__).parent.parent.parent
SPECS = sorted(
    path
    for pattern in ("specs/*.yaml", "tests/golden/*/spec.yaml")
    for path in REPOSITORY.glob(pattern)
    if "_as_" not in path.name
)


def program(project: Project, text: str | None = None) -> Program:
    (variant,) = project.compile(text).space.variants
    return variant.programs["read"]


def routine(made: Program, name: str) -> list[str]:
    """A routine as `KIND OUT <- IN` lines."""
    (found,) = [r for r in made.routines if r.name == name]
    return [said(op) for op in found.ops]


def said(op: Op) -> str:
    out = " ".join(value.name for value in op.out)
    ins = " ".join(each.name for each in op.ins if isinstance(each, Value))
    return f"{op.kind} {op.target} {out} <- {ins}".replace("  ", " ").strip()


def test_a_supervised_stage_is_one_phase_over_two_routines(project: Project) -> None:
    made = program(project)
    assert [r.name for r in made.routines] == ["forward", "losses", "measure", "constants"]
    assert routine(made, "forward") == [
        "call self.backbone features <- image",
        "call self.digit_head digit <- features",
        "call self.loop_head loop <- features",
    ]
    assert routine(made, "losses") == [
        "term expc_runtime.losses:cross_entropy digit_loss <- digit digit_target",
        "term expc_runtime.losses:bce loop_loss <- loop loop_target",
        "sum total_model <- digit_loss loop_loss",
        "record self.record <-",
    ]
    assert routine(made, "measure") == [
        "call self digit loop <- image",
        "call self.losses <- digit loop digit_target loop_target",
        "metric self.accuracy.update <- digit digit_target",
        "convert .sigmoid() loop_prob <- loop",
        "metric self.brier.update <- loop_prob loop_target",
    ]
    (phase,) = made.phases
    assert [said(op) for op in phase.ops] == [
        "call self digit loop <- image",
        "call self.losses total_model <- digit loop digit_target loop_target",
        "step model <- total_model",
    ]
    assert [net.name for net in made.nets if net.state] == ["backbone", "digit_head", "loop_head"]
    assert [net.name for net in made.nets if not net.state] == ["accuracy", "brier"]


def test_ports_follow_from_the_column_that_a_head_is_trained_on(project: Project) -> None:
    made = program(project)
    (forward,) = [r for r in made.routines if r.name == "forward"]
    assert {v.name: v.port for v in forward.out} == {
        "digit": ir.ClassLogits,
        "loop": ir.BinaryLogits,
    }
    columns = {value.name: value.port for value in made.feed.columns}
    assert columns == {
        "image": ir.Features,
        "digit_target": ir.ClassId,
        "loop_target": ir.Prob,
    }


def test_one_conversion_serves_every_reader(project: Project) -> None:
    text = project.changed("{use: bce, weight: 0.5}", "{use: mse, weight: 0.5}")
    text = text.replace(
        "      brier: {use: brier, of: loop}\n",
        "      brier: {use: brier, of: loop}\n      f1: {use: f1, of: loop}\n"
        "      gap: {use: mae, of: loop}\n",
    )
    made = program(project, text)
    assert sum(line.startswith("convert") for line in routine(made, "losses")) == 1
    assert sum(line.startswith("convert") for line in routine(made, "measure")) == 1


@pytest.mark.parametrize("metric", ["accuracy", "f1", "sample_f1", "exact_match"])
def test_a_threshold_reads_probabilities_unless_it_is_told_otherwise(
    project: Project, metric: str
) -> None:
    """0.5 of a logit is a probability of 0.62: the share of right answers would be another one."""
    plain = program(project, project.changed("use: brier", f"use: {metric}"))
    assert "metric self.brier.update <- loop_prob loop_target" in routine(plain, "measure")
    told = project.changed("use: brier", f"reads: logits, threshold: 0.0, use: {metric}")
    assert "metric self.brier.update <- loop loop_target" in routine(
        program(project, told), "measure"
    )


def test_a_head_that_gives_probabilities_converts_them_itself(project: Project) -> None:
    text = project.changed(
        "loop: {use: linear_head, out: 1}", "loop: {use: linear_head, out: 1, gives: prob}"
    )
    made = program(project, text.replace("{use: bce, weight: 0.5}", "{use: mse}"))
    assert routine(made, "forward")[-2:] == [
        "call self.loop_head loop_logits <- features",
        "convert .sigmoid() loop <- loop_logits",
    ]
    assert "term expc_runtime.losses:mse loop_loss <- loop loop_target" in routine(made, "losses")


def test_a_part_is_given_the_width_before_it_unless_the_spec_says_one(project: Project) -> None:
    """Both would be two values for one argument."""
    project.write(
        "lab.py",
        "class Mix:\n    def __init__(self, rate: float = 0.1, in_features: int = 3): ...\n"
        "    def forward(self, x): ...\n"
        "class Plain:\n    def __init__(self, rate: float = 0.1): ...\n    def forward(self, x): ...",
    )
    text = project.changed(
        "model:\n",
        "model:\n  lead: {use: mlp, in_features: 64}\n  mix: {use: 'lab:Mix', rate: 0.2}\n"
        "  fixed: {use: 'lab:Mix', in_features: 9}\n  plain: {use: 'lab:Plain'}\n  tail: {use: mlp}\n",
    ).replace("  backbone: {use: conv_net, channels: [4, 8]}\n", "")
    built = {net.name: net.build for net in program(project, text).nets}
    given = {name: dict(call.kwargs).get("in_features") for name, call in built.items()}
    assert given["mix"] == ir.Name("self.lead.out_features")
    assert given["tail"] == ir.Name("self.plain.out_features")
    assert isinstance(given["fixed"], Flag) and "in_features" not in dict(built["plain"].kwargs)
    assert built["digit_head"].args == (ir.Name("self.tail.out_features"),)


def test_a_first_part_must_be_told_its_width(project: Project) -> None:
    (finding,) = project.findings(
        project.changed("{use: conv_net, channels: [4, 8]}", "{use: mlp, hidden: [4]}")
    )
    assert finding.message == "`mlp` needs `in_features`"


def test_arguments_that_forward_may_go_without_are_no_inputs(project: Project) -> None:
    """They are taken when the data has such a column, or the spec binds one."""
    project.write(
        "lab.py",
        "class Net:\n    def __init__(self): ...\n    def forward(self, image, mask=None, zero=None): ...",
    )
    text = project.changed("{use: conv_net, channels: [4, 8]}", "{use: 'lab:Net'}")
    bare = text.replace("'lab:Net'", "'lab:Bare'")
    project.write(
        "lab.py",
        (project.root / "lab.py").read_text()
        + "\nclass Bare:\n    def __init__(self): ...\n    def forward(self, image, mask=None): ...\n",
    )
    bound = bare.replace("batch: 64,", "batch: 64, inputs: {mask: even},")
    names = [
        [value.name for value in program(project, each).routines[0].ins] for each in (bare, bound)
    ]
    assert names == [["image"], ["image", "even"]]


def test_a_column_may_be_called_what_the_methods_use(project: Project) -> None:
    """An autoencoder of a column called `losses` still reaches the module of that name."""
    text = project.text.replace(
        "use: digits,", "use: arrays, file: x.npz, columns: {losses: real},"
    )
    text = text[: text.index("    heads:")] + (
        "    heads: {out: {use: linear_head, out: 4}}\n"
        "    loss: {out: {use: mse, target: losses}}\n"
        "    optim: {use: sgd}\n    until: {epochs: 1}\n"
    )
    text = text.replace("{use: conv_net, channels: [4, 8]}", "{use: mlp, in_features: 4}")
    text = text.replace("batch: 64,", "batch: 64, inputs: {features: losses},")
    made = program(project, text)
    assert "term expc_runtime.losses:mse out_loss <- out losses_input" in routine(made, "losses")


def test_what_is_set_to_nothing_is_not_there(project: Project) -> None:
    text = project.text + "    clip: null\n"
    assert digest.structure(program(project, text)) == digest.structure(program(project))


def test_two_heads_never_share_a_variable(project: Project) -> None:
    """A head that gives probabilities has its logits in a variable of their own."""
    text = project.text.replace(
        "      loop: {use: linear_head, out: 1}",
        "      loop_logits: {use: linear_head, out: 1}\n      loop: {use: linear_head, out: 1, gives: prob}",
    )
    text = text.replace(
        "      loop: {use: bce, weight: 0.5}",
        "      loop: {use: mse}\n      loop_logits: {use: bce, target: even}",
    )
    (finding,) = project.findings(text)
    assert finding.message == "two values would be named `loop_logits`"


def test_weights_that_nobody_wrote_are_no_factors(project: Project) -> None:
    (losses,) = [r for r in program(project).routines if r.name == "losses"]
    (total,) = [op for op in losses.ops if op.kind == "sum"]
    digit, loop = total.weights
    assert digit is None
    assert isinstance(loop, Flag) and (loop.field, loop.default) == ("loop_weight", 0.5)


def test_what_the_spec_sets_is_a_flag_and_what_it_leaves_is_not(project: Project) -> None:
    made = program(project)
    assert {flag.field: flag.default for flag in made.flags} == {
        "batch": 64,
        "split_val": 0.2,
        "backbone_channels": (4, 8),
        "digit_out": 10,
        "loop_out": 1,
        "loop_weight": 0.5,
        "lr": 0.001,
        "epochs": 2,
    }


def test_flags_that_would_have_one_name_carry_their_section(project: Project) -> None:
    text = project.changed(
        "lr: 1.0e-3}", "lr: 1.0e-3}\n    schedule: {use: cosine, warmup: {epochs: 1}}"
    )
    text = text.replace("use: conv_net,", "use: conv_net, dropout: 0.1,")
    text = text.replace("{use: linear_head, out: 1}", "{use: linear_head, out: 1, dropout: 0.2}")
    text = text.replace("split: {val: 0.2}", "split: {val: 0.2, seed: 4}")
    fields = [flag.field for flag in program(project, text).flags]
    assert {"warmup_epochs", "epochs", "backbone_dropout", "loop_dropout", "split_seed"} <= {
        *fields
    }
    assert len(fields) == len(set(fields))


def test_a_null_is_no_flag(project: Project) -> None:
    """`--clip none` could not be typed: whether there is a limit changes the code."""
    made = program(project, project.changed("until:", "clip: null\n    until:"))
    assert "clip" not in {flag.field for flag in made.flags}
    assert ("stages", "read", "clip") in made.structural


# --------------------------------------------------------------------------------------------- misfits


@pytest.mark.parametrize(
    ("old", "new", "code", "says", "note"),
    [
        (
            "{use: bce, weight: 0.5}",
            "{use: cross_entropy}",
            "XC308",
            "`cross_entropy` compares with class ids or a distribution over classes, but column `loop` holds",
            "",
        ),
        (
            "loop: {use: linear_head, out: 1}",
            "loop: {use: linear_head, out: 1, gives: prob}",
            "XC301",
            "`bce` reads logits of yes, but head `loop` gives probabilities in 0..1",
            "gives: prob",
        ),
        (
            "brier: {use: brier, of: loop}",
            "brier: {use: brier, of: digit, target: loop}",
            "XC301",
            "`brier` reads probabilities in 0..1, but head `digit` gives class logits",
            "digit: {use: linear_head",
        ),
        ("of: digit}", "of: digti}", "XC303", "there is no head `digti`", ""),
        ("{use: bce, weight: 0.5}", "{use: bce, target: lop}", "XC304", "the data has no column `lop`", ""),
        ("val: 0.2}}", "val: 0.2}, inputs: {image: pic}}", "XC304", "model part `backbone` takes `image`", ""),
    ],
)  # fmt: skip
def test_an_edge_that_does_not_fit_is_a_finding_with_both_places(
    project: Project, old: str, new: str, code: str, says: str, note: str
) -> None:
    text = project.changed(old, new)
    found = [f for f in project.findings(text) if f.code == code]
    assert [f for f in found if f.message.startswith(says)], project.findings(text)
    (finding,) = found
    if note:
        (other,) = finding.notes
        assert note in text.splitlines()[other.span.line - 1]
        assert other.span in finding.spans, "an allow may stand on either line"
    assert finding.why and finding.help


def test_every_misfit_is_told_at_once(project: Project) -> None:
    text = project.changed("of: digit}", "of: nobody}").replace(
        "use: bce", "target: gone, use: bce"
    )
    assert {f.code for f in project.findings(text)} >= {"XC303", "XC304"}


# ------------------------------------------------------------------------------------------- columns

FILE = """\
expc: 1
name: rows
about: Columns of a file.
stages:
  read:
    kind: supervised
    data: {use: arrays, file: rows.npz, batch: 4, columns: {%s}}
    model: {trunk: {use: mlp, in_features: 4}}
    heads: {y: {use: linear_head, out: 1}}
    loss: {y: {use: mse}}
    optim: {use: adam}
    until: {epochs: 1}
"""


def columns(made: Program) -> tuple[tuple[str, ...], list[str]]:
    """Names in the data, and the variables they become."""
    named = dict(made.feed.build.kwargs)["columns"]
    assert isinstance(named, tuple)
    return tuple(map(str, named)), [value.name for value in made.feed.columns]


def test_columns_keep_their_names_in_the_data(project: Project) -> None:
    made = program(project, FILE % "x_target: features, y: real")
    assert columns(made) == (("x_target", "y"), ["x_target", "y_target"])


def test_a_column_that_is_read_and_compared_stands_in_the_batch_once(project: Project) -> None:
    text = FILE % "y: real" + ""
    made = program(project, text.replace("batch: 4", "batch: 4, inputs: {features: y}"))
    assert columns(made) == (("y",), ["y_input"])
    assert routine(made, "losses")[0] == "term expc_runtime.losses:mse y_loss <- y y_input"


@pytest.mark.parametrize("name", ["two words", "class", "self", "1st", "x-y"])
def test_a_column_that_can_be_no_variable_is_refused(project: Project, name: str) -> None:
    text = FILE % f"'{name}': features, y: real"
    (finding,) = project.findings(text)
    assert (finding.code, finding.message) == ("XC105", f"column `{name}` can't be a variable")


# -------------------------------------------------------------------------------------- laws of flags


class Sealed:
    """A value that nobody may look at."""

    def _looked(self, *args: Any) -> Any:
        raise AssertionError("a lowering read the value of a flag")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _looked
    __bool__ = __str__ = __iter__ = __len__ = __int__ = __float__ = __index__ = _looked
    __hash__ = _looked
    __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __truediv__ = __format__ = _looked

    def __repr__(self) -> str:
        return "<sealed>"


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_lowering_never_reads_a_flag(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(spec)
    real = Builder._flagged
    seen: list[str] = []

    def sealed(self: Builder, path: Any, value: Any, *rest: Any, **marks: Any) -> Flag:
        flag = real(self, path, value, *rest, **marks)
        object.__setattr__(flag, "default", Sealed())
        seen.append(flag.field)
        return flag

    monkeypatch.setattr(Builder, "_flagged", sealed)
    from expc.lower import lower

    for variant in made.space.variants:
        swept = {place for axis in made.space.loops for place in axis.places(variant.experiment)}
        for name, stage in variant.experiment.stages.items():
            if name not in variant.condition.skips:
                lower(variant.experiment, stage, swept)
    assert seen


def test_values_read_are_structural_and_flags_are_not(project: Project) -> None:
    made = program(project)
    read = made.structural
    stage = ("stages", "read")
    assert (*stage, "loss", "loop", "use") in read
    assert (*stage, "optim", "use") in read
    for flag in made.flags:
        assert flag.path not in read, f"{flag.field} is read and would fork no file"


def test_statements_are_typed_operands_and_no_code(project: Project) -> None:
    made = program(project)
    for ops in [*(r.ops for r in made.routines), *(p.ops for p in made.phases)]:
        for op in ops:
            assert all(sign not in op.target for sign in "=+*, \n")
            for operand in (*op.ins, *(each for _, each in op.kwargs)):
                assert isinstance(
                    operand, Value | Flag | ir.Name | Call | int | float | str | tuple
                )


def test_a_program_is_the_same_whatever_order_dictionaries_have(project: Project) -> None:
    from expc import digest

    first = program(project)
    assert digest.identity(first) == digest.identity(program(project))
    assert len(digest.identity(first)) == 16

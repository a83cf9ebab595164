"""`supervised`: one net with named heads, each with a loss; metrics on held-out rows; a threshold or a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from expc.components.core import Column, Form, Use
from expc.components.data import HEAD_PORTS, DataSlot
from expc.components.optimizers import OptimSlot
from expc.experiment import Stage
from expc.findings import Finding, listed, suggest
from expc.ir import (
    Any_,
    Artifact,
    BinaryLogits,
    Call,
    ClassId,
    ClassLogits,
    ClassProbs,
    Feed,
    Features,
    Flag,
    Name,
    Net,
    Operand,
    Optim,
    Phase,
    Port,
    Prob,
    Program,
    Real,
    Routine,
    Value,
)
from expc.kinds.builder import Builder, scalar
from expc.kinds.core import Kind
from expc.kinds.shapes import CLOCKS, Every, HeadSlot, Init, LossSlot, MetricSlot, Until
from expc.source import KeyPath
from expc.spec import Raw, Shape, Slot

OPTIMIZER = "model"
"""The name of the one optimizer: its sum is `total_model`."""


class Supervised(Shape):
    """The keys of a supervised stage."""

    kind: Literal["supervised"]
    about: str | None = Field(None, description="what this stage is for")
    data: Annotated[Raw, Slot("data", DataSlot)] = Field(description="rows, and how they are split")
    model: Annotated[dict[str, Raw], Slot("model", many=True)] = Field(
        description="parts in the order that features pass them; declare once at the top to share"
    )
    heads: Annotated[dict[str, Raw], Slot("head", HeadSlot, many=True)] = Field(
        min_length=1, description="answers, by name"
    )
    loss: Annotated[dict[str, Raw], Slot("loss", LossSlot, many=True)] = Field(
        min_length=1, description="terms of the sum that is trained, by name"
    )
    metrics: Annotated[dict[str, Raw], Slot("metric", MetricSlot, many=True)] = Field(
        default_factory=dict, description="what is measured on held-out rows, by name"
    )
    optim: Annotated[Raw, Slot("optim", OptimSlot)] = Field(description="the optimizer")
    schedule: Annotated[Raw | None, Slot("schedule")] = Field(None, description="the learning rate over time")
    precision: Literal[32, "bf16-mixed", "16-mixed"] = Field(32, description="numbers of the forward pass")
    clip: Annotated[float, Field(gt=0)] | None = Field(None, description="largest gradient norm")
    accumulate: Annotated[int, Field(ge=1)] = Field(1, description="batches for one optimizer step")
    compile: bool = Field(False, description="compile the nets with torch.compile")
    until: Until = Field(description="a budget, or a threshold with a budget")
    checkpoint: Every = Field(default_factory=Every, description="when and how many are kept")
    monitor: dict[str, str] = Field(
        default_factory=dict, description="name -> what it watches; the best of each is kept"
    )
    init: dict[str, Init] = Field(default_factory=dict, description="part -> its starting weights")


def parents(shape: Supervised) -> Iterable[str]:
    """Stages whose results this one starts from."""
    return [start.from_ for start in shape.init.values() if start.from_]


def logged(stage: Stage) -> dict[str, str]:
    """Every key a stage logs, and whether higher or lower is better there."""
    keys = {f"total_{OPTIMIZER}": "lower", **dict.fromkeys(stage.maps["loss"], "lower")}
    keys.update({name: use.component.better for name, use in stage.maps.get("metrics", {}).items()})
    splits = ["train", *(split for split in ("val", "test") if has_split(stage, split))]
    return {
        f"{split}/{key}": better
        for split in splits
        for key, better in keys.items()
        if split != "train" or key not in stage.maps.get("metrics", {})
    }


def has_split(stage: Stage, split: str) -> bool:
    """Whether a stage holds out rows under that name."""
    return bool(getattr(stage.uses["data"].slot.split, split))


# ------------------------------------------------------------------------------------------------- lowering


def lower(stage: Stage, b: Builder) -> Program:
    """The program of a supervised stage."""
    columns = _columns(stage, b)
    heads_of, targets = _bindings(stage, b, columns)
    inputs = _inputs(stage, b, columns)
    used = {value.name: value for value in (*inputs, *targets.values())}
    order = tuple(columns[name] for name in columns if name in used)
    forward, heads = _forward(stage, b, inputs, heads_of, targets)
    losses, total = _losses(stage, b, heads, heads_of, targets)
    answers = tuple(heads.values())
    loss_targets = tuple(dict.fromkeys(targets[key] for key in stage.maps["loss"] if key in targets))
    renamed = {value.name: _as_target(value) for value in loss_targets}

    def answer(path: KeyPath) -> None:
        b.emit("call", answers, "self", inputs, path)

    def judge(path: KeyPath) -> Value:
        made = b.value(total.name, total.port, total.span)
        b.emit("call", (made,), "self.losses", (*answers, *renamed.values()), path)
        return made

    answer(b.path("heads"))
    step_on = judge(b.path("loss"))
    b.emit("step", (), OPTIMIZER, (step_on,), b.path("optim"))
    update = Phase(OPTIMIZER, b.take(), OPTIMIZER)
    measure = _measure(stage, b, heads, targets, answer, judge)
    constants = _constants(stage, b, heads, targets, heads_of)
    return Program(
        stage=stage.name,
        name=_class_name(stage.name),
        about=getattr(stage.shape, "about", None) or b.experiment.about,
        doc=_doc(inputs, heads),
        feed=_feed(stage, b, tuple(_as_column(v, inputs) for v in order)),
        nets=tuple(b.nets),
        optims=(_optimizer(stage, b),),
        routines=(forward, losses, measure, constants),
        phases=(update,),
        run=_run(stage, b),
        logged=tuple(logged(stage)),
        inputs=_starts(stage, b),
        structural=frozenset(b.structural),
        flags=b.flags(),
    )


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _columns(stage: Stage, b: Builder) -> dict[str, Value]:
    """The columns a data source has, as values."""
    path = b.path("data")
    span = b.experiment.value(*path)
    return {
        name: Value(name, column.port, span, grad=False, shape=_shape(column))
        for name, column in columns_of(stage).items()
    }


def columns_of(stage: Stage) -> dict[str, Column]:
    """What is known of a stage's columns: from the source's declaration, or from the spec."""
    use = stage.uses["data"]
    if use.component.columns:
        return dict(use.component.columns)
    from expc.components.data import COLUMN_PORTS

    declared = getattr(use.params, "columns", {})
    return {name: Column(COLUMN_PORTS[meaning]) for name, meaning in declared.items()}


def _shape(column: Column) -> str:
    inner = ", ".join(str(size) for size in column.shape)
    return f"(B, {inner})" if inner else "(B,)" if column.port is not Features else "(B, ...)"


def _as_target(value: Value) -> Value:
    return value if value.port is Features else replace(value, name=f"{value.name}_target")


def _as_column(value: Value, inputs: tuple[Value, ...]) -> Value:
    return value if value in inputs else _as_target(value)


def _bindings(
    stage: Stage, b: Builder, columns: dict[str, Value]
) -> tuple[dict[str, str], dict[str, Value]]:
    """For every loss and metric: the head it reads, and the column it compares with."""
    heads = stage.maps["heads"]
    heads_of: dict[str, str] = {}
    targets: dict[str, Value] = {}
    for key, use in stage.maps["loss"].items():
        b.static("loss", key, "of"), b.static("loss", key, "target")
        head = use.slot.of or (key if key in heads else "")
        if head not in heads:
            b.findings.append(_no_head(b, use, key, head, list(heads)))
            continue
        heads_of[key] = head
        column = use.slot.target or (key if key in columns else head)
        if column not in columns:
            b.findings.append(_no_column(b, use, key, column, list(columns)))
            continue
        targets[key] = columns[column]
    for key, use in stage.maps.get("metrics", {}).items():
        b.static("metrics", key, "of"), b.static("metrics", key, "target")
        if use.slot.of not in heads:
            b.findings.append(_no_head(b, use, key, use.slot.of, list(heads)))
            continue
        heads_of[key] = use.slot.of
        trained = next((t for loss, t in targets.items() if heads_of.get(loss) == use.slot.of), None)
        column = use.slot.target or (trained.name if trained else use.slot.of)
        if column not in columns:
            b.findings.append(_no_column(b, use, key, column, list(columns)))
            continue
        targets[key] = columns[column]
    return heads_of, targets


def _no_head(b: Builder, use: Use, key: str, head: str, heads: list[str]) -> Finding:
    named = b.written(*use.path[2:], "of")
    place = b.experiment.value(*use.path, "of") if named else b.experiment.key(*use.path)
    what = f"there is no head `{head}`" if head else f"loss `{key}` reads no head"
    hint = suggest(head or key, heads)
    return Finding(
        "XC303",
        what,
        place,
        why=f"`{key}` would have nothing to read",
        help=(hint + " " if hint else "") + f"(heads: {listed(heads)}; say which with `of:`)",
    )


def _no_column(b: Builder, use: Use, key: str, column: str, columns: list[str]) -> Finding:
    named = b.written(*use.path[2:], "target")
    place = b.experiment.value(*use.path, "target") if named else b.experiment.key(*use.path)
    hint = suggest(column, columns)
    return Finding(
        "XC304",
        f"the data has no column `{column}`",
        place,
        why=f"`{key}` would have nothing to compare with",
        help=(hint + " " if hint else "") + f"(columns: {listed(columns)}; say which with `target:`)",
    )


def _inputs(stage: Stage, b: Builder, columns: dict[str, Value]) -> tuple[Value, ...]:
    """The columns that the first part of the model takes, in the order of its arguments."""
    name, use = next(iter(stage.maps["model"].items()))
    renamed = stage.uses["data"].slot.inputs
    b.static("data", "inputs")
    features = [value for value in columns.values() if value.port in (Features, Any_)]
    wanted = [parameter for parameter in use.component.inputs]
    if not renamed and len(wanted) == 1 and wanted[0] not in columns and len(features) == 1:
        return (features[0],)
    found = []
    for parameter in wanted:
        column = renamed.get(parameter, parameter)
        if column in columns:
            found.append(columns[column])
            continue
        given = parameter in renamed
        place = (
            b.experiment.value(*b.path("data", "inputs", parameter))
            if given
            else b.experiment.value(*use.path, "use")
        )
        hint = suggest(column, list(columns))
        b.findings.append(
            Finding(
                "XC304",
                f"model part `{name}` takes `{parameter}`, and the data has no column `{column}`",
                place,
                why="the net would have nothing to read",
                help=(hint + " " if hint else "")
                + f"(columns: {listed(columns)}; bind with `data: {{inputs: {{{parameter}: COLUMN}}}}`)",
            )
        )
    return tuple(found)


def _gives(stage: Stage, b: Builder, head: str, heads_of: dict[str, str], targets: dict[str, Value]) -> Port:
    """What a head's numbers mean: as written, or as its loss's target asks for."""
    stated = b.static("heads", head, "gives")
    if isinstance(stated, str):
        return HEAD_PORTS[stated]
    target = next((targets[key] for key, of in heads_of.items() if of == head and key in targets), None)
    implied = {Prob: BinaryLogits, ClassId: ClassLogits, ClassProbs: ClassLogits, Real: Real}
    return implied.get(target.port, Any_) if target else Any_


def _forward(
    stage: Stage, b: Builder, inputs: tuple[Value, ...], heads_of: dict[str, str], targets: dict[str, Value]
) -> tuple[Routine, dict[str, Value]]:
    features: tuple[Operand, ...] = inputs
    previous = ""
    for name, use in stage.maps["model"].items():
        path = use.path
        b.static("model", name, "use")
        build = Call(use.component.target, (), b.arguments(use))
        if previous:
            build = replace(build, args=(Name(f"self.{previous}.out_features"),))
        b.nets.append(Net(name, build, b.experiment.key(*path), path))
        out = b.value("features", Features, b.experiment.key(*path))
        b.emit("call", (out,), f"self.{name}", features, path)
        features, previous = (out,), name
    heads: dict[str, Value] = {}
    for name, use in stage.maps["heads"].items():
        path = use.path
        b.static("heads", name, "use")
        b.nets.append(
            Net(
                f"{name}_head",
                Call(use.component.target, (Name(f"self.{previous}.out_features"),), b.arguments(use)),
                b.experiment.key(*path),
                path,
            )
        )
        port = _gives(stage, b, name, heads_of, targets)
        shape = _answer_shape(use)
        if port is Prob:
            logits = b.value(f"{name}_logits", BinaryLogits, b.experiment.key(*path), shape=shape)
            b.emit("call", (logits,), f"self.{name}_head", features, path)
            heads[name] = b.value(name, Prob, b.experiment.key(*path), shape=shape)
            b.emit("convert", (heads[name],), ".sigmoid()", (logits,), path)
        else:
            heads[name] = b.value(name, port, b.experiment.key(*path), shape=shape)
            b.emit("call", (heads[name],), f"self.{name}_head", features, path)
    routine = b.close("forward", "", inputs, heads.values())
    return routine, heads


def _answer_shape(use: Use) -> str:
    out = getattr(use.params, "out", None)
    return "(B,)" if out == 1 else f"(B, {out})" if out else "(B, ...)"


def _losses(
    stage: Stage, b: Builder, heads: dict[str, Value], heads_of: dict[str, str], targets: dict[str, Value]
) -> tuple[Routine, Value]:
    terms: list[Value] = []
    weights: list[Flag | float | None] = []
    renamed: dict[str, Value] = {}
    for key, use in stage.maps["loss"].items():
        b.static("loss", key, "use")
        if key not in targets:
            continue
        target = _as_target(targets[key])
        renamed[target.name] = target
        fitted = b.fit(use, heads[heads_of[key]], target, use.component.forms)
        if fitted is None:
            continue
        _, pred = fitted
        term = b.value(f"{key}_loss", scalar("", pred.span).port, b.experiment.key(*use.path))
        b.emit("term", (term,), use.component.target, (pred, target), use.path, kwargs=b.arguments(use))
        terms.append(term)
        written = b.written("loss", key, "weight")
        factor = b.flag("loss", key, "weight") if written else None
        weights.append(factor if isinstance(factor, Flag) else None)
    total = b.value(f"total_{OPTIMIZER}", scalar("", b.experiment.key(*b.path("loss"))).port,
                    b.experiment.key(*b.path("loss")))  # fmt: skip
    b.emit("sum", (total,), "", terms, b.path("loss"), weights=weights)
    names = [*(key for key in stage.maps["loss"] if key in targets), total.name]
    logged_terms = [(name, value) for name, value in zip(names, [*terms, total], strict=False)]
    b.emit("record", (), "self.record", (), b.path("loss"), kwargs=logged_terms)
    routine = b.close(
        "losses",
        "Each term on its own, logged, and their sum.",
        (*heads.values(), *renamed.values()),
        (total,),
    )
    return routine, total


def _measure(
    stage: Stage, b: Builder, heads: dict[str, Value], targets: dict[str, Value], answer: object, judge: object
) -> Routine:
    answer(b.path("heads"))  # type: ignore[operator]
    b.emit("call", (), "self.losses", (*heads.values(), *_loss_targets(stage, targets)), b.path("loss"))
    for key, use in stage.maps.get("metrics", {}).items():
        b.static("metrics", key, "use")
        reads = b.static("metrics", key, "reads")
        if key not in targets:
            continue
        forms = _reading(use, reads)
        target = _as_target(targets[key])
        fitted = b.fit(use, heads[use.slot.of], target, forms)
        if fitted is None:
            continue
        form, pred = fitted
        runtime = form.target or use.component.target
        arguments = b.arguments(use)
        b.nets.append(Net(key, Call(runtime, (), arguments), b.experiment.key(*use.path), use.path, state=False))
        b.emit("metric", (), f"self.{key}.update", (pred, target), use.path)
    return b.close("measure", "One batch of held-out rows: losses and metrics.", batch=True, grad=False)


def _loss_targets(stage: Stage, targets: dict[str, Value]) -> tuple[Value, ...]:
    chosen = [_as_target(targets[key]) for key in stage.maps["loss"] if key in targets]
    return tuple(dict.fromkeys(chosen))


def _reading(use: Use, reads: object) -> tuple[Form, ...]:
    """The forms a metric may take, narrowed by `reads`."""
    forms = use.component.forms
    if reads == "prob":
        return tuple(form for form in forms if form.takes[0] is Prob) or forms
    if reads == "logits":
        return tuple(form for form in forms if form.takes[0] in (BinaryLogits, ClassLogits)) or forms
    return forms


_FLOORS = {BinaryLogits: "logits", Prob: "probs", Real: "real", ClassProbs: "class_probs", Any_: "real"}


def _constants(
    stage: Stage, b: Builder, heads: dict[str, Value], targets: dict[str, Value], heads_of: dict[str, str]
) -> Routine:
    answers = []
    for name, head in heads.items():
        target = next((targets[key] for key, of in heads_of.items() if of == name and key in targets), None)
        if target is None:
            continue
        use = stage.maps["heads"][name]
        out = Value(name, head.port, head.span)
        kwargs: tuple[tuple[str, Operand], ...] = ()
        function = _FLOORS.get(head.port, "real")
        if head.port is ClassLogits:
            function = "class_logits"
            width = b.flag("heads", name, "out") if hasattr(use.params, "out") else None
            kwargs = (("classes", width),)
        b.emit("call", (out,), f"expc_runtime.floors:{function}", (_as_target(target),), use.path, kwargs=kwargs)
        answers.append(out)
    doc = "Constant answers of each head; the best of them is the floor that any model must beat."
    return b.close("constants", doc, (), answers, batch=True, grad=False, returns="tuple[Tensor, ...]")


# ---------------------------------------------------------------------------------------- feed, drive, run


def _feed(stage: Stage, b: Builder, columns: tuple[Value, ...]) -> Feed:
    use = stage.uses["data"]
    b.static("data", "use")
    source = Call(use.component.target, (), b.arguments(use))
    names = tuple(value.name.removesuffix("_target") for value in columns)
    kwargs: list[tuple[str, Operand]] = [("columns", names), ("batch", b.flag("data", "batch"))]
    for share in ("val", "test"):
        if b.written("data", "split", share):
            kwargs.append((share, b.flag("data", "split", share)))
    if b.written("data", "split", "seed"):
        kwargs.append(("split_seed", b.flag("data", "split", "seed")))
    if b.written("data", "drop_last"):
        kwargs.append(("drop_last", b.flag("data", "drop_last")))
    path = b.path("data")
    build = Call("expc_runtime.data.feed:Feed", (source,), tuple(kwargs))
    return Feed(build, columns, (), b.experiment.key(*path), path)


def _optimizer(stage: Stage, b: Builder) -> Optim:
    use = stage.uses["optim"]
    b.static("optim", "use")
    decay = b.static("optim", "decay")
    parameters: Operand = Call("self.parameters")
    arguments = b.arguments(use)
    if decay == "weights" and use.param("weight_decay"):
        arguments = b.arguments(use, leave=("weight_decay",))
        parameters = Call(
            "expc_runtime.optim:decay_groups", (Name("self"), b.flag("optim", "weight_decay"))
        )
    fused: tuple[tuple[str, Operand], ...] = () if use.component.own else (("fused", True),)
    build = Call(use.component.target, (parameters,), (*arguments, *fused))
    drive: list[tuple[str, Operand]] = []
    if "schedule" in stage.uses:
        drive.append(("schedule", _schedule(stage.uses["schedule"], b)))
    for key in ("clip", "accumulate"):
        if b.written(key):
            drive.append((key, b.flag(key)))
    path = b.path("optim")
    return Optim(OPTIMIZER, build, (), tuple(drive), b.experiment.key(*path), path)


def _schedule(use: Use, b: Builder) -> Call:
    b.static("schedule", "use")
    arguments = dict(b.arguments(use, leave=("warmup",)))
    warmup = use.param("warmup")
    if warmup:
        arguments = {"warmup": clock(b, "schedule", "warmup"), **arguments}
    return Call(use.component.target, (), tuple(arguments.items()))


def clock(b: Builder, *keys: str) -> Call:
    """A span of training, on the clock that the spec names."""
    spans = b.experiment.tree.get(b.path(*keys)) or {}
    for name, target in CLOCKS.items():
        if spans.get(name) is not None:
            b.structural.add(b.path(*keys, name))
            amount = b.flag(*keys, name)
            b.structural.discard(b.path(*keys, name))
            return Call(f"expc_runtime.clocks:{target}", (amount,))
    raise KeyError(f"no clock at {keys}")


def _run(stage: Stage, b: Builder) -> tuple[tuple[str, Operand], ...]:
    shape: Supervised = stage.shape
    run: list[tuple[str, Operand]] = [("until", _until(shape.until, b))]
    if b.written("precision"):
        run.append(("precision", b.word("precision")))
    if b.written("compile"):
        run.append(("compile", b.flag("compile")))
    if b.written("checkpoint"):
        run.append(("checkpoint", _checkpoint(shape.checkpoint, b)))
    if shape.monitor:
        b.static("monitor")
        watched = {name: _metric_key(key, "val") for name, key in shape.monitor.items()}
        run.append(("monitor", Call("", (), tuple(watched.items()))))
    starts = _starts(stage, b)
    if starts:
        run.append(("init", Call("", (), tuple((start.part, start.source) for start in starts))))
    return tuple(run)


def _metric_key(key: str, split: str) -> str:
    return key if "/" in key else f"{split}/{key}"


def _until(until: Until, b: Builder) -> Call:
    place = ("until", "budget") if until.budget is not None else ("until",)
    budget = clock(b, *place)
    args: tuple[Operand, ...] = (budget,)
    if until.metric and until.bound:
        b.static("until", "metric"), b.static("until", "on")
        word, _ = until.bound
        kwargs: list[tuple[str, Operand]] = [(word, b.flag("until", word))]
        if b.written("until", "patience"):
            kwargs.append(("patience", b.flag("until", "patience")))
        kwargs.append(("otherwise", str(b.static("until", "otherwise"))))
        gate = Call("expc_runtime.gates:Gate", (_metric_key(until.metric, until.on),), tuple(kwargs))
        args = (budget, gate)
    return Call("expc_runtime.gates:Until", args)


def _checkpoint(every: Every, b: Builder) -> Call:
    kwargs: list[tuple[str, Operand]] = []
    if every.every is not None:
        kwargs.append(("every", clock(b, "checkpoint", "every")))
    if b.written("checkpoint", "keep"):
        kwargs.append(("keep", b.flag("checkpoint", "keep")))
    return Call("expc_runtime.checkpoint:Checkpoint", (), tuple(kwargs))


def _starts(stage: Stage, b: Builder) -> tuple[Artifact, ...]:
    starts = []
    for part, init in stage.shape.init.items():
        path = b.path("init", part)
        if init.file:
            source = init.file
        else:
            wanted = f"#{init.part}" if init.part else ""
            best = f"/best_{init.best}" if init.best else ""
            source = f"stage:{init.from_}{best}{wanted}"
        b.static("init", part)
        starts.append(Artifact(part, source, b.experiment.key(*path), path))
    return tuple(starts)


def _doc(inputs: Iterable[Value], heads: dict[str, Value]) -> str:
    taken = ", ".join(f"{value.name} {value.shape}".strip() for value in inputs)
    given = ", ".join(f"{v.name} {v.shape} {v.port.says}".strip() for v in heads.values())
    return f"{taken} -> {given}."


SUPERVISED = Kind(
    "supervised",
    "train one net with named heads and losses on rows",
    Supervised,
    parents,
    logged,
    lower,
)

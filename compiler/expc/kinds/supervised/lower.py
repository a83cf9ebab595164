"""The program of a supervised stage: one phase over `forward` and `losses`, measured and held against constants."""

from __future__ import annotations

from collections.abc import Iterator

from expc.components.core import Form, Use
from expc.components.data import splits_by
from expc.experiment import Stage
from expc.findings import Finding, Span, listed, suggest
from expc.ir import (
    Any_,
    BinaryLogits,
    Call,
    ClassLogits,
    ClassProbs,
    Features,
    Feed,
    Flag,
    Name,
    Net,
    Operand,
    Phase,
    Prob,
    Program,
    Real,
    Routine,
    Scalar,
    Value,
)
from expc.kinds import training
from expc.kinds.builder import Builder
from expc.kinds.names import clashes, class_name, replaced
from expc.kinds.supervised.bind import Bound, bind, port_of
from expc.kinds.supervised.shape import OPTIMIZER, Supervised, logged
from expc.shape import missing_key


def lower(stage: Stage, b: Builder) -> Program:
    """The program of a supervised stage."""
    bound = bind(stage, b)
    forward, heads = _forward(stage, b, bound)
    doc = _doc(bound, heads)
    losses = _losses(b, bound, heads)
    b.findings += _misnamed(stage, b, bound, heads)
    return Program(
        stage=stage.name,
        name=class_name(stage.name),
        about=stage.shape.about or b.experiment.about,
        doc=doc,
        phases=(_update(b, bound, heads),),
        routines=(forward, losses, _measure(b, bound, heads), *_constants(stage, b, bound, heads)),
        feed=_feed(stage, b, bound),
        optims=(
            training.optimizer(
                b,
                OPTIMIZER,
                stage.uses["optim"],
                stage.uses.get("schedule"),
                training.trained(b, stage.uses["optim"].slot.trains),
                some_frozen=bool(stage.shape.frozen),
            ),
        ),
        nets=tuple(b.nets),
        driver=training.FIT,
        run=_run(stage, b),
        logged=tuple(logged(stage)),
        inputs=training.starts(b, stage.shape),
        own=b.own(),
        structural=frozenset(b.structural),
        flags=b.flags(),
    )


def _misnamed(stage: Stage, b: Builder, bound: Bound, heads: dict[str, Value]) -> Iterator[Finding]:
    """Names of the spec that meet in the generated class."""

    def places(key: str, ending: str = "") -> list[tuple[str, Span]]:
        return [(name + ending, b.experiment.key(*b.path(key, name))) for name in stage.maps[key]]

    nets = [*places("model"), *places("metrics")] if "metrics" in stage.maps else places("model")
    converted = [place for ending in ("_prob", "_probs") for place in places("heads", ending)]
    converted += [(f"{v.name}_logits", v.span) for v in heads.values() if v.port is Prob]
    columns = [(value.name, value.span) for value in bound.columns.values()]
    total = [(f"total_{OPTIMIZER}", b.experiment.key(*b.path("loss")))]
    yield from replaced(nets)
    yield from clashes([*nets, *places("heads", "_head")], "parts")
    yield from clashes(
        [*total, *columns, *places("heads"), *converted, *places("loss", "_loss")], "values"
    )
    yield from clashes([*total, *places("loss")], "logged figures")


def _doc(bound: Bound, heads: dict[str, Value]) -> str:
    taken = ", ".join(f"{value.name} {value.shape}" for value in bound.inputs)
    given = ", ".join(f"{v.name} {v.shape} {v.port.says}" for v in heads.values())
    return f"{taken} -> {given}."


# ------------------------------------------------------------------------------------------------- routines


def _forward(stage: Stage, b: Builder, bound: Bound) -> tuple[Routine, dict[str, Value]]:
    features, width = _features(stage, b, bound)
    heads = {}
    for name, use in stage.maps["heads"].items():
        b.static("heads", name, "use")
        span = b.experiment.key(*use.path)
        first, told = ((), (("in_features", width),)) if use.component.own else ((width,), ())
        build = Call(use.component.target, first, (*told, *b.arguments(use)))
        b.nets.append(Net(f"{name}_head", build, span, use.path))
        port, shape = port_of(b, bound, name), _answer_shape(b, use)
        raw = b.value(name, port, span, shape=shape)
        if port is Prob:
            raw = b.value(f"{name}_logits", BinaryLogits, span, shape=shape)
        b.emit("call", (raw,), f"self.{name}_head", features, use.path)
        heads[name] = raw
        if port is Prob:
            heads[name] = b.value(name, Prob, span, shape=shape)
            b.emit("convert", (heads[name],), ".sigmoid()", (raw,), use.path)
    return b.close("forward", "", bound.inputs, heads.values()), heads


def _features(stage: Stage, b: Builder, bound: Bound) -> tuple[tuple[Value, ...], Name]:
    """Pass the inputs through the model's parts, in order; and the width of what comes out."""
    features, width = bound.inputs, Name("")
    for name, use in stage.maps["model"].items():
        b.static("model", name, "use")
        span = b.experiment.key(*use.path)
        told = b.arguments(use)
        if "in_features" in use.component.fields() and "in_features" not in use.written:
            if features != bound.inputs:
                told = (("in_features", width), *told)
            elif use.component.needs_width:
                b.findings.append(_no_width(b, use))
        b.nets.append(Net(name, Call(use.component.target, (), told), span, use.path))
        out = b.value("features", Features, span)
        b.emit("call", (out,), f"self.{name}", features, use.path)
        features, width = (out,), Name(f"self.{name}.out_features")
    return features, width


def _no_width(b: Builder, use: Use) -> Finding:
    about = use.component.params.model_fields["in_features"].description or "numbers in one sample"
    return missing_key("in_features", b.experiment.tree, use.path, f"`{use.name}`", about)


def _answer_shape(b: Builder, use: Use) -> str:
    """For the docstring: a width that a flag turns is told by its name."""
    out = getattr(use.params, "out", None)
    if (*use.path, "out") in b.swept:
        return "(B, out)"
    return "(B,)" if out == 1 else f"(B, {out})" if out else "(B, ...)"


def _losses(b: Builder, bound: Bound, heads: dict[str, Value]) -> Routine:
    terms: dict[str, Value] = {}
    weights: list[Flag | float | None] = []
    for binding in bound.losses:
        use = binding.use
        b.static("loss", binding.key, "use")
        fitted = b.fit(use, heads[binding.head], binding.target, use.component.forms)
        if fitted is None:
            continue
        term = b.value(f"{binding.key}_loss", Scalar, b.experiment.key(*use.path))
        b.emit("term", (term,), use.component.target, (fitted[1], binding.target), use.path,
               kwargs=b.arguments(use))  # fmt: skip
        terms[binding.key] = term
        weights.append(b.weight("loss", binding.key, "weight"))
    total = _total(b)
    b.emit("sum", (total,), "", terms.values(), b.path("loss"), weights=weights)
    recorded = {**terms, total.name: total}
    b.emit("record", (), "self.record", (), b.path("loss"), kwargs=recorded.items())
    doc = "Each term on its own, logged, and their sum."
    return b.close("losses", doc, (*heads.values(), *bound.targets), (total,))


def _total(b: Builder) -> Value:
    return b.value(f"total_{OPTIMIZER}", Scalar, b.experiment.key(*b.path("loss")))


def _update(b: Builder, bound: Bound, heads: dict[str, Value]) -> Phase:
    _answer(b, bound, heads)
    total = _total(b)
    b.emit("call", (total,), "self.losses", (*heads.values(), *bound.targets), b.path("loss"))
    b.emit("step", (), OPTIMIZER, (total,), b.path("optim"))
    return Phase(OPTIMIZER, b.take(), OPTIMIZER)


def _answer(b: Builder, bound: Bound, heads: dict[str, Value]) -> None:
    b.emit("call", heads.values(), "self", bound.inputs, b.path("heads"))


def _measure(b: Builder, bound: Bound, heads: dict[str, Value]) -> Routine:
    _answer(b, bound, heads)
    b.emit("call", (), "self.losses", (*heads.values(), *bound.targets), b.path("loss"))
    for binding in bound.metrics:
        use = binding.use
        b.static("metrics", binding.key, "use")
        forms = _reading(use, b.static("metrics", binding.key, "reads"))
        fitted = b.fit(use, heads[binding.head], binding.target, forms)
        if fitted is None:
            continue
        form, pred = fitted
        build = Call(form.target or use.component.target, (), b.arguments(use))
        b.nets.append(Net(binding.key, build, b.experiment.key(*use.path), use.path, state=False))
        b.emit("metric", (), f"self.{binding.key}.update", (pred, binding.target), use.path)
    doc = "One batch of held-out rows: losses and metrics."
    return b.close("measure", doc, batch=True)


def _reading(use: Use, reads: object) -> tuple[Form, ...]:
    """The forms a metric may take: as the spec says what it reads, else logits only where nothing else is taken.

    A threshold of 0.5 means a probability; on logits it would be one of 0.62, and nobody would see it.
    """
    forms = use.component.forms
    wanted = {"prob": (Prob,), "logits": (BinaryLogits, ClassLogits)}.get(str(reads))
    if wanted is not None:
        return tuple(form for form in forms if form.takes[0] in wanted)
    return tuple(form for form in forms if form.takes[0] is not BinaryLogits) or forms


_FLOORS = {BinaryLogits: "logits", ClassLogits: "class_logits", Prob: "probs", Real: "real",
           ClassProbs: "class_probs", Any_: "real"}  # fmt: skip


def _constants(
    stage: Stage, b: Builder, bound: Bound, heads: dict[str, Value]
) -> tuple[Routine, ...]:
    """Nothing where an answer is compared with no column: what would the best constant be there?"""
    answers = []
    for name, head in heads.items():
        target = bound.target_of(name)
        if target is None:
            b.take()
            return ()
        use = stage.maps["heads"][name]
        out = b.value(name, head.port, head.span)
        kwargs: tuple[tuple[str, Operand], ...] = ()
        if head.port is ClassLogits and "out" in use.component.fields():
            kwargs = (("classes", b.flag("heads", name, "out")),)
        function = f"expc_runtime.floors:{_FLOORS[head.port]}"
        b.emit("call", (out,), function, (target,), use.path, kwargs=kwargs)
        answers.append(out)
    doc = "Constant answers of each head; the best of them is the floor that any model must beat."
    return (b.close("constants", doc, (), answers, batch=True, returns="tuple[Tensor, ...]"),)


# ----------------------------------------------------------------------------------------------- feed, run


def _feed(stage: Stage, b: Builder, bound: Bound) -> Feed:
    use = stage.uses["data"]
    path = b.path("data")
    b.static("data", "use")
    source = Call(use.component.target, (), b.arguments(use))
    kwargs: list[tuple[str, Operand]] = [
        ("columns", tuple(bound.columns)),
        ("batch", b.flag("data", "batch")),
    ]
    for share in ("val", "test"):
        if b.written("data", "split", share):
            kwargs.append((share, b.flag("data", "split", share)))
    if b.static("data", "split", "by") is not None:
        kwargs.append(("by", b.fixed("data", "split", "by")))
        b.findings += _wrong_group(b, use)
    for what in ("groups", "rows"):
        limit = b.flag("data", "limit", what) if b.written("data", "limit", what) else None
        if limit is not None:
            kwargs.append((f"limit_{what}", limit))
    if b.written("data", "split", "seed"):
        kwargs.append(("split_seed", b.flag("data", "split", "seed")))
    if b.written("data", "drop_last"):
        kwargs.append(("drop_last", b.flag("data", "drop_last")))
    feed = "expc_runtime.data.feed:Feed"
    if b.written("data", "stream", "window"):
        feed = "expc_runtime.data.stream:Stream"
        kwargs.append(("window", b.flag("data", "stream", "window")))
        if b.written("data", "stream", "threads"):
            kwargs.append(("threads", b.flag("data", "stream", "threads")))
    build = Call(feed, (source,), tuple(kwargs))
    return Feed(build, tuple(bound.columns.values()), (), b.experiment.key(*path), path)


def _wrong_group(b: Builder, use: Use) -> Iterator[Finding]:
    """Rows are split by a column that the source does not have. Your own source may have any."""
    by, known = use.slot.split.by, splits_by(use)
    if by is None or by in known or use.component.own:
        return
    if known:
        hint = suggest(by, known)
        help = (
            f"{hint} (rows are split by {listed(known)})" if hint else f"split by {listed(known)}"
        )
    else:
        help = "leave out `by`"
    yield Finding(
        "XC304",
        f"`{use.name}` has no column `{by}` to split by",
        b.experiment.value(*use.path, "split", "by"),
        why="the rows of a group could not be told apart",
        help=help,
    )


def _run(stage: Stage, b: Builder) -> tuple[tuple[str, Operand], ...]:
    shape: Supervised = stage.shape
    run: dict[str, Operand] = {"until": training.until(b, shape.until)}
    run |= training.running(b, shape.monitor)
    microbatch = b.spare("microbatch")
    if microbatch is not None:
        run["microbatch"] = microbatch
    run |= training.handed(b, shape)
    statistics = b.fixed("norm_statistics")
    if statistics != "running":
        run["norm_statistics"] = statistics
    return tuple(run.items())

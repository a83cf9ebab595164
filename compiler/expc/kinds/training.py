"""Parts of a program that every trained kind has: optimizer and schedule, budget and gate, checkpoints, starting weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from expc.components.core import Use
from expc.findings import Finding, listed, suggest
from expc.ir import Artifact, Call, Name, Operand, Optim
from expc.kinds.builder import Builder
from expc.kinds.shapes import BOUNDS, CLOCKS, Init, Until, taken
from expc.source import Key, KeyPath

FIT = "expc_runtime.fit:fit"
"""The runtime's training driver."""


def optimizer(
    b: Builder,
    name: str,
    use: Use,
    schedule: Use | None,
    nets: tuple[str, ...] = (),
    drive_at: KeyPath = (),
    *,
    some_frozen: bool = False,
) -> Optim:
    """An optimizer over nets (none named: all), and how it is driven: `clip` and `accumulate` stand at `drive_at`.

    `some_frozen`: of all, those that are frozen are left out.
    """
    keys = b.keys(use.path)
    b.static(*keys, "use")
    arguments = b.arguments(use)
    named = tuple(Name(f"self.{net}") for net in nets)
    parameters: Operand = Call("self.parameters")
    if nets or some_frozen:
        parameters = Call("expc_runtime.optim:parameters", named or (Name("self"),))
    decays = b.written(*keys, "weight_decay") or use.default("weight_decay")
    if b.static(*keys, "decay") == "weights" and decays:
        arguments = b.arguments(use, leave=("weight_decay",))
        decay = b.flag(*keys, "weight_decay")
        several: Operand = Call("torch.nn:ModuleList", (named,)) if nets else Name("self")
        driven = named[0] if len(nets) == 1 else several
        parameters = Call("expc_runtime.optim:decay_groups", (driven, decay))
    fused: tuple[tuple[str, Operand], ...] = () if use.component.own else (("fused", True),)
    build = Call(use.component.target, (parameters,), (*arguments, *fused))
    drive: list[tuple[str, Operand]] = []
    if schedule is not None:
        drive.append(("schedule", _schedule(b, schedule)))
    written = [
        (key, b.flag(*drive_at, key)) for key in ("clip", "accumulate") if b.written(*drive_at, key)
    ]
    drive += [(key, value) for key, value in written if value is not None]
    return Optim(name, build, nets, tuple(drive), b.experiment.key(*use.path), use.path)


def _schedule(b: Builder, use: Use) -> Call:
    keys = b.keys(use.path)
    b.static(*keys, "use")
    arguments = dict(b.arguments(use, leave=("warmup",)))
    if use.param("warmup"):
        arguments = {"warmup": clock(b, *keys, "warmup"), **arguments}
    return Call(use.component.target, (), tuple(arguments.items()))


def clock(b: Builder, *keys: Key) -> Call:
    """A span of training, on the clock that the spec names. Which clock it is changes the code."""
    spans: Mapping[str, object] = b.experiment.tree.get(b.path(*keys)) or {}
    named = [name for name in CLOCKS if spans.get(name) is not None]
    if len(named) != 1:
        known = [each for each in CLOCKS if each in spans] or list(CLOCKS)
        b.findings.append(_not_one_clock(b, keys, named, known))
        return Call(
            "expc_runtime.clocks:Epochs", (1,)
        )  # never printed: a finding stops the compile
    return Call(f"expc_runtime.clocks:{CLOCKS[named[0]]}", (b.flag(*keys, named[0]),))


def _not_one_clock(
    b: Builder, keys: tuple[Key, ...], named: Sequence[str], known: Sequence[str]
) -> Finding:
    what = f"two clocks: {listed(named)}" if named else "no clock"
    return Finding(
        "XC209",
        f"`{keys[-1]}` names {what}",
        b.experiment.key(*b.path(*keys, *named[1:2])),
        why="whichever ran out first would decide" if named else "it would never end",
        help=f"name one of {listed(known)}, such as `{{{known[0]}: 10}}`",
    )


def until(b: Builder, shape: Until) -> Call:
    """A budget, and the gate that may end the stage before it."""
    budget = clock(b, "until", "budget") if shape.budget is not None else clock(b, "until")
    b.findings.extend(_half_gates(b, shape))
    if not (shape.metric and shape.bound):
        return Call("expc_runtime.gates:Until", (budget,))
    b.static("until", "metric"), b.static("until", "on")
    word, _ = shape.bound
    kwargs: list[tuple[str, Operand]] = [(word, b.flag("until", word))]
    if b.written("until", "patience"):
        kwargs.append(("patience", b.flag("until", "patience")))
    kwargs.append(("otherwise", str(b.static("until", "otherwise"))))
    if b.static("until", "mode") != "eval":
        kwargs.append(("mode", shape.mode))
    key = logged_key(shape.metric, shape.on)
    gate = Call("expc_runtime.gates:Gate", (key,), tuple(kwargs))
    return Call("expc_runtime.gates:Until", (budget, gate))


def _half_gates(b: Builder, shape: Until) -> Iterator[Finding]:
    """A gate needs a metric and one bound; a budget stands in one place."""
    bounds = [word for word in BOUNDS if getattr(shape, word) is not None]
    direct = [name for name in CLOCKS if getattr(shape, name, None) is not None]
    if shape.metric and not bounds:
        what, key, help = "a metric and no bound", "metric", f"add one of {listed(BOUNDS)}"
    elif bounds and not shape.metric:
        what, key, help = "a bound and no metric", bounds[0], "add `metric:`"
    elif len(bounds) > 1:
        what, key, help = f"two bounds: {listed(bounds)}", bounds[1], "keep one"
    elif shape.budget is not None and direct:
        what, key, help = f"a budget and `{direct[0]}`", direct[0], "keep the budget"
    else:
        return
    why = "one of the two would do nothing" if "two" in what or direct else "it gates nothing"
    yield Finding(
        "XC209", f"`until` has {what}", b.experiment.key(*b.path("until", key)), why, help
    )


def logged_key(key: str, split: str) -> str:
    """The log key of a metric or loss that a spec names: `accuracy` is `val/accuracy`."""
    return key if "/" in key else f"{split}/{key}"


def running(b: Builder, watched: Mapping[str, str]) -> dict[str, Operand]:
    """How a stage runs, beside its budget: precision, compilation, checkpoints, what the best is kept of."""
    run: dict[str, Operand] = {}
    if b.written("precision"):
        run["precision"] = b.word("precision")
    if b.written("compile"):
        run["compile"] = b.flag("compile")
    if b.written("checkpoint"):
        run["checkpoint"] = checkpoint(b)
    if watched:
        b.static("monitor")
        keys = {name: logged_key(key, b.stage.kind.measured) for name, key in watched.items()}
        run["monitor"] = dictionary(keys)
    return run


def checkpoint(b: Builder) -> Call:
    """When and how many checkpoints are kept."""
    kwargs: list[tuple[str, Operand]] = []
    if b.written("checkpoint", "every"):
        kwargs.append(("every", clock(b, "checkpoint", "every")))
    if b.written("checkpoint", "keep"):
        kwargs.append(("keep", b.flag("checkpoint", "keep")))
    return Call("expc_runtime.checkpoint:Checkpoint", (), tuple(kwargs))


def starts(b: Builder, shape: object) -> tuple[Artifact, ...]:
    """Parts whose weights come from a file, or from another stage: those trained on, then those frozen."""
    found = []
    for key, part, init in taken(shape):
        path = b.path(key, part)
        b.static(key, part)
        best = f"/best_{init.best}" if init.best else ""
        there = f"#{attribute(init.part)}" if init.part else ""
        source = f"{init.file or f'stage:{init.from_}{best}'}{there}"
        if part not in b.stage.parts:
            b.findings.append(_no_part(b, part, path, "to start" if key == "init" else "to freeze"))
        found.append(Artifact(attribute(part), source, b.experiment.key(*path), path))
    return tuple(found)


def handed(b: Builder, shape: object) -> dict[str, Operand]:
    """The same as `fit` takes it: `init` and `frozen`, each by part."""
    found: dict[str, dict[str, Operand]] = {}
    for (key, _, init), start in zip(taken(shape), starts(b, shape), strict=True):
        found.setdefault(key, {})[start.part] = _origin(start.source, init)
    return {key: dictionary(parts) for key, parts in found.items()}


def _origin(source: str, init: Init) -> Operand:
    """Text; with the tensors that may lack or be left over, a call."""
    may = [(name, tuple(getattr(init, name))) for name in ("missing", "extra")]
    named: list[tuple[str, Operand]] = [(name, keys) for name, keys in may if keys]
    return Call("expc_runtime.parts:From", (source,), tuple(named)) if named else source


def trained(b: Builder, names: Sequence[str] | None) -> tuple[str, ...]:
    """Attributes of the parts that an optimizer names under `trains`; none for all."""
    b.static("optim", "trains")
    for number, part in enumerate(names or ()):
        if part not in b.stage.parts:
            b.findings.append(_no_part(b, part, b.path("optim", "trains", number), "to train"))
    return tuple(dict.fromkeys(attribute(part) for part in names or ()))


def attribute(part: str) -> str:
    """The attribute of the generated module that holds a part: `heads.policy` is `policy_head`."""
    return f"{part.removeprefix('heads.')}_head" if part.startswith("heads.") else part


def _no_part(b: Builder, part: str, path: KeyPath, to: str) -> Finding:
    hint = suggest(part, b.stage.parts)
    choices = listed(b.stage.parts)
    return Finding(
        "XC213",
        f"stage `{b.stage.name}` has no part `{part}` {to}",
        b.experiment.key(*path),
        why="it would go nowhere",
        help=f"{hint} (parts: {choices})" if hint else f"parts are {choices}",
    )


def dictionary(entries: Mapping[str, Operand]) -> Call:
    """A literal dictionary."""
    return Call("", (), tuple(entries.items()))

"""Each step of the compiler as YAML: what `expc compile --emit` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from expc.components.core import Use
from expc.findings import Span
from expc.ir import (
    Artifact,
    Block,
    Call,
    Flag,
    Name,
    Net,
    Op,
    Operand,
    Optim,
    Policy,
    Program,
    Value,
)

if TYPE_CHECKING:
    from expc.build import Compiled


def emit(step: str, compiled: Compiled) -> str:
    """One step as a YAML document: `spec` as read, `ir` resolved, `program` op by op, `plan`."""
    printers = {"spec": _spec, "ir": _experiment, "program": _programs, "plan": _plan}
    return dump(printers[step](compiled))


def dump(data: Any) -> str:
    """Plain data as YAML that a person reads: maps in order, short leaves on one line."""
    text: str = yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
        default_flow_style=None,
    )
    return text


class _Dumper(yaml.SafeDumper):
    """No anchors: the same value twice is printed twice. A map that would be a long line is not one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(
        self, tag: str, mapping: Any, flow_style: bool | None = None
    ) -> yaml.MappingNode:
        node: yaml.MappingNode = super().represent_mapping(tag, mapping, flow_style)
        if len(str(mapping)) > _LONG:
            node.flow_style = False
        return node


_LONG = 90


def _spec(compiled: Compiled) -> Any:
    return compiled.document.tree.data


# ------------------------------------------------------------------------------------------------- resolved


def _experiment(compiled: Compiled) -> Any:
    experiment = compiled.experiment
    return {
        "experiment": experiment.name,
        "spec": experiment.file,
        "about": experiment.about,
        "stages": {
            name: {
                "kind": stage.kind.name,
                "after": list(stage.parents),
                **{slot: _use(use) for slot, use in stage.uses.items()},
                **{
                    slot: {key: _use(use) for key, use in many.items()}
                    for slot, many in stage.maps.items()
                },
                **_scalars(experiment.tree.get(stage.path), {*stage.uses, *stage.maps, "kind"}),
            }
            for name, stage in experiment.stages.items()
        },
        "sweep": experiment.tree.get(("sweep",)),
    }


def _scalars(raw: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in known}


def _use(use: Use) -> dict[str, Any]:
    forms = [form.target for form in use.component.forms if form.target]
    data: dict[str, Any] = {
        "use": use.name,
        "target": use.component.target or forms,
        "written": {name: _plain(use.param(name)) for name in use.written},
    }
    defaults = {n: _plain(use.param(n)) for n in use.component.fields() if n not in use.written}
    if defaults:
        data["default"] = defaults
    if use.slot is not None:
        data["here"] = use.slot.model_dump(by_alias=True)
    return data


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------------------- programs


def _programs(compiled: Compiled) -> Any:
    return {module.file: _program(module.program) for module in compiled.plan.modules}


def _program(program: Program) -> dict[str, Any]:
    return {
        "stage": program.stage,
        "doc": program.doc,
        "feed": {
            "build": _text(program.feed.build),
            "columns": [_typed(column) for column in program.feed.columns],
            "calls": list(program.feed.calls),
            "at": str(program.feed.span),
        },
        "nets": {net.name: _net(net) for net in program.nets},
        "optims": {optim.name: _optim(optim) for optim in program.optims},
        "routines": {
            routine.name: {
                "takes": "a batch" if routine.batch else [_typed(value) for value in routine.ins],
                "grad": routine.grad,
                "ops": [_op(op) for op in routine.ops],
                "gives": [_typed(value) for value in routine.out],
            }
            for routine in program.routines
        },
        "phases": {
            phase.name: {"optim": phase.optim, "ops": [_op(op) for op in phase.ops]}
            for phase in program.phases
        },
        "run": {name: _text(operand) for name, operand in program.run},
        "inputs": [_artifact(artifact) for artifact in program.inputs],
        "flags": {flag.field: _flag(flag) for flag in program.flags},
        "logged": list(program.logged),
        "structural": sorted(".".join(map(str, path)) for path in program.structural),
    }


def _net(net: Net) -> dict[str, Any]:
    return {"build": _text(net.build), "at": _at(net.span, net.path)}


def _optim(optim: Optim) -> dict[str, Any]:
    drive = {name: _text(operand) for name, operand in optim.drive}
    nets = list(optim.nets) or "all"
    return {"build": _text(optim.build), "nets": nets, **drive, "at": _at(optim.span, optim.path)}


def _artifact(artifact: Artifact) -> dict[str, Any]:
    return {"part": artifact.part, "from": artifact.source, "at": _at(artifact.span, artifact.path)}


def _flag(flag: Flag) -> dict[str, Any]:
    swept = {"swept": True} if flag.swept else {}
    return {"default": _plain(flag.default), **swept, "at": _at(flag.span, flag.path)}


def _op(op: Op) -> dict[str, Any]:
    weights = {"weights": [_weight(weight) for weight in op.weights]} if any(op.weights) else {}
    named = {"named": {name: _text(operand) for name, operand in op.kwargs}} if op.kwargs else {}
    return {
        "op": op.kind,
        **({"out": [_typed(value) for value in op.out]} if op.out else {}),
        **({"target": op.target} if op.target else {}),
        "ins": [_text(operand) for operand in op.ins],
        **weights,
        **named,
        **({} if op.grad else {"grad": False}),
        "at": _at(op.span, op.path),
    }


def _weight(weight: Flag | float | None) -> str | float:
    if weight is None:
        return 1.0
    return f"flag {weight.field}" if isinstance(weight, Flag) else weight


def _typed(value: Value) -> str:
    return f"{value.name}: {value.port.name}"


def _at(span: Span, path: Sequence[str | int]) -> str:
    return f"{span} ({'.'.join(map(str, path))})"


def _text(operand: Operand) -> Any:
    """An operand in a word: a value's name, `flag lr`, a call as it would be written."""
    match operand:
        case Value():
            return operand.name
        case Flag():
            return f"flag {operand.field}"
        case Name():
            return operand.text
        case Call():
            return f"{operand.target}({', '.join(_arguments(operand))})"
        case tuple():
            return [_text(item) for item in operand]
        case _:
            return operand


def _arguments(call: Call) -> Iterator[str]:
    for operand in call.args:
        yield str(_text(operand))
    for name, operand in call.kwargs:
        yield f"{name}={_text(operand)}"


# ----------------------------------------------------------------------------------------------------- plan


def _plan(compiled: Compiled) -> Any:
    plan = compiled.plan
    return {
        "experiment": plan.experiment,
        "spec": plan.spec,
        "runs": plan.runs,
        "axes": list(plan.axes),
        "seeds": list(plan.seeds),
        "stages": list(plan.stages),
        "modules": [
            {"file": m.file, "stage": m.stage, "label": m.label, "program": m.digest}
            for m in plan.modules
        ],
        "policies": [_policy(policy) for policy in plan.policies],
        "notify": asdict(plan.notify) if plan.notify is not None else None,
        "backends": {
            backend.name: {**dict(backend.whole), "stages": {n: dict(o) for n, o in backend.stages}}
            for backend in plan.backends
        },
        "blocks": [_block(block) for block in plan.blocks],
    }


def _policy(policy: Policy) -> dict[str, Any]:
    retries = {
        retry.failure: {
            "times": retry.times,
            "delay": retry.delay,
            "changes": dict(retry.changes),
        }
        for retry in policy.retries
    }
    return {
        "stage": policy.stage,
        "timeout": policy.timeout,
        "devices": policy.devices,
        "retries": retries,
    }


def _block(block: Block) -> dict[str, Any]:
    return {
        "condition": _label(block.label),
        "runs": block.runs,
        "loops": [
            {"names": list(loop.names), "rows": [list(row) for row in loop.rows]}
            for loop in block.loops
        ],
        "stages": [
            {"stage": stage.stage, "skip": stage.skip}
            if stage.skip
            else {
                "stage": stage.stage,
                "module": stage.module,
                "after": list(stage.after),
                "flags": {flag: _given(value) for flag, value in stage.flags},
            }
            for stage in block.stages
        ],
        "unless": [dict(rule) for rule in block.unless],
    }


def _label(label: Sequence[str | Name]) -> str:
    return "".join(f"<{part.text}>" if isinstance(part, Name) else part for part in label)


def _given(value: object) -> Any:
    return f"<{value.text}>" if isinstance(value, Name) else _plain(value)

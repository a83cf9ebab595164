"""Write a program: names, typed edges, flags. What does not fit becomes a finding with both places."""

from __future__ import annotations

import itertools
import keyword
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from expc import components
from expc.components.core import Form, Use
from expc.experiment import Experiment, Stage
from expc.findings import Finding, Note, Span
from expc.ir import (
    CONVERSIONS,
    Call,
    Flag,
    Net,
    Op,
    Operand,
    OpKind,
    Port,
    Routine,
    Value,
    fits,
)
from expc.source import KeyPath

_TAKEN_FIELDS = frozenset(
    {"seed", "out", "device", "smoke", "planned", "int", "float", "str", "bool", "tuple"}
)
"""Flags of every run, and the types that the fields of `Config` are declared with."""


@dataclass
class Builder:
    """Builds one stage's program.

    `flag` gives a scalar as a symbol; `static` reads its value, which makes that path structural: runs that differ there
    get files of their own.
    """

    experiment: Experiment
    stage: Stage
    swept: frozenset[KeyPath] = frozenset()
    findings: list[Finding] = field(default_factory=list)
    structural: set[KeyPath] = field(default_factory=set)
    nets: list[Net] = field(default_factory=list)
    _flags: dict[KeyPath, Flag] = field(default_factory=dict)
    _ops: list[Op] = field(default_factory=list)
    _scope: dict[str, Value] = field(default_factory=dict)
    _converted: dict[tuple[str, Port], Value] = field(default_factory=dict)
    _phase: str = ""

    def __post_init__(self) -> None:
        self._fields = field_names(self.experiment, self.stage)

    # ------------------------------------------------------------------------------------------ scalars

    def path(self, *keys: str | int) -> KeyPath:
        """A path below this stage."""
        return (*self.stage.path, *keys)

    def keys(self, path: KeyPath) -> KeyPath:
        """A path of the spec, from this stage on."""
        return path[len(self.stage.path) :]

    def own(self) -> tuple[tuple[str, str], ...]:
        """The user's code that the stage uses, and the fingerprint of its text."""
        used = {
            use.component.target: use.component.fingerprint
            for use in self.stage.every_use()
            if use.component.own
        }
        return tuple(sorted(used.items()))

    def static(self, *keys: str | int) -> object:
        """The value at a path; its code depends on it from now on."""
        path = self.path(*keys)
        self.structural.add(path)
        return self.experiment.tree.get(path)

    def written(self, *keys: str | int) -> bool:
        """Whether somebody set the path. Default values are never flags."""
        return self.experiment.is_written(self.path(*keys))

    def fixed(self, *keys: str | int) -> Operand:
        """A scalar that decides the code around it: printed as it is, for a flag could not turn that."""
        return _plain(self.static(*keys))

    def flag(
        self, *keys: str | int, length: int | None = None, choices: tuple[str, ...] = ()
    ) -> Operand:
        """A scalar as the spec sets it: a flag when somebody wrote it, its value when nobody did."""
        path = self.path(*keys)
        value = _plain(self.experiment.tree.get(path))
        if value is None:
            self.structural.add(path)
            return None
        if not self.experiment.is_written(path) and path not in self.swept:
            return value
        return self._flagged(path, value, length, choices)

    def word(self, *keys: str | int) -> Operand:
        """A choice such as a precision, as text: a flag when somebody wrote it."""
        path = self.path(*keys)
        value = str(self.experiment.tree.get(path))
        if not self.experiment.is_written(path) and path not in self.swept:
            return value
        return self._flagged(path, value)

    def spare(self, *keys: str) -> Operand:
        """A scalar that is printed only where somebody set it, or a retry turns it: a flag then, else None."""
        path = self.path(*keys)
        if self.experiment.is_written(path) or path in self.swept:
            return self.flag(*keys)
        retries = self.experiment.run_of(self.stage).retry.values()
        if not any(".".join(keys) in retry.changes for retry in retries):
            return None
        return self._flagged(path, _plain(self.experiment.tree.get(path)), idle=True)

    def _flagged(
        self,
        path: KeyPath,
        value: Operand,
        length: int | None = None,
        choices: tuple[str, ...] = (),
        *,
        idle: bool = False,
    ) -> Flag:
        if path not in self._flags:
            span = self.experiment.value(*path)
            section = str(path[2]) if len(path) > 3 else "training"
            swept = path in self.swept
            field = self._fields[path]
            self._flags[path] = Flag(
                field, value, path, span, section, swept, length, choices, idle
            )
        return self._flags[path]

    def weight(self, *keys: str | int) -> Flag | float | None:
        """A factor of a sum: a flag when somebody wrote it, a term's own default, or None."""
        if self.written(*keys):
            factor = self.flag(*keys)
            return factor if isinstance(factor, Flag) else None
        default = self.experiment.tree.get(self.path(*keys))
        return default if isinstance(default, float) and default != 1.0 else None

    def flags(self) -> tuple[Flag, ...]:
        """Flags in the order of the kind's keys, then of the spec."""
        keys = list(type(self.stage.shape).model_fields)
        fields = list(self._fields)
        return tuple(
            sorted(
                self._flags.values(),
                key=lambda flag: (keys.index(str(flag.path[2])), fields.index(flag.path)),
            )
        )

    def arguments(self, use: Use, *, leave: Sequence[str] = ()) -> tuple[tuple[str, Operand], ...]:
        """The written parameters of a component, as keyword arguments."""
        extra = [name for name in use.params.model_extra or {} if name not in use.written]
        return tuple(
            (name, self._argument(use, name))
            for name in [*use.written, *extra]
            if name not in leave
        )

    def _argument(self, use: Use, name: str) -> Operand:
        keys = (*self.keys(use.path), name)
        if isinstance(self.experiment.tree.get(self.path(*keys)), dict):
            return self.fixed(*keys)
        return self.flag(*keys, length=use.length(name), choices=use.choices(name))

    # --------------------------------------------------------------------------------------- statements

    def value(
        self, name: str, port: Port, span: Span, *, grad: bool = True, shape: str = ""
    ) -> Value:
        """A new local variable."""
        made = Value(name, port, span, grad, self._phase, shape)
        self._scope[name] = made
        return made

    def emit(
        self,
        kind: OpKind,
        out: Iterable[Value],
        target: str,
        ins: Iterable[Operand],
        path: KeyPath,
        *,
        kwargs: Iterable[tuple[str, Operand]] = (),
        weights: Iterable[Flag | float | None] = (),
        grad: bool = True,
    ) -> None:
        """Add a statement to the routine or phase being written."""
        span = self.experiment.key(*path)
        self._ops.append(
            Op(
                kind,
                tuple(out),
                target,
                tuple(ins),
                span,
                path,
                tuple(kwargs),
                tuple(weights),
                grad,
            )
        )

    def convert(self, value: Value, port: Port, path: KeyPath) -> Value:
        """A value as another port; one conversion for each value and routine."""
        known = self._converted.get((value.name, port))
        if known is not None:
            return known
        suffix = {"Prob": "prob", "ClassProbs": "probs"}[port.name]
        out = self.value(
            f"{value.name}_{suffix}", port, value.span, grad=value.grad, shape=value.shape
        )
        self.emit("convert", (out,), CONVERSIONS[value.port, port], (value,), path)
        self._converted[value.name, port] = out
        return out

    def close(
        self,
        name: str,
        doc: str,
        ins: Iterable[Value] = (),
        out: Iterable[Value] = (),
        *,
        batch: bool = False,
        grad: bool = True,
        returns: str = "",
    ) -> Routine:
        """End the routine being written."""
        routine = Routine(name, doc, tuple(ins), self.take(), tuple(out), batch, grad, returns)
        return routine

    def enter(self, phase: str) -> None:
        """Values made from here on belong to a phase."""
        self._phase = phase

    def take(self) -> tuple[Op, ...]:
        """The statements written since the last routine or phase; names start anew."""
        self._phase = ""
        ops, self._ops = tuple(self._ops), []
        self._scope, self._converted = {}, {}
        return ops

    # --------------------------------------------------------------------------------------------- edges

    def fit(
        self, use: Use, pred: Value, target: Value, forms: Sequence[Form]
    ) -> tuple[Form, Value] | None:
        """The form of a component that takes these two values, with a legal conversion where one is needed."""
        for form in forms:
            if fits(pred.port, form.takes[0]) and fits(target.port, form.takes[1]):
                return form, pred
        for form in forms:
            if (pred.port, form.takes[0]) in CONVERSIONS and fits(target.port, form.takes[1]):
                return form, self.convert(pred, form.takes[0], use.path)
        self.findings.append(self._misfit(use, pred, target, forms))
        return None

    def _misfit(self, use: Use, pred: Value, target: Value, forms: Sequence[Form]) -> Finding:
        if not forms:
            return self._unreadable(use)
        place = self.experiment.value(*use.path, "use")
        family = use.component.family
        if self.path("heads", pred.name) not in self.experiment.tree.where:
            return self._unfit(use, pred, target, place)
        wanted = list(dict.fromkeys(form.takes[0].says for form in forms))
        if not any(fits(target.port, form.takes[1]) for form in forms):
            targets = list(dict.fromkeys(form.takes[1].says for form in forms))
            return Finding(
                "XC308",
                f"`{use.name}` compares with {_either(targets)}, but column `{_column(target)}` holds "
                f"{target.port.says}",
                place,
                why=f"{family} `{use.path[-1]}` would measure something else, or fail at the first batch",
                help="choose another column with `target:`, or another " + family,
            )
        head = self.experiment.where(*self.path("heads", pred.name))
        gives = self.experiment.tree.where.get(self.path("heads", pred.name, "gives"))
        place_of_head = gives.value if gives and gives.origin != "default" else head.key
        return Finding(
            "XC301",
            f"`{use.name}` reads {_either(wanted)}, but head `{pred.name}` gives {pred.port.says}",
            place,
            why="it would train on numbers that mean something else, and look like a bad learning rate",
            help=self._help_for(pred, wanted, place_of_head),
            notes=(Note(place_of_head, f"head `{pred.name}` gives {pred.port.says} here"),),
            spans=(place_of_head,),
        )

    def _unfit(self, use: Use, pred: Value, target: Value, place: Span) -> Finding:
        """A component that does not suit what it is given: the stage has no heads to choose, so it must be another."""
        suits = [form for form in use.component.forms if fits(target.port, form.takes[-1])]
        family, key = use.component.family, use.path[-1]
        given = pred if suits else target
        wanted = list(
            dict.fromkeys(form.takes[0 if suits else -1].says for form in use.component.forms)
        )
        others = [
            name
            for name, other in components.built_in(family).items()
            if any(fits(target.port, form.takes[-1]) for form in other.forms)
            and (not suits or any(fits(pred.port, form.takes[0]) for form in other.forms))
        ]
        return Finding(
            "XC301" if suits else "XC308",
            f"`{use.name}` reads {_either(wanted)}, but {family} `{key}` is of {given.port.says}",
            place,
            why="it would measure something else, or fail at the first batch",
            help=f"use {_either([f'`{name}`' for name in others])}",
        )

    def _unreadable(self, use: Use) -> Finding:
        """The spec says that a component reads what it has no form for."""
        takes = list(dict.fromkeys(form.takes[0].says for form in use.component.forms))
        stated = self.experiment.tree.get((*use.path, "reads"))
        return Finding(
            "XC301",
            f"`{use.name}` can't read `{stated}`: it reads {_either(takes)}",
            self.experiment.value(*use.path, "reads"),
            why="it would measure numbers that mean something else",
            help="leave `reads` out, or use a component that reads it",
        )

    def _help_for(self, pred: Value, wanted: list[str], place: Span) -> str:
        if pred.port.name == "Prob" and "logits of yes" in wanted:
            return f"let head `{pred.name}` give logits (drop `gives: prob`), or use a loss on probabilities"
        return f"choose what reads {pred.port.says}, or set `gives:` of head `{pred.name}`"


def _either(words: list[str]) -> str:
    return " or ".join(words)


def _column(value: Value) -> str:
    return value.name.removesuffix("_target")


def _plain(value: object) -> Operand:
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return Call("", (), tuple((str(key), _plain(item)) for key, item in value.items()))
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{value!r} has no place in a program")


def field_names(experiment: Experiment, stage: Stage) -> dict[KeyPath, str]:
    """The `Config` field of every leaf of a stage: `optim.lr` is `lr`, `loss.value.weight` is `value_weight`.

    Where two would have one name, both carry their section.
    """
    leaves = [path for path, _ in experiment.tree.leaves(stage.path)]
    short = {path: _short(path[2:]) for path in leaves}
    count = Counter(short.values())
    names: dict[KeyPath, str] = {}
    taken: set[str] = set()
    for path, name in short.items():
        clash = count[name] > 1 or name in _TAKEN_FIELDS or keyword.iskeyword(name)
        chosen = first = "_".join(map(str, path[2:])) if clash else name
        for number in itertools.count(2):
            if chosen not in taken:
                break
            chosen = f"{first}_{number}"
        taken.add(chosen)
        names[path] = chosen
    return names


def _short(path: KeyPath) -> str:
    keys = [str(key) for key in path]
    return "_".join(keys[1:]) if len(keys) > 1 else keys[0]

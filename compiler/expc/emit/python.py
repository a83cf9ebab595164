"""Print a program as a Python module. Nothing here asks what kind of experiment it prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from expc.ir import (
    Call,
    Count,
    Flag,
    Module,
    Name,
    Op,
    Operand,
    Optim,
    Phase,
    Program,
    Routine,
    Value,
    read_by,
)
from expc.source import KeyPath
from expc.sweep import flag_name, number

_MODULE_STYLE = frozenset({"expc_runtime.losses", "expc_runtime.floors"})
"""Runtime modules whose functions are called as `losses.bce`: their names would shadow locals."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a body, and the place in the spec that it comes from."""

    text: str
    path: KeyPath | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """A method to print."""

    signature: str
    doc: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """Fields of `Config` that belong to one key of the stage."""

    title: str
    fields: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class PythonFile:
    """What the module template prints."""

    path: str
    spec: str
    variant: str
    about: str
    example: str
    project_root: int
    imports: tuple[tuple[str, ...], ...]
    own_imports: tuple[str, ...]
    program: str
    out: str
    sections: tuple[Section, ...]
    name: str
    doc: str
    methods: tuple[Method, ...]
    main: tuple[Line, ...]

    def lines(self) -> Iterator[Line]:
        """Every mapped line, in the order in which the file shows them."""
        for section in self.sections:
            yield from section.fields
        for method in self.methods:
            yield from method.lines
        yield from self.main


@dataclass
class Imports:
    """Names a module needs. A name that is taken is called by its full path instead."""

    own_root: frozenset[str]
    taken: set[str]
    found: dict[str, set[str]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)

    def call(self, target: str) -> str:
        """How `module:name` is called in the file."""
        module, _, name = target.partition(":")
        if not name:
            return target
        package, _, last = module.rpartition(".")
        if module in _MODULE_STYLE:
            self.found.setdefault(package, set()).add(last)
            return f"{last}.{name}"
        known = name in self.found.get(module, ())
        stray = name[0].islower() and not module.startswith(_DIRECT)
        if not known and (name in self.taken or stray):
            self.whole.add(module)
            return f"{module}.{name}"
        self.found.setdefault(module, set()).add(name)
        self.taken.add(name)
        return name

    def is_own(self, module: str) -> bool:
        """Whether a module is the user's, found from the project root."""
        return module.split(".")[0] in self.own_root

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Import lines: standard library, third parties, the runtime."""
        ranks: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for line, module in self._lines():
            if not self.is_own(module):
                ranks[_rank(module)].append(line)
        return tuple(tuple(lines) for lines in ranks.values() if lines)

    def own(self) -> tuple[str, ...]:
        """Import lines of the user's own modules."""
        return tuple(line for line, module in self._lines() if self.is_own(module))

    def _lines(self) -> Iterator[tuple[str, str]]:
        for module in sorted(self.whole):
            yield f"import {module}", module
        for module, names in sorted(self.found.items()):
            yield f"from {module} import {', '.join(sorted(names))}", module


_STANDARD = frozenset({"dataclasses", "pathlib", "sys", "typing"})
_DIRECT = ("expc_runtime.", *_STANDARD)
"""Functions of these are imported by name; a user's function is called by its full path."""


def _rank(module: str) -> int:
    top = module.split(".")[0]
    return 0 if top in _STANDARD else 2 if top == "expc_runtime" else 1


def python_file(
    module: Module, experiment: str, spec: str, folder: str, own_root: Iterable[str]
) -> PythonFile:
    """A module's text, piece by piece, for the template."""
    program = module.program
    imports = Imports(frozenset(own_root), {program.name, "Config", "main", "PROGRAM", "Path"})
    for target in ("dataclasses:dataclass", "expc_runtime.flags:Run", "expc_runtime.flags:start"):
        imports.call(target)
    stem = module.file.removesuffix(".py")
    path = f"{folder}/{module.file}"
    methods = tuple(_methods(program, imports))
    main = tuple(_main(program, imports))
    sections = tuple(_sections(program.flags, imports))
    own_imports = imports.own()
    if own_imports:
        imports.whole.add("sys")
        imports.found["pathlib"] = {"Path"}
    return PythonFile(
        path=path,
        spec=spec,
        variant=f"stage {program.stage}" + (f", {module.label}" if module.label else ""),
        about=prose(program.about),
        example=_example(program),
        project_root=len(folder.split("/")),
        imports=imports.groups(),
        own_imports=own_imports,
        program=module.digest,
        out=f"runs/{experiment}/by_hand/{stem}",
        sections=sections,
        name=program.name,
        doc=prose(program.doc),
        methods=methods,
        main=main,
    )


def prose(text: str) -> str:
    """Text for a docstring: nothing that would end it, and no line ends but one kind."""
    lines = text.replace("\\", "/").replace('"""', "'''").strip().splitlines()
    return "\n".join("".join(char for char in line if char.isprintable()) for line in lines)


def _example(program: Program) -> str:
    swept = [flag for flag in program.flags if flag.swept]
    return " ".join([*map(given, swept[:1]), "--seed 2"])


def given(flag: Flag) -> str:
    """A flag with its default, as a person would type it."""
    value = shell_value(flag.default)
    return f"{flag_name(flag)}={value}" if value.startswith("-") else f"{flag_name(flag)} {value}"


def shell_value(value: object) -> str:
    """A flag's value as it is given on a command line."""
    if isinstance(value, tuple | list):
        return ",".join(number(item) for item in value)
    return number(value)


# -------------------------------------------------------------------------------------------------- Config


def _sections(flags: Sequence[Flag], imports: Imports) -> Iterator[Section]:
    for title, fields in groupby(flags, key=lambda flag: flag.section):
        yield Section(title, tuple(_field(flag, imports) for flag in fields))


def _field(flag: Flag, imports: Imports) -> Line:
    mark = "  # *" if flag.swept else ""
    kind = _one_of(flag.choices, imports) or _type(flag.default, flag.length)
    return Line(f"{flag.field}: {kind} = {literal(flag.default)}{mark}", flag.path)


def _one_of(choices: tuple[str, ...], imports: Imports) -> str:
    words = ", ".join(map(literal, choices))
    return f"{imports.call('typing:Literal')}[{words}]" if choices else ""


def _type(value: object, length: int | None = None) -> str:
    if isinstance(value, tuple):
        inner = {_type(item) for item in value}
        if length is not None and len(inner) == 1:
            return f"tuple[{', '.join([*inner] * length)}]"
        return f"tuple[{' | '.join(sorted(inner)) or 'int'}, ...]"
    return "None" if value is None else type(value).__name__


def literal(value: object) -> str:
    """A value as Python prints it, with double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        inner = ", ".join(literal(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


# ------------------------------------------------------------------------------------------------- methods


def _methods(program: Program, imports: Imports) -> Iterator[Method]:
    if not program.nets:
        return
    for target in ("expc_runtime.module:Batch", "expc_runtime.module:Module", "torch:Tensor"):
        imports.call(target)
    yield _init(program, imports)
    first = [r for r in program.routines if r.grad and not r.batch]
    for routine in first:
        yield _routine(program, routine, imports)
    yield Method(
        "def update(self, batch: Batch) -> None:",
        "One batch: forward, losses, and an optimizer step for each total.",
        tuple(_update(program, imports)),
    )
    for routine in program.routines:
        if routine not in first:
            yield _routine(program, routine, imports)
    yield _drives(program, imports)


def _init(program: Program, imports: Imports) -> Method:
    lines = [Line("super().__init__()"), Line("self.cfg = cfg")]
    for net in program.nets:
        lines.append(Line(f"self.{net.name} = {_expression(net.build, imports, 'cfg')}", net.path))
    return Method("def __init__(self, cfg: Config) -> None:", "", tuple(lines))


def _routine(program: Program, routine: Routine, imports: Imports) -> Method:
    named = (f"{value.name}: {_annotation(value, imports)}" for value in routine.ins)
    taken = "batch: Batch" if routine.batch else ", ".join(named)
    lines: list[Line] = []
    if routine.batch:
        lines.append(_unpack(program, routine.ops))
    lines += _body(routine.ops, imports)
    if len(routine.out) == 1:
        lines = [_typed(line, routine.out[0], imports) for line in lines]
    if routine.out:
        always_tuple = bool(routine.returns)
        lines.append(Line(f"return {_tuple(routine.out, always=always_tuple)}"))
    returns = routine.returns or _returns(routine.out, imports)
    return Method(f"def {routine.name}(self, {taken}) -> {returns}:", routine.doc, tuple(lines))


def _typed(line: Line, out: Value, imports: Imports) -> Line:
    """A net's call gives anything, to a type checker: say what is returned."""
    name, _, made = line.text.partition(" = ")
    is_call = name.strip() == out.name and made.startswith("self.")
    annotation = _annotation(out, imports)
    return Line(f"{name}: {annotation} = {made}", line.path) if is_call else line


def _annotation(value: Value, imports: Imports) -> str:
    """The type of a value in a signature."""
    if value.port is Count:
        return "int"
    return imports.call("expc_runtime.ports:Latent") if value.port.tree else "Tensor"


def _returns(out: Sequence[Value], imports: Imports) -> str:
    if not out:
        return "None"
    types = [_annotation(value, imports) for value in out]
    return types[0] if len(types) == 1 else f"tuple[{', '.join(types)}]"


def _tuple(values: Sequence[Value], *, always: bool) -> str:
    names = ", ".join(value.name for value in values)
    return f"({names},)" if always and len(values) == 1 else names


def _update(program: Program, imports: Imports) -> Iterator[Line]:
    yield _unpack(program, [op for phase in program.phases for op in phase.ops])
    for phase in program.phases:
        if len(program.phases) == 1:
            yield from _body(phase.ops, imports)
        else:
            yield Line(f"with self.only({_trained(program, phase)}):", phase.ops[0].path)
            for line in _body(phase.ops, imports):
                yield Line(f"    {line.text}", line.path)


def _trained(program: Program, phase: Phase) -> str:
    optim = next(optim for optim in program.optims if optim.name == phase.optim)
    return ", ".join(f"self.{net}" for net in optim.nets)


def _unpack(program: Program, ops: Sequence[Op]) -> Line:
    read = {value.name for op in ops for value in read_by(op)}
    columns = program.feed.columns
    names = [column.name if column.name in read else "_" for column in columns]
    left = f"({names[0]},)" if len(names) == 1 else ", ".join(names)
    return Line(f"{left} = batch", program.feed.path)


def _body(ops: Sequence[Op], imports: Imports) -> list[Line]:
    lines: list[Line] = []
    for frozen, group in groupby(ops, key=lambda op: not op.grad):
        printed = [Line(_statement(op, imports), op.path) for op in group]
        if frozen:
            lines.append(Line("with torch.no_grad():", printed[0].path))
            imports.whole.add("torch")
            printed = [Line(f"    {line.text}", line.path) for line in printed]
        lines += printed
    return lines


def _statement(op: Op, imports: Imports) -> str:
    where = "self.cfg"
    ins = [_expression(operand, imports, where) for operand in op.ins]
    named = [f"{name}={_expression(operand, imports, where)}" for name, operand in op.kwargs]
    out = ", ".join(value.name for value in op.out)
    assign = f"{out} = " if out else ""
    match op.kind:
        case "convert" | "detach" if op.target.startswith("."):
            return f"{assign}{ins[0]}{op.target}"
        case "sum":
            terms = zip(ins, op.weights, strict=True)
            return assign + " + ".join(_weighted(term, factor, where) for term, factor in terms)
        case "step":
            return f"self.step({json.dumps(op.target)}, {ins[0]})"
        case _:
            return f"{assign}{imports.call(op.target)}({', '.join([*ins, *named])})"


def _weighted(term: str, factor: Flag | float | None, cfg: str) -> str:
    if factor is None:
        return term
    return f"{cfg}.{factor.field} * {term}" if isinstance(factor, Flag) else f"{factor!r} * {term}"


def _drives(program: Program, imports: Imports) -> Method:
    lines = [Line("cfg = self.cfg")] if _uses_flags(program.optims) else []
    drives = []
    for optim in program.optims:
        drive = Call("expc_runtime.optim:Drive", (optim.build,), optim.drive)
        drives.append(f'"{optim.name}": {_expression(drive, imports, "cfg")}')
    lines.append(Line("return {" + ", ".join(drives) + "}", program.optims[0].path))
    return Method(
        "def drives(self) -> dict[str, Drive]:",
        "One optimizer for each total, with its schedule, clip and accumulation.",
        tuple(lines),
    )


def _uses_flags(optims: Sequence[Optim]) -> bool:
    operands = [operand for optim in optims for _, operand in optim.drive]
    return any(_has_flag(operand) for operand in [*(optim.build for optim in optims), *operands])


def _has_flag(operand: Operand) -> bool:
    if isinstance(operand, Call):
        return any(map(_has_flag, (*operand.args, *(inner for _, inner in operand.kwargs))))
    if isinstance(operand, tuple):
        return any(map(_has_flag, operand))
    return isinstance(operand, Flag)


def _main(program: Program, imports: Imports) -> Iterator[Line]:
    feed = _expression(program.feed.build, imports, "cfg")
    driver = imports.call(program.driver)
    arguments = [program.name, "cfg", feed] if program.nets else ["cfg", feed]
    arguments += [f"{name}={_expression(operand, imports, 'cfg')}" for name, operand in program.run]
    arguments += ["file=__file__", "program=PROGRAM"]
    yield Line(f"return {driver}({', '.join(arguments)},)", ("stages", program.stage))


def _expression(operand: Operand, imports: Imports, cfg: str) -> str:
    match operand:
        case Value():
            return operand.name
        case Flag():
            return f"{cfg}.{operand.field}"
        case Name():
            return operand.text
        case Call(target="", kwargs=entries):
            pairs = (f"{literal(k)}: {_expression(v, imports, cfg)}" for k, v in entries)
            return "{" + ", ".join(pairs) + "}"
        case Call():
            inner = [_expression(item, imports, cfg) for item in operand.args]
            inner += [f"{k}={_expression(v, imports, cfg)}" for k, v in operand.kwargs]
            return f"{imports.call(operand.target)}({', '.join(inner)})"
        case tuple():
            inner = [_expression(item, imports, cfg) for item in operand]
            return f"({inner[0]},)" if len(inner) == 1 else f"({', '.join(inner)})"
        case _:
            return literal(operand)

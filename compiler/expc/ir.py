"""The program an experiment compiles to: typed operations, no code strings, no torch.

A *kind* writes a `Program` through a builder, passes rewrite it, `plan` groups programs into files and runs, and the
printer prints it. The printer never asks what kind of experiment it prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from expc.findings import Span

# ---------------------------------------------------------------------------------------------------- ports


@dataclass(frozen=True, slots=True)
class Port:
    """What a value means. `tree` values are structures of tensors: they are detached leaf by leaf."""

    name: str
    says: str
    tree: bool = False


BinaryLogits = Port("BinaryLogits", "logits of yes")
ClassLogits = Port("ClassLogits", "class logits")
Prob = Port("Prob", "probabilities in 0..1")
ClassProbs = Port("ClassProbs", "a distribution over classes")
Real = Port("Real", "real numbers")
Image = Port("Image", "images")
ClassId = Port("ClassId", "class ids")
Features = Port("Features", "features")
TwoHotLogits = Port("TwoHotLogits", "logits over two-hot buckets")
Scalar = Port("Scalar", "a number")
Count = Port("Count", "a number of rows")
Latent = Port("Latent", "a latent state", tree=True)
Trajectory = Port("Trajectory", "an imagined trajectory", tree=True)
Tokens = Port("Tokens", "token ids")
ItemId = Port("ItemId", "item ids")
Any_ = Port("Any", "anything")

PORTS: Mapping[str, Port] = {
    port.name: port
    for port in (
        BinaryLogits, ClassLogits, Prob, ClassProbs, Real, Image, ClassId, Features, TwoHotLogits, Scalar,
        Count, Latent, Trajectory, Tokens, ItemId, Any_,
    )
}  # fmt: skip

CONVERSIONS: Mapping[tuple[Port, Port], str] = {
    (BinaryLogits, Prob): ".sigmoid()",
    (ClassLogits, ClassProbs): ".softmax(-1)",
}
"""Legal conversions, as the method that makes them. There is no way back from a probability to its logit."""


def fits(given: Port, wanted: Port) -> bool:
    """Whether a value can be used as it is."""
    return wanted is Any_ or given is Any_ or given == wanted


# ---------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True, slots=True)
class Flag:
    """A number the spec sets, by the name it has as a `Config` field and a command-line flag.

    Lowerings carry flags, never their values: a flag changes no code. `length` is that of a list which may have no other;
    `choices` are the words that it may be. An `idle` one is there for a retry to turn, and nobody set it: without it
    the program is the same.
    """

    field: str
    default: object
    path: tuple[str | int, ...]
    span: Span
    section: str
    swept: bool = False
    length: int | None = None
    choices: tuple[str, ...] = ()
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Value:
    """A local variable of the generated code. `phase` is where it was made; `grad` whether gradients may flow."""

    name: str
    port: Port
    span: Span
    grad: bool = True
    phase: str = ""
    shape: str = ""


@dataclass(frozen=True, slots=True)
class Name:
    """A dotted name printed as it is: `self.actor`, `self.backbone.out_features`."""

    text: str


Operand: TypeAlias = (
    "Value | Flag | Name | Call | str | int | float | bool | tuple[Operand, ...] | None"
)


@dataclass(frozen=True, slots=True)
class Call:
    """A constructor call: `Epochs(cfg.budget)`, `ConvNet(channels=cfg.channels)`. `target` is `module:name`."""

    target: str
    args: tuple[Operand, ...] = ()
    kwargs: tuple[tuple[str, Operand], ...] = ()


# ------------------------------------------------------------------------------------------------------- ops

OpKind = Literal["call", "convert", "detach", "term", "sum", "step", "sync", "record", "metric"]


@dataclass(frozen=True, slots=True)
class Op:
    """One statement. `target` is a name to call: `module:name` is imported, `self.x` is the module's own.

    `call` and `term` call a target, `convert` and `detach` a method of their operand; `sum` adds operands, each times its
    weight; `step` takes an optimizer step on a total; `sync` updates a net from another (target networks); `record`
    logs scalars under their keys; `metric` feeds a metric.
    """

    kind: OpKind
    out: tuple[Value, ...]
    target: str
    ins: tuple[Operand, ...]
    span: Span
    path: tuple[str | int, ...]
    kwargs: tuple[tuple[str, Operand], ...] = ()
    weights: tuple[Flag | float | None, ...] = ()
    grad: bool = True


def read_by(op: Op) -> Iterator[Value]:
    """Every value that a statement reads, wherever it stands among the operands."""
    yield from _values((*op.ins, *(operand for _, operand in op.kwargs)))


def _values(operands: Iterable[Operand]) -> Iterator[Value]:
    for operand in operands:
        if isinstance(operand, Value):
            yield operand
        elif isinstance(operand, tuple):
            yield from _values(operand)
        elif isinstance(operand, Call):
            yield from _values((*operand.args, *(inner for _, inner in operand.kwargs)))


# --------------------------------------------------------------------------------------------------- program


@dataclass(frozen=True, slots=True)
class Net:
    """A part of the model, or a metric (`state=False`): an attribute made in `__init__`."""

    name: str
    build: Call
    span: Span
    path: tuple[str | int, ...]
    state: bool = True


@dataclass(frozen=True, slots=True)
class Optim:
    """An optimizer, the nets it trains (none named: all), and how its steps are driven."""

    name: str
    build: Call
    nets: tuple[str, ...]
    drive: tuple[tuple[str, Operand], ...]
    span: Span
    path: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Routine:
    """A named list of operations that phases, feeds and gates call: it becomes a method.

    `batch` routines take one batch and unpack the feed's columns; others take values.
    """

    name: str
    doc: str
    ins: tuple[Value, ...]
    ops: tuple[Op, ...]
    out: tuple[Value, ...] = ()
    batch: bool = False
    grad: bool = True
    returns: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of an update: operations that end in one optimizer's step. Other nets are frozen while it runs."""

    name: str
    ops: tuple[Op, ...]
    optim: str


@dataclass(frozen=True, slots=True)
class Feed:
    """Where batches come from: how it is built, its columns in order, the routines it calls back."""

    build: Call
    columns: tuple[Value, ...]
    calls: tuple[str, ...]
    span: Span
    path: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something a stage takes from, or leaves for, others: a part's weights, by stage or by file."""

    part: str
    source: str
    span: Span
    path: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """Everything one generated module does. `driver` runs it; a program without nets is a call of its driver alone.

    `own` names the user's code that it uses and the text of that code: results of other code are other results.
    """

    stage: str
    name: str
    about: str
    doc: str
    feed: Feed
    nets: tuple[Net, ...]
    optims: tuple[Optim, ...]
    routines: tuple[Routine, ...]
    phases: tuple[Phase, ...]
    driver: str
    run: tuple[tuple[str, Operand], ...]
    flags: tuple[Flag, ...]
    logged: tuple[str, ...]
    inputs: tuple[Artifact, ...] = ()
    own: tuple[tuple[str, str], ...] = ()
    structural: frozenset[tuple[str | int, ...]] = frozenset()

    def with_phases(self, phases: tuple[Phase, ...]) -> Program:
        """The same program with other phases."""
        return replace(self, phases=phases)

    def with_routines(self, routines: tuple[Routine, ...]) -> Program:
        """The same program with other routines."""
        return replace(self, routines=routines)


# ------------------------------------------------------------------------------------------------------ plan


@dataclass(frozen=True, slots=True)
class Module:
    """A generated file: one structural variant of a stage."""

    stage: str
    file: str
    label: str
    program: Program
    digest: str


@dataclass(frozen=True, slots=True)
class Loop:
    """Axes that run together in a shell loop: one variable, or several zipped ones."""

    names: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class StageRun:
    """A stage of a run: its module, the flags it is given (a literal, or a loop's variable), its parents."""

    stage: str
    module: str
    flags: tuple[tuple[str, object | Name], ...]
    after: tuple[str, ...] = ()
    skip: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """Runs that share their modules: a label with holes, loops over scalars, the stages in order."""

    label: tuple[str | Name, ...]
    loops: tuple[Loop, ...]
    stages: tuple[StageRun, ...]
    unless: tuple[tuple[tuple[str, object], ...], ...] = ()
    runs: int = 1


@dataclass(frozen=True, slots=True)
class Retry:
    """Another try after a class of failure. `delay` is in seconds; `changes` are flags and what each is given then.

    The word `half` halves a number, at each try anew.
    """

    failure: str
    times: int = 1
    delay: float | None = None
    changes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """How runs of a stage are carried out. `timeout` is in seconds, of one attempt."""

    stage: str
    timeout: float | None = None
    devices: int = 1
    retries: tuple[Retry, ...] = ()


@dataclass(frozen=True, slots=True)
class Notify:
    """Who is told how a sweep goes: the environment variable of a webhook, the form of what it is sent, and when."""

    webhook: str
    form: str
    on: tuple[str, ...]


Option: TypeAlias = "tuple[str, str | int | float | bool]"


@dataclass(frozen=True, slots=True)
class Backend:
    """A cluster that runs may go to, and what each stage asks of it.

    Options are in the spec's own words and order, spans of time in seconds; only those that somebody set, but
    `devices` and `requeue`, which are always there. `whole` holds what is of no single stage: the address.
    """

    name: str
    stages: tuple[tuple[str, tuple[Option, ...]], ...]
    whole: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be written and run. Blocks describe a grid of any size in bounded memory.

    `conduct` names all that is said of how runs are carried out.
    """

    experiment: str
    spec: str
    about: str
    stages: tuple[str, ...]
    modules: tuple[Module, ...]
    blocks: tuple[Block, ...]
    axes: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: int
    excluded: int = 0
    policies: tuple[Policy, ...] = ()
    notify: Notify | None = None
    backends: tuple[Backend, ...] = ()
    conduct: str = ""

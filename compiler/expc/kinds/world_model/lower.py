"""The program of a world model: three phases over one replayed batch, and the routine by which it acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

from expc.components.core import Use
from expc.experiment import Stage
from expc.findings import Edit, Finding
from expc.ir import (
    BinaryLogits,
    Call,
    ClassProbs,
    Count,
    Features,
    Feed,
    Flag,
    Image,
    Latent,
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
    Scalar,
    Trajectory,
    TwoHotLogits,
    Value,
)
from expc.kinds import training
from expc.kinds.builder import Builder
from expc.kinds.names import class_name
from expc.kinds.world_model.shape import OPTIMIZERS, RECONSTRUCTED, WorldModel, logged
from expc.shape import missing_key, not_brought, unknown_key

_NETS = "expc_runtime.worlds.nets"
_LEARN = "expc_runtime.worlds.behaviour"

_HEADS: dict[Port, str] = {
    TwoHotLogits: f"{_NETS}:TwoHotHead",
    BinaryLogits: f"{_NETS}:BinaryHead",
    Real: f"{_NETS}:RealHead",
}
"""The head that gives what a loss reads."""

_COLUMNS: dict[str, tuple[Port, str]] = {
    "image": (Image, "(B, T, H, W, C)"),
    "action": (Features, "(B, T, A)"),
    "reward": (Real, "(B, T)"),
    "is_first": (Features, "(B, T)"),
    "cont": (Prob, "(B, T)"),
}
"""What a batch of replay holds, in order."""

WORLD = ("encoder", "dynamics", "decoder", "reward_head", "cont_head")
"""The nets of the world model's own optimizer."""


def lower(stage: Stage, b: Builder) -> Program:
    """The program of a world-model stage."""
    b.findings += _misplaced(stage, b)
    _nets(stage, b)
    columns = _columns(b)
    world, post = _world(stage, b, columns)
    actor, imagined = _actor(stage, b, post)
    phases = (world, actor, _critic(stage, b, imagined))
    return Program(
        stage=stage.name,
        name=class_name(stage.name),
        about=stage.shape.about or b.experiment.about,
        doc="Replayed sequences -> a model of the world; its imagination -> an actor and a critic.",
        phases=phases,
        routines=(_initial(b), _act(b)),
        feed=_feed(stage, b, columns),
        optims=tuple(_optims(stage, b)),
        nets=tuple(b.nets),
        driver=training.FIT,
        run=_run(stage, b),
        logged=tuple(logged(stage)),
        own=b.own(),
        structural=frozenset(b.structural),
        flags=b.flags(),
    )


def _misplaced(stage: Stage, b: Builder) -> Iterator[Finding]:
    """Losses of what no head tells, terms under another's name, and heads without a loss."""
    parts = stage.maps["model"].values()
    brought = [key for use in parts for key in _terms(use)]
    yield from (_not_its_term(b, use, key) for use in parts for key in _replaced(stage, use))
    known = {key for use in parts for key in use.component.terms_of}
    for key in stage.maps["loss"]:
        if key in (*RECONSTRUCTED, *brought):
            continue
        if key in known:
            yield not_brought(key, b.experiment.key(*b.path("loss", key)), parts)
        else:
            choices = [*RECONSTRUCTED, *brought]
            yield unknown_key(key, b.experiment.tree, b.path("loss"), "`loss`", choices)
    for key, usual in RECONSTRUCTED.items():
        if key not in stage.maps["loss"]:
            about = f"a loss, such as `{{use: {usual}}}`"
            yield missing_key(key, b.experiment.tree, b.path("loss"), "`loss`", about)


def _terms(use: Use) -> dict[str, str]:
    """The terms that a component brings: key -> loss."""
    brought = use.component.terms(use.params) if use.component.terms else {}
    return {key: loss for key, (loss, _) in brought.items()}


def _replaced(stage: Stage, use: Use) -> list[str]:
    losses = stage.maps["loss"]
    return [key for key, loss in _terms(use).items() if key in losses and losses[key].name != loss]


def _not_its_term(b: Builder, use: Use, key: str) -> Finding:
    """A term is what its component computes: the spec may weigh it, and that is all."""
    place, term = b.experiment.value(*b.path("loss", key, "use")), _terms(use)[key]
    return Finding(
        "XC103",
        f"loss `{key}` of `{use.name}` is `{term}`",
        place,
        why=f"`{use.name}` computes it, whatever is named here",
        help="leave `use` out, and write its `weight` alone",
        fix=(Edit(place, term, safe=False),),
    )


def _columns(b: Builder) -> dict[str, Value]:
    span = b.experiment.key(*b.path("replay"))
    return {name: Value(name, port, span, shape=shape) for name, (port, shape) in _COLUMNS.items()}


# ----------------------------------------------------------------------------------------------------- nets


def _nets(stage: Stage, b: Builder) -> None:
    parts = stage.maps["model"]
    for name in parts:
        b.static("model", name, "use")
    actions = (("actions", stage.uses["env"].component.actions),)
    width = Name("self.dynamics.out_features")
    _net(b, "encoder", parts["encoder"], parts["encoder"].component.target, ())
    embed = Name("self.encoder.out_features")
    _net(b, "dynamics", parts["dynamics"], parts["dynamics"].component.target, (embed,), actions)
    _net(b, "decoder", parts["decoder"], parts["decoder"].component.target, (width,))
    for key in ("reward", "cont"):
        use = stage.maps["loss"].get(key)
        port = _port_of(use, _COLUMNS[key][0]) if use is not None else Real
        given = _given(b, use, *use.component.of_head) if use is not None else ()
        _net(b, f"{key}_head", parts[key], _HEADS[port], (width,), given)
    behaviour = stage.uses["behaviour"]
    unimix = _given(b, behaviour, "unimix")
    _net(b, "actor", parts["actor"], f"{_NETS}:Actor", (width,), (*actions, *unimix))
    _net(b, "critic", parts["critic"], f"{_NETS}:TwoHotHead", (width,))
    path = behaviour.path
    span = b.experiment.key(*path)
    slow = Call(f"{_LEARN}:slow_copy", (Name("self.critic"),))
    b.nets.append(Net("slow_critic", slow, span, path))
    b.nets.append(Net("return_range", Call(f"{_LEARN}:ReturnRange"), span, path))


def _net(
    b: Builder,
    name: str,
    use: Use,
    target: str,
    first: tuple[Operand, ...],
    given: tuple[tuple[str, Operand], ...] = (),
) -> None:
    decides = [key for key in use.written if key in _deciding(use)]
    chosen = tuple((key, b.fixed(*b.keys(use.path), key)) for key in decides)
    build = Call(target, first, (*given, *b.arguments(use, leave=decides), *chosen))
    b.nets.append(Net(name, build, b.experiment.key(*use.path), use.path))


def _deciding(use: Use) -> set[str]:
    """Parameters that decide what the update calls: what is observed, and terms that are left out."""
    absent = {name for name in use.component.terms_of if not use.param(name)}
    return {*use.component.observes_of, *absent}


def _port_of(use: Use, target: Port) -> Port:
    """What a head must give for a loss: what the loss reads, if there is a head for it."""
    for form in use.component.forms:
        if form.takes[1] == target and form.takes[0] in _HEADS:
            return form.takes[0]
    return BinaryLogits if target is Prob else Real


# --------------------------------------------------------------------------------------------------- phases


def _world(stage: Stage, b: Builder, columns: dict[str, Value]) -> tuple[Phase, Value]:
    b.enter("world")
    dynamics = stage.maps["model"]["dynamics"]
    of_dynamics = dynamics.path
    embed = _call(
        b, "embed", Features, "self.encoder", (columns["image"],), b.path("model", "encoder")
    )
    read: list[Operand] = [embed, columns["action"], columns["is_first"]]
    for name in dynamics.component.observes_of:
        b.static("model", "dynamics", name)
    if dynamics.component.observes is not None:
        read += [columns[name] for name in dynamics.component.observes(dynamics.params)]
    post, prior = _state(b, "post"), _state(b, "prior")
    b.emit("call", (post, prior), "self.dynamics.observe", read, of_dynamics)
    feat = _call(b, "feat", Features, "self.dynamics.features", (post,), of_dynamics)
    terms: dict[str, Value] = {}
    for key, net in zip(RECONSTRUCTED, ("decoder", "reward_head", "cont_head"), strict=True):
        if key in stage.maps["loss"]:
            _reconstruct(stage, b, key, net, feat, columns[key], terms)
    _of_dynamics(stage, b, post, prior, terms)
    weights = [b.weight("loss", key, "weight") for key in terms]
    report = _call(b, "report", Latent, "self.dynamics.report", (post, prior), of_dynamics)
    _step(b, "world", terms, weights, b.path("loss"), reports=(report,))
    return Phase("world", b.take(), "world"), post


def _reconstruct(
    stage: Stage,
    b: Builder,
    key: str,
    net: str,
    feat: Value,
    target: Value,
    terms: dict[str, Value],
) -> None:
    use = stage.maps["loss"][key]
    b.static("loss", key, "use")
    port = Image if target.port is Image else _port_of(use, target.port)
    pred = _call(b, f"{key}_pred", port, f"self.{net}", (feat,), use.path)
    fitted = b.fit(use, pred, target, use.component.forms)
    if fitted is None:
        return
    rest = b.arguments(use, leave=use.component.of_head)
    term = b.value(f"{key}_loss", Scalar, b.experiment.key(*use.path))
    b.emit("term", (term,), use.component.target, (fitted[1], target), use.path, kwargs=rest)
    terms[key] = term


def _of_dynamics(
    stage: Stage, b: Builder, post: Value, prior: Value, terms: dict[str, Value]
) -> None:
    """The terms that the dynamics brings: one call of a method of its own gives those that belong together."""
    dynamics = stage.maps["model"]["dynamics"]
    for name in dynamics.component.terms_of:
        b.static("model", "dynamics", name)
    lost = _replaced(stage, dynamics)  # told
    brought = [key for key in _terms(dynamics) if key in stage.maps["loss"] and key not in lost]
    uses = stage.maps["loss"]
    for method, keys in groupby(brought, key=lambda key: uses[key].component.target):
        named = {
            key: b.value(f"{key}_loss", Scalar, b.experiment.key(*uses[key].path)) for key in keys
        }
        states = (post, prior)[: len(uses[next(iter(named))].component.forms[0].takes)]
        b.emit("term", named.values(), f"self.dynamics{method}", states, dynamics.path)
        terms.update(named)


def _actor(stage: Stage, b: Builder, post: Value) -> tuple[Phase, tuple[Value, ...]]:
    b.enter("actor")
    use = stage.uses["behaviour"]
    keys = b.keys(use.path)
    straight = b.static(*keys, "gradient") == "dynamics"
    flows = straight or b.static(*keys, "entropy_through") == "dynamics"
    span = b.experiment.key(*use.path)
    trajectory = b.value("trajectory", Trajectory, span, grad=flows)
    nets = (Name("self.dynamics"), Name("self.actor"))
    b.emit("call", (trajectory,), f"{_LEARN}:imagine", (*nets, post), use.path,
           kwargs=_given(b, use, "horizon"), grad=flows)  # fmt: skip
    names = ("returns", "weights", "baseline")
    judged = tuple(b.value(name, Real, span, grad=straight) for name in names)
    judges = (Name("self.reward_head"), Name("self.cont_head"), Name("self.critic"))
    b.emit("call", judged, f"{_LEARN}:lambda_return", (trajectory, *judges), use.path,
           kwargs=_given(b, use, "discount", "decay"), grad=straight)  # fmt: skip
    scale = _call(b, "scale", Scalar, "self.return_range", judged[:1], use.path)
    terms = {key: b.value(f"{key}_loss", Scalar, span) for key in ("policy", "entropy")}
    gradient = str(b.static(*keys, "gradient"))
    kwargs: tuple[tuple[str, Operand], ...] = ()
    if b.written(*keys, "gradient"):
        kwargs = (("gradient", gradient),)
    if b.static(*keys, "normalise"):
        kwargs = (*kwargs, ("scale", scale))
    b.emit("term", terms.values(), f"{_LEARN}:policy_gradient",
           (Name("self.actor"), trajectory, *judged), use.path, kwargs=kwargs)  # fmt: skip
    entropy = b.flag(*keys, "entropy")
    weights = (None, entropy if isinstance(entropy, Flag) else float(str(entropy)))
    _step(b, "actor", terms, weights, use.path, also={"return_range": scale})
    return Phase("actor", b.take(), "actor"), (trajectory, *judged[:2])


def _critic(stage: Stage, b: Builder, imagined: tuple[Value, ...]) -> Phase:
    b.enter("critic")
    use = stage.uses["behaviour"]
    span = b.experiment.key(*use.path)
    terms = {key: b.value(f"{key}_loss", Scalar, span) for key in ("value", "slow")}
    nets = (Name("self.critic"), Name("self.slow_critic"))
    b.emit("term", terms.values(), f"{_LEARN}:critic_loss", (*nets, *imagined), use.path)
    _step(b, "critic", terms, (None, None), use.path)
    rate = _given(b, use, "slow_rate")
    b.emit("sync", (), f"{_LEARN}:polyak", (nets[1], nets[0]), use.path,
           kwargs=[("rate", operand) for _, operand in rate])  # fmt: skip
    return Phase("critic", b.take(), "critic")


def _step(
    b: Builder,
    name: str,
    terms: dict[str, Value],
    weights: Sequence[Flag | float | None],
    path: tuple[str | int, ...],
    *,
    reports: tuple[Value, ...] = (),
    also: Mapping[str, Value] = MappingProxyType({}),
) -> None:
    """Sum, record, step: the end of every phase."""
    total = b.value(f"total_{name}", Scalar, b.experiment.key(*path))
    b.emit("sum", (total,), "", terms.values(), path, weights=weights)
    recorded = {**terms, **also, total.name: total}
    b.emit("record", (), "self.record", reports, path, kwargs=recorded.items())
    b.emit("step", (), name, (total,), b.path("optim", name))


def _given(b: Builder, use: Use, *names: str) -> tuple[tuple[str, Operand], ...]:
    """Those of a component's parameters that the spec sets, as keyword arguments."""
    keys = b.keys(use.path)
    return tuple((name, b.flag(*keys, name)) for name in names if name in use.written)


def _state(b: Builder, name: str) -> Value:
    return b.value(name, Latent, b.experiment.key(*b.path("model", "dynamics")))


def _call(
    b: Builder,
    name: str,
    port: Port,
    target: str,
    ins: Sequence[Operand],
    path: tuple[str | int, ...],
    *,
    grad: bool = True,
) -> Value:
    out = b.value(name, port, b.experiment.key(*path), grad=grad)
    b.emit("call", (out,), target, ins, path, grad=grad)
    return out


# ------------------------------------------------------------------------------------------------- routines


def _initial(b: Builder) -> Routine:
    path = b.path("model", "dynamics")
    batch = b.value("batch", Count, b.experiment.key(*path))
    state = _call(b, "state", Latent, "self.dynamics.initial", (batch,), path, grad=False)
    doc = "The state before the first frame, of that many environments."
    return b.close("initial", doc, (batch,), (state,), grad=False)


def _act(b: Builder) -> Routine:
    path = b.path("model", "dynamics")
    span = b.experiment.key(*path)
    image = b.value("image", Image, span, shape="(B, H, W, C)")
    action, is_first = b.value("action", Features, span), b.value("is_first", Features, span)
    state = b.value("state", Latent, span)
    embed = _call(
        b, "embed", Features, "self.encoder", (image,), b.path("model", "encoder"), grad=False
    )
    seen = _call(
        b,
        "state",
        Latent,
        "self.dynamics.filter",
        (state, embed, action, is_first),
        path,
        grad=False,
    )
    feat = _call(b, "feat", Features, "self.dynamics.features", (seen,), path, grad=False)
    policy = _call(
        b, "policy", ClassProbs, "self.actor.probs", (feat,), b.path("model", "actor"), grad=False
    )
    doc = "One step of every environment: the state with this frame in it, and what the actor would do."
    return b.close("act", doc, (image, action, is_first, state), (policy, seen), grad=False)


# ------------------------------------------------------------------------------------------ feed, optim, run


def _feed(stage: Stage, b: Builder, columns: dict[str, Value]) -> Feed:
    use = stage.uses["env"]
    b.static("env", "use")
    env = Call(use.component.target, (), (*b.arguments(use), ("batch", b.flag("env", "batch"))))
    kwargs: list[tuple[str, Operand]] = [("columns", tuple(columns))]
    kwargs += [(key, b.flag("replay", key)) for key in ("batch", "length", "train_ratio")]
    if b.written("replay", "capacity"):
        kwargs.append(("capacity", b.flag("replay", "capacity")))
    shape: WorldModel = stage.shape
    kwargs.append(("prefill", training.clock(b, "replay", "prefill")))
    if shape.replay.pretrain is not None:
        kwargs.append(("pretrain", training.clock(b, "replay", "pretrain")))
    kwargs.append(("evaluate", _evaluate(b)))
    path = b.path("replay")
    build = Call("expc_runtime.replay:Replay", (env,), tuple(kwargs))
    return Feed(build, tuple(columns.values()), ("act", "initial"), b.experiment.key(*path), path)


def _evaluate(b: Builder) -> Call:
    kwargs = (
        [("episodes", b.flag("evaluate", "episodes"))] if b.written("evaluate", "episodes") else []
    )
    if b.written("evaluate", "policy"):
        kwargs.append(("policy", b.word("evaluate", "policy")))
    every = training.clock(b, "evaluate", "every")
    return Call("expc_runtime.replay:Evaluate", (every,), tuple(kwargs))


def _optims(stage: Stage, b: Builder) -> Iterator[Optim]:
    trained = {"world": WORLD, "actor": ("actor",), "critic": ("critic",)}
    for name in OPTIMIZERS:
        use = stage.maps["optim"][name]
        yield training.optimizer(b, name, use, None, trained[name], ("optim", name))


def _run(stage: Stage, b: Builder) -> tuple[tuple[str, Operand], ...]:
    shape: WorldModel = stage.shape
    run: dict[str, Operand] = {
        "until": Call("expc_runtime.gates:Until", (training.clock(b, "until"),))
    }
    return tuple((run | training.running(b, shape.monitor)).items())

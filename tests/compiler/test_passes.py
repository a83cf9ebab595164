"""Passes, on a program of three phases: the world model of the design, written by hand."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest

from expc.emit.python import python_file
from expc.emit.render import _python, formatted
from expc.findings import Span
from expc.ir import (
    Any_,
    Call,
    Features,
    Feed,
    Latent,
    Module,
    Name,
    Net,
    Op,
    Operand,
    OpKind,
    Optim,
    Phase,
    Program,
    Real,
    Routine,
    Scalar,
    Trajectory,
    Value,
    read_by,
)
from expc.passes import optimise
from expc.passes.detach import detach_across_phases
from expc.passes.unused import drop_unused

HERE = Span("specs/world.yaml", 7, 3)
PATH = ("stages", "train")


def op(kind: OpKind, out: list[Value], target: str, *ins: Operand, **kwargs: Operand) -> Op:
    return Op(kind, tuple(out), target, ins, HERE, PATH, tuple(kwargs.items()))


def net(name: str) -> Net:
    return Net(name, Call(f"lab.nets:{name.capitalize()}"), HERE, PATH)


def optim(name: str, *nets: str) -> Optim:
    groups = Call("self.parameters")
    return Optim(name, Call("torch.optim:Adam", (groups,)), nets, (), HERE, PATH)


def world_model() -> Program:
    image = Value("image", Features, HERE, grad=False)
    action = Value("action", Real, HERE, grad=False)
    reward = Value("reward", Real, HERE, grad=False)

    def value(name: str, phase: str, port: object = Any_) -> Value:
        return Value(name, port, HERE, phase=phase)  # type: ignore[arg-type]

    embed = value("embed", "world", Features)
    post = value("post", "world", Latent)
    feat = value("feat", "world", Features)
    unread = value("unread", "world")
    reward_loss = value("reward_loss", "world", Scalar)
    total_world = value("total_world", "world", Scalar)
    traj = value("traj", "actor", Trajectory)
    returns = value("returns", "actor", Real)
    baseline = value("baseline", "actor", Real)
    total_actor = value("total_actor", "actor", Scalar)
    answer = value("answer", "critic", Real)
    total_critic = value("total_critic", "critic", Scalar)
    world = Phase(
        "world",
        (
            op("call", [embed], "self.encoder", image),
            op("call", [post], "self.dynamics.observe", embed, action),
            op("call", [feat], "self.dynamics.features", post),
            op("call", [unread], "self.decoder", feat),
            op("term", [reward_loss], "expc_runtime.losses:mse", feat, reward),
            replace(op("sum", [total_world], "", reward_loss), weights=(None,)),
            op("step", [], "world", total_world),
        ),
        "world",
    )
    actor = Phase(
        "actor",
        (
            op("call", [traj], "lab.dreams:imagine", Name("self.dynamics"), post, horizon=15),
            # returns are made here, and only the critic reads them
            op("call", [returns], "lab.dreams:returns", traj, first=(feat, Call("lab.dreams:Start", (post,)))),
            op("call", [baseline], "self.critic", traj),
            op("call", [total_actor], "lab.dreams:gain", traj, baseline),
            op("step", [], "actor", total_actor),
        ),
        "actor",
    )  # fmt: skip
    critic = Phase(
        "critic",
        (
            op("call", [answer], "self.critic", traj),
            op("term", [total_critic], "expc_runtime.losses:mse", answer, returns),
            op("step", [], "critic", total_critic),
            op("sync", [], "lab.dreams:polyak", Name("self.target"), Name("self.critic")),
        ),
        "critic",
    )
    return Program(
        stage="train",
        name="Train",
        about="Three phases.",
        doc="A world model.",
        driver="expc_runtime.fit:fit",
        feed=Feed(Call("lab.data:Replay"), (image, action, reward), (), HERE, PATH),
        nets=tuple(map(net, ("encoder", "dynamics", "decoder", "actor", "critic", "target"))),
        optims=(
            optim("world", "encoder", "dynamics", "decoder"),
            optim("actor", "actor"),
            optim("critic", "critic"),
        ),
        routines=(),
        phases=(world, actor, critic),
        run=(),
        flags=(),
        logged=(),
    )


def made_in(program: Program, phase: str) -> list[str]:
    (found,) = [p for p in program.phases if p.name == phase]
    return [value.name for op in found.ops for value in op.out]


# -------------------------------------------------------------------------------------------- detach


def test_values_that_cross_a_phase_are_detached_once_and_where_they_are_first_read() -> None:
    made = detach_across_phases(world_model())
    assert made_in(made, "world")[:2] == ["embed", "post"]
    assert made_in(made, "actor") == [
        "post_sg", "traj", "feat_sg", "returns", "baseline", "total_actor",
    ]  # fmt: skip
    assert made_in(made, "critic") == ["traj_sg", "answer", "returns_sg", "total_critic"]


def test_nothing_that_may_carry_a_gradient_crosses_a_phase() -> None:
    made = detach_across_phases(world_model())
    for phase in made.phases:
        for op in phase.ops:
            for value in read_by(op):
                inside = value.phase in ("", phase.name) or not value.grad or op.kind == "detach"
                assert inside, f"{value.name} of {value.phase} is read in {phase.name}"


def test_structures_are_detached_leaf_by_leaf() -> None:
    made = detach_across_phases(world_model())
    targets = {
        op.out[0].name: op.target
        for phase in made.phases
        for op in phase.ops
        if op.kind == "detach"
    }
    assert targets["post_sg"] == targets["traj_sg"] == "expc_runtime.module:detach_tree"
    assert targets["feat_sg"] == targets["returns_sg"] == ".detach()"


def test_what_a_batch_holds_needs_no_detach() -> None:
    made = detach_across_phases(world_model())
    assert not any(
        name.startswith("reward_sg") for p in made.phases for name in made_in(made, p.name)
    )


def test_detaching_twice_changes_nothing() -> None:
    once = detach_across_phases(world_model())
    assert detach_across_phases(once) == once


# -------------------------------------------------------------------------------------------- unused


def test_what_nobody_reads_is_not_computed() -> None:
    assert "unread" not in made_in(drop_unused(world_model()), "world")


def test_what_a_later_phase_reads_is_computed() -> None:
    made = optimise(world_model())
    assert "returns" in made_in(made, "actor")
    assert {"post", "feat"} <= set(made_in(made, "world"))


def test_what_acts_is_kept_though_nobody_reads_it() -> None:
    kinds = [op.kind for phase in optimise(world_model()).phases for op in phase.ops]
    assert kinds.count("step") == 3 and kinds.count("sync") == 1


def test_dropping_follows_a_chain_to_its_start() -> None:
    program = world_model()
    values = [Value(name, Any_, HERE, phase="world") for name in ("a", "b", "c")]
    chain = [
        op("call", [values[0]], "lab.nets:f"),
        op("call", [values[1]], "lab.nets:g", values[0]),
        op("call", [values[2]], "lab.nets:h", values[1]),
    ]
    world = replace(program.phases[0], ops=(*chain, *program.phases[0].ops))
    made = drop_unused(program.with_phases((world, *program.phases[1:])))
    assert not {"a", "b", "c"} & set(made_in(made, "world"))


def test_a_routine_keeps_what_it_returns() -> None:
    x, kept, lost = (Value(name, Any_, HERE) for name in ("x", "kept", "lost"))
    ops = (op("call", [kept], "lab.nets:f", x), op("call", [lost], "lab.nets:g", x))
    routine = Routine("act", "", (x,), ops, (kept,))
    made = drop_unused(world_model().with_routines((routine,)))
    assert [value.name for op in made.routines[0].ops for value in op.out] == ["kept"]


# ------------------------------------------------------------------------------------------- printing


@pytest.fixture(scope="module")
def printed() -> str:
    module = Module("train", "train.py", "", optimise(world_model()), "0" * 16)
    piece = python_file(module, "world", "specs/world.yaml", "generated/world", ())
    return formatted({"train.py": _python().render(m=piece)})["train.py"]


def test_three_phases_are_printed_as_three_blocks(printed: str) -> None:
    update = printed[printed.index("    def update(") : printed.index("    def drives(")]
    assert (
        update
        == '''\
    def update(self, batch: Batch) -> None:
        """One batch: forward, losses, and an optimizer step for each total."""
        image, action, reward = batch
        with self.only(self.encoder, self.dynamics, self.decoder):
            embed = self.encoder(image)
            post = self.dynamics.observe(embed, action)
            feat = self.dynamics.features(post)
            reward_loss = losses.mse(feat, reward)
            total_world = reward_loss
            self.step("world", total_world)
        with self.only(self.actor):
            post_sg = detach_tree(post)
            traj = lab.dreams.imagine(self.dynamics, post_sg, horizon=15)
            feat_sg = feat.detach()
            returns = lab.dreams.returns(traj, first=(feat_sg, Start(post_sg)))
            baseline = self.critic(traj)
            total_actor = lab.dreams.gain(traj, baseline)
            self.step("actor", total_actor)
        with self.only(self.critic):
            traj_sg = detach_tree(traj)
            answer = self.critic(traj_sg)
            returns_sg = returns.detach()
            total_critic = losses.mse(answer, returns_sg)
            self.step("critic", total_critic)
            lab.dreams.polyak(self.target, self.critic)

'''
    )


def test_every_name_of_the_printed_module_is_defined(printed: str) -> None:
    tree = ast.parse(printed)
    stored = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    stored |= {arg.arg for arg in ast.walk(tree) if isinstance(arg, ast.arg)}
    stored |= {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            stored |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    import builtins

    assert read - stored - set(dir(builtins)) - {"__file__", "__name__"} == set()


def test_each_total_has_its_drive(printed: str) -> None:
    tree = ast.parse(printed)
    (drives,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "drives"]
    (made,) = [n for n in ast.walk(drives) if isinstance(n, ast.Dict)]
    assert [ast.literal_eval(key) for key in made.keys if key] == ["world", "actor", "critic"]

"""World models and their evaluations: what the program of one says, whatever the spec chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from expc.emit.python import literal
from expc.findings import Finding
from expc.lint.check import check
from expc.lint.pages import WORLD

if TYPE_CHECKING:
    from tests.compiler.conftest import Project

VTA = "dynamics: {use: vta, force_scale: 0.0, obs_action_input: true}"


@pytest.fixture
def world(project: Project) -> Project:
    """A world model and its evaluation."""
    project.text = WORLD
    return project


def module(project: Project, text: str | None = None) -> str:
    """The module of the stage `train`."""
    files = project.render(text).files
    (name,) = [name for name in files if name.rpartition("/")[2].startswith("train")]
    return files[name]


def lint(project: Project, text: str) -> list[Finding]:
    return list(check(project.write(project.spec, text), project.root).findings)


def only(found: list[Finding], code: str) -> Finding:
    (one,) = found
    assert one.code == code
    return one


@pytest.mark.parametrize("name", ["math", "torch", "numpy", "matplotlib"])
def test_a_stage_of_any_kind_hides_no_module(world: Project, name: str) -> None:
    """Its file would stand first on the path of a run."""
    for stage in ("train:", "boundaries:"):
        text = world.changed(f"  {stage}", f"  {name}:").replace("of: train", f"of: {name}")
        text = text if stage == "train:" else text.replace(f"of: {name}", "of: train")
        assert (
            only(world.findings(text), "XC105").span.line
            == world.text[: world.text.index(f"  {stage}")].count("\n") + 1
        )


@pytest.mark.parametrize("use", ["kl_rep", "mse"])
def test_a_term_of_the_dynamics_is_no_other_loss(world: Project, use: str) -> None:
    text = world.changed("cont: {use: bce}", f"cont: {{use: bce}}\n      dyn: {{use: {use}}}")
    found = only(world.findings(text), "XC103")
    assert found.message == "loss `dyn` of `vta` is `kl_dyn`"
    assert (found.span.line, found.span.col) == (16, 18)
    said = text.replace(f"use: {use}}}", "use: kl_dyn, weight: 1.0}")
    assert "self.cfg.dyn_weight * dyn_loss" in module(world, said)


def test_a_replay_needs_a_prefill_and_room_for_it(world: Project) -> None:
    text = world.changed(", prefill: {env_steps: 1200}", "")
    assert "needs `prefill`" in only(world.findings(text), "XC102").message
    text = world.changed("{batch: 12,", "{batch: 12, capacity: 1000,")
    assert "`prefill` alone is 1200" in only(world.findings(text), "XC103").message


def test_a_word_is_a_flag_that_takes_those_words_alone(world: Project) -> None:
    """So a type checker lets it through, and `--help` says them."""
    text = world.changed(VTA, VTA.replace("vta,", "vta, imag_boundary: none,"))
    words = ", ".join(map(literal, ("prior", "fixed", "none")))
    found = module(world, text)
    assert f'dynamics_imag_boundary: Literal[{words}] = "none"' in found
    assert "from typing import Literal" in found


def test_what_decides_the_code_is_no_flag(world: Project) -> None:
    """`--dynamics-rate 0.1` would change nothing in a module without that term."""
    without = module(world, world.changed(VTA, VTA.replace("vta,", "vta, rate: 0.0,")))
    assert "rate=0.0" in without and "dynamics_rate" not in without and "rate_prior" not in without
    term = module(world, world.changed(VTA, VTA.replace("vta,", "vta, rate: 0.1,")))
    assert "dynamics_rate: float = 0.1" in term and "self.dynamics.rate_prior(post)" in term
    read = module(
        world, world.changed(VTA, VTA.replace("vta,", "vta, posterior_input: embed_reward,"))
    )
    assert 'posterior_input="embed_reward"' in read and "cfg.dynamics_posterior" not in read
    assert "self.dynamics.observe(embed, action, is_first, reward)" in read


def test_a_monitor_watches_what_is_measured(world: Project) -> None:
    """What the dynamics reports is logged while it trains; the best is told apart by whole episodes."""
    text = world.changed("episodes: 4}\n", "episodes: 4}\n    monitor: {few: train/forced_ratio}\n")
    found = only(lint(world, text), "XC203")
    assert "nothing measures it when an epoch ends" in found.message
    assert "`eval/return`" in found.help


@pytest.mark.parametrize(
    ("key", "use", "code", "said"),
    [
        ("image: {use: mse_sum}", "twohot_symlog", "XC308", "is of images"),
        ("reward: {use: twohot_symlog}", "mse_sum", "XC308", "is of real numbers"),
        ("reward: {use: twohot_symlog}", "bce", "XC308", "is of real numbers"),
        ("image: {use: mse_sum}", "kl_dyn", "XC308", "is of images"),
    ],
)
def test_a_loss_suits_what_is_reconstructed(
    world: Project, key: str, use: str, code: str, said: str
) -> None:
    """There are no heads to choose in a world model: the help names losses that would do."""
    usual = key.split("use: ")[1].rstrip("}")
    found = only(world.findings(world.changed(key, key.replace(usual, use))), code)
    assert said in found.message
    assert f"`{usual}`" in found.help and "gives" not in found.help and "target" not in found.help
    assert f"`{use}`" not in found.help


def test_a_clock_that_a_place_does_not_have_is_not_proposed(world: Project) -> None:
    text = world.changed(
        "episodes: 4}\n", "episodes: 4}\n    checkpoint: {every: {updates: 9, minutes: 1.0}}\n"
    )
    assert only(world.findings(text), "XC209").help.startswith("name one of `updates`, `minutes`,")


def test_what_stands_below_a_default_can_be_swept(world: Project) -> None:
    text = world.swept("grid: {train.checkpoint.keep: [2, 3]}")
    assert lint(world, text) == []
    assert "keep: int = 2  # *" in module(world, text)


def test_a_key_for_what_a_sweep_replaces_is_no_slip(world: Project) -> None:
    """`obs_action_input` is right where it stands: the sweep picks another dynamics beside it."""
    text = world.swept("grid: {train.model.dynamics.use: [vta, rssm]}")
    for found in lint(world, text):
        assert found.code == "XC101" and not found.fix
        assert "train.model.dynamics: {use: rssm}" in found.help
        assert "`rssm` is picked here" in [note.text for note in found.notes]


def test_a_part_that_is_only_named_is_told_once(world: Project) -> None:
    text = world.changed(VTA, "dynamics: rssm")
    assert only(world.findings(text), "XC103").help == "write `{use: rssm}`"


def test_only_what_can_be_your_own_is_said_to(world: Project) -> None:
    text = world.changed("use: actor_critic", "use: ppo")
    assert "your own" not in only(world.findings(text), "XC104").help


@pytest.mark.parametrize(
    "key", ["events: [pad_enter, pad_enter]", "events: [pad_enter], pictures: [grid, grid]"]
)
def test_nothing_is_measured_twice(world: Project, key: str) -> None:
    text = world.changed("events: [pad_enter]", key)
    assert "twice" in only(world.findings(text), "XC103").message


def test_an_evaluation_of_an_evaluation(world: Project) -> None:
    more = (
        "  again:\n    kind: evaluate\n    of: boundaries\n    measure: {use: boundary_alignment}\n"
    )
    found = only(lint(world, world.text + more), "XC717")
    assert found.help == "measure `train`"


@pytest.mark.parametrize("every", ["1", "7"])
def test_evaluations_leave_room_for_an_update(world: Project, every: str) -> None:
    """12 * 40 / 320 = 1.5 steps an update; of four copies, a row is the least there is."""
    text = world.changed("every: {env_steps: 6000}", f"every: {{env_steps: {every}}}")
    told = [found.code for found in lint(world, text)]
    assert told == (["XC716"] if every == "1" else [])
    four = text.replace("time_limit: 1000}", "time_limit: 1000, batch: 8}")
    assert "set it to 8 or more" in only(lint(world, four), "XC716").help


def test_a_budget_that_the_copies_fill(world: Project) -> None:
    """800 copies have their first 1,200 steps after 1,600."""
    text = world.changed("time_limit: 1000}", "time_limit: 1000, batch: 800}")
    text = text.replace("until: {env_steps: 43200}", "until: {env_steps: 1700}")
    assert "fill the replay until 1600" in only(lint(world, text), "XC716").message


GAME = """
class Game:
    actions = 4
    EVENTS = ("found",)
    is_first = is_last = is_terminal = None

    def __init__(self, size: int = 8, *, batch: int) -> None:
        self.batch, self.cells = batch, None
        self.can_pay: bool = True

    @property
    def settings(self): return {"name": "game", "time_limit": 10}

    @property
    def events(self): return {}

    def advance(self, action, u): ...
    def paint(self, cells): ...
    def paint_unit(self, cells): ...
    def like(self, *, batch): ...
    def to(self, device): ...
    def state_dict(self): ...
    def load_state_dict(self, state): ...
"""


def own(world: Project, text: str) -> str:
    world.write("mylab.py", text)
    return world.changed(
        "{use: pinpad, layout: three, time_limit: 1000}", '{use: "mylab:Game", size: 6}'
    )


def test_an_environment_of_your_own(world: Project) -> None:
    made = module(world, own(world, GAME))
    assert "mylab.Game(size=cfg.size, batch=1)" in made or "Game(size=cfg.size, batch=1)" in made
    assert "Actor(self.dynamics.out_features, actions=4)" in made


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("actions = 4", "moves = 4", "`actions`"),
        ("size: int = 8, *, batch: int", "size: int = 8", "takes no `batch`"),
        ("    def paint_unit(self, cells): ...\n", "", "has no `paint_unit`:"),
        (", self.cells = batch, None", " = batch", "has no `cells`:"),
    ],
)
def test_what_a_replay_asks_of_it(world: Project, old: str, new: str, said: str) -> None:
    assert GAME.count(old) == 1
    found = only(world.findings(own(world, GAME.replace(old, new))), "XC106")
    assert said in found.message


def test_what_a_base_elsewhere_may_have_is_not_missed(world: Project) -> None:
    text = "from there import Base\nclass Game(Base):\n    actions = 4\n    def __init__(self, size, *, batch): ...\n"
    assert "Game(size=cfg.size, batch=1)" in module(world, own(world, text))

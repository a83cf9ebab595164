"""World models and their evaluations: what the program of one says, whatever the spec chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from expc.emit.python import literal
from expc.findings import Finding
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


def test_a_monitor_may_watch_what_the_dynamics_reports(world: Project) -> None:
    text = world.changed("episodes: 4}\n", "episodes: 4}\n    monitor: {few: train/forced_ratio}\n")
    assert '"train/forced_ratio"' in module(world, text)

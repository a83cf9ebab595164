"""An evaluation is a stage: it claims its folder, measures its parent, and leaves a result."""

import json
import runpy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from expc_runtime.checkpoint import Store
from expc_runtime.envs.oracle import Oracle
from expc_runtime.envs.pinpad import PinPad
from expc_runtime.evals.accept import Accept, Bound
from expc_runtime.evals.boundaries import BoundaryAlignment
from expc_runtime.evals.evaluate import Measured, Subject, evaluate
from expc_runtime.export import load
from expc_runtime.flags import Run
from expc_runtime.provenance import project_root
from expc_runtime.state import (
    Result,
    claim,
    identity,
    read_json,
    read_result,
    read_status,
    write_json,
)

TRAIN = '''
"""A world model, as the compiler prints them."""

from dataclasses import dataclass

from expc_runtime.flags import Run
from expc_runtime.module import Module
from expc_runtime.worlds.nets import ConvEncoder
from expc_runtime.worlds.vta import VTA

PROGRAM = "0a1b2c3d4e5f"


@dataclass(frozen=True)
class Config(Run):
    force_scale: float = 10.0


class Train(Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.encoder = ConvEncoder(depth=1)
        self.dynamics = VTA(
            self.encoder.out_features, 5, force_scale=cfg.force_scale, max_seg_len=5,
            abs_belief=4, obs_belief=4, abs_stoch=2, obs_stoch=2, hidden=4,
        )
'''
PARENT = Result(
    key="fedcba9876543210",
    program="0a1b2c3d4e5f",
    module="generated/x/train.py",
    config={"force_scale": 10.0, "seed": 0, "out": "runs/x/a/train"},
)
PROGRAM = "5f4e3d2c1b0a"
EVENTS = ("pad_enter", "frame_delta", "reward")


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/x/a/boundaries"
    device: str = "cpu"
    permutations: int = 50


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a trained stage, one episode of the oracle held out."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "generated/x").mkdir(parents=True)
    (tmp_path / "generated/x/train.py").write_text(TRAIN)
    trained(tmp_path / "runs/x/a/train")
    return tmp_path


def trained(folder: Path, result: Result = PARENT, frames: int = 80) -> None:
    (folder / "held_out").mkdir(parents=True)
    write_json(folder / "result.json", asdict(result))
    torch.manual_seed(0)
    python = runpy.run_path(str(project_root(folder) / "generated/x/train.py"))
    module = python["Train"](python["Config"]())
    Store(folder / "checkpoints").save({"model": module.state_dict()}, step=1)
    np.savez(folder / "held_out/0.npz", **played(frames))


def played(frames: int) -> dict[str, Any]:
    """One episode of the oracle in `three`, as a world model's training leaves it."""
    env = PinPad("three", batch=1, time_limit=frames - 1)
    draws = torch.rand(frames, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    obs, reward, oracle = env.reset(draws[0]), torch.zeros(1), Oracle(env)
    action, rows = torch.zeros(5), []
    for draw in draws[1:]:
        rows.append(row(env, obs, action, reward))
        step = oracle.act(env)
        action = torch.nn.functional.one_hot(step[0], 5).float()
        obs, reward = env.step(step, draw)
    rows.append(row(env, obs, action, reward))
    return {name: np.stack([r[name] for r in rows]) for name in rows[0]}


def row(env: PinPad, obs: Any, action: Any, reward: Any) -> dict[str, Any]:
    seen = {name: column[0].numpy() for name, column in obs.items()}
    events = {f"event_{name}": flag[0].numpy() for name, flag in env.events.items()}
    return {**seen, **events, "action": action.numpy(), "reward": reward[0].numpy()}


def figures(cfg: Config, **more: Any) -> BoundaryAlignment:
    return BoundaryAlignment(
        EVENTS, permutations=cfg.permutations, episodes=1, **{"pictures": (), **more}
    )


def run(root: Path, cfg: Config | None = None, measure: Any = None, **more: Any) -> int:
    cfg = cfg or Config()
    measure = measure or figures(cfg)
    file = str(root / "generated/x/boundaries.py")
    return evaluate(cfg, measure, of="train", file=file, program=PROGRAM, **more)


def test_a_finished_evaluation_leaves_figures_pictures_and_a_result(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, measure=figures(Config(), pictures=("grid", "internal", "fired"))) == 0
    folder = root / "runs/x/a/boundaries"
    result = read_result(folder)
    assert result.state == "done"
    assert result.key == identity(PROGRAM, asdict(Config()), {"train": PARENT.key})
    assert result.parents == {"train": PARENT.key}
    assert result.module == "generated/x/boundaries.py"
    assert result.metrics["reward.event_rate"] == pytest.approx(2 / 80)  # at 25 and 64 of the plan
    assert result.metrics["boundary_ratio_eval"] is not None
    assert result.floors["reward.auc_read_prob"] == 0.5
    assert result.extra["files"] == [
        "boundary_eval.json",
        "boundary_grid.png",
        "boundary_internal.png",
        "boundary_fired.png",
    ]
    assert all((folder / name).stat().st_size > 1000 for name in result.extra["files"])
    report = json.loads((folder / "boundary_eval.json").read_text())
    assert report["episodes"][0]["length"] == 80
    assert {e["event"] for e in report["episodes"][0]["events"]} == set(EVENTS)
    assert report["metrics"] == dict(result.metrics)
    assert read_json(folder / "provenance.json")["module"]["program"] == PROGRAM
    line = json.loads((folder / "metrics.jsonl").read_text())
    assert line["reward.event_rate"] == result.metrics["reward.event_rate"]
    said = capsys.readouterr().out
    assert "reward: event_rate 0.025  event_at_boundary 0" in said
    assert "(0.5)" in said  # the AUC of chance
    assert read_status(folder).state == "done"


def test_the_same_command_gives_the_same_figures_and_then_nothing_to_do(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root) == 0
    report = root / "runs/x/a/boundaries/boundary_eval.json"
    first = report.read_bytes()
    (root / "runs/x/a/boundaries/result.json").unlink()
    assert run(root) == 0
    assert report.read_bytes() == first
    capsys.readouterr()
    assert run(root) == 0
    assert "done already" in capsys.readouterr().out
    assert len((root / "runs/x/a/boundaries/metrics.jsonl").read_text().splitlines()) == 1


def test_a_parent_trained_anew_is_another_instance(root: Path) -> None:
    assert run(root) == 0
    write_json(root / "runs/x/a/train/result.json", asdict(replace(PARENT, key="0" * 16)))
    assert run(root) == 0
    assert read_result(root / "runs/x/a/boundaries").parents == {"train": "0" * 16}
    assert len(list((root / "runs/x/a").glob("boundaries.was-*"))) == 1


# Failures


def test_without_its_parent_it_ends_with_66(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "runs/x/a/train/result.json").unlink()
    assert run(root) == 66
    assert "stage train of this run has no result" in capsys.readouterr().out
    assert not (root / "runs/x/a/boundaries").exists()


@pytest.mark.parametrize("gone", ["held_out", "checkpoints"])
def test_without_what_its_parent_made_it_fails_with_66(root: Path, gone: str) -> None:
    (root / "runs/x/a/train" / gone).rename(root / "elsewhere")
    assert run(root) == 66
    status = read_status(root / "runs/x/a/boundaries")
    assert status.label == "failed(missing_input)"
    assert read_result(root / "runs/x/a/boundaries") is None


def test_a_smoke_runs_weights_are_not_measured_in_earnest(root: Path) -> None:
    write_json(root / "runs/x/a/train/result.json", asdict(replace(PARENT, state="smoke")))
    assert run(root) == 66
    assert "trains nothing" in read_status(root / "runs/x/a/boundaries").reason


@dataclass(frozen=True)
class Fixed:
    """A measurement that finds what it is told to."""

    found: Measured | Exception

    def measure(self, subject: Subject) -> Measured:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.mark.parametrize(
    ("error", "code", "label"),
    [
        (ValueError("too small"), 2, "failed(bad_value)"),
        (RuntimeError("odd"), 1, "failed(crash)"),
        (MemoryError(), 71, "failed(oom)"),
    ],
)
def test_a_failure_is_a_state_and_an_exit_code(
    root: Path, error: Exception, code: int, label: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(root, measure=Fixed(error)) == code
    assert read_status(root / "runs/x/a/boundaries").label == label
    assert type(error).__name__ in (root / "runs/x/a/boundaries/log").read_text()
    assert ("Traceback" in capfd.readouterr().err) == (code == 1)


def test_a_file_that_was_promised_and_is_not_there_fails_the_stage(root: Path) -> None:
    assert run(root, measure=Fixed(Measured(metrics={"a": 1.0}, files=("gone.json",)))) == 66
    assert "gone.json" in read_status(root / "runs/x/a/boundaries").reason


def test_a_folder_in_use_is_left_alone(root: Path) -> None:
    folder = root / "runs/x/a/boundaries"
    with claim(folder, "other") as held:
        assert run(root) == 73
        held.interrupt("")


# Smoke runs


def test_a_smoke_run_works_beside_and_accepts_nothing(root: Path) -> None:
    accept = Accept(Bound("reward.event_rate", above=0.0))
    assert run(root, Config(smoke=True), accept=accept) == 0
    assert not (root / "runs/x/a/boundaries").exists()
    result = read_result(root / "runs/x/a/boundaries.smoke")
    assert result.state == "smoke"
    assert "accept" not in result.extra


@pytest.mark.parametrize("frames", [2, 3])
def test_a_smoke_sweep_measures_the_shortest_episodes(root: Path, frames: int) -> None:
    trained(root / "runs/x.smoke/a/train", replace(PARENT, state="smoke"), frames)
    assert run(root, Config(out="runs/x.smoke/a/boundaries", smoke=True)) == 0
    assert read_result(root / "runs/x.smoke/a/boundaries").state == "smoke"


# Acceptance

METRICS = {"lift": 2.5, "p": 0.02, "rate": 0.1, "none": None}


@pytest.mark.parametrize(
    ("bound", "met"),
    [
        (Bound("lift", above=2.5), False),
        (Bound("lift", above=2.4), True),
        (Bound("lift", at_least=2.5), True),
        (Bound("p", below=0.02), False),
        (Bound("p", below=0.05), True),
        (Bound("p", at_most=0.02), True),
        (Bound("p", at_most=0.0), False),
        (Bound("none", above=-1e9), False),
    ],
)
def test_a_bound_is_met_or_not(bound: Bound, met: bool) -> None:
    assert Accept(bound).judge(METRICS, {})["met"] is met
    assert not bound.met(float("nan"))


def test_all_bounds_must_be_met_and_null_meets_none() -> None:
    accept = Accept(Bound("lift", above=2.0), Bound("none", below=0.05), seeds=2)
    verdict = accept.judge(METRICS, {"none": "no frame is a boundary"})
    assert (verdict["met"], verdict["seeds"]) == (False, 2)
    assert [bound["met"] for bound in verdict["bounds"]] == [True, False]
    assert verdict["message"] == (
        "not accepted: none is null (no frame is a boundary), which does not count as met; "
        "< 0.05 is wanted"
    )


def test_the_result_carries_the_verdict_and_a_no_is_no_failure(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accept = Accept(Bound("lift", above=2.0), Bound("p", below=0.01), seeds=2)
    measure = Fixed(Measured(metrics=METRICS, reasons={"none": "not there"}))
    assert run(root, measure=measure, accept=accept) == 0
    result = read_result(root / "runs/x/a/boundaries")
    assert result.state == "done"
    assert result.extra["accept"]["met"] is False
    assert result.extra["accept"]["seeds"] == 2
    assert result.extra["reasons"] == {"none": "not there"}
    said = capsys.readouterr().out
    assert "not accepted: p is 0.02; < 0.01 is wanted" in said
    assert "lift 2.5  p 0.02  rate 0.1  none null" in said


def test_a_bound_on_what_is_not_measured_is_a_bad_value(root: Path) -> None:
    measure = Fixed(Measured(metrics=METRICS))
    assert run(root, measure=measure, accept=Accept(Bound("lifd", above=2.0))) == 2
    assert "accept reads lifd" in read_status(root / "runs/x/a/boundaries").reason


@pytest.mark.parametrize("bounds", [{}, {"above": 1.0, "below": 2.0}])
def test_a_bound_says_one_thing(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="bound on lift: one of"):
        Bound("lift", **bounds)


def test_an_acceptance_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="without a bound"):
        Accept(seeds=2)
    with pytest.raises(ValueError, match="0 seeds"):
        Accept(Bound("lift", above=2.0), seeds=0)


def test_the_parent_is_measured_with_the_weights_its_result_is_about(root: Path) -> None:
    seen: list[Any] = []

    class Look:
        def measure(self, subject: Subject) -> Measured:
            seen.append(subject)
            return Measured(metrics={"a": 1.0})

    assert run(root, measure=Look()) == 0
    module, parent = seen[0].module, root / "runs/x/a/train"
    assert seen[0].parent == parent
    assert not module.training
    theirs = load(parent).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in module.state_dict().items())

"""One stage from its command to its result: gates, budgets, failures, and going on after a kill.

Signals and kills hit real processes: children forked from here, so that torch is imported once.
"""

import importlib.util
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch import Tensor, nn

from expc_runtime import floors, losses
from expc_runtime.checkpoint import Checkpoint, Store
from expc_runtime.clocks import EnvSteps, Epochs, Minutes, Updates
from expc_runtime.data.digits import Digits
from expc_runtime.data.feed import Chunk, Feed
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Gate, Until
from expc_runtime.metrics import BinaryAccuracy
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive, decay_groups, warmup_cosine
from expc_runtime.state import claim, read_result, read_status

torch.set_num_threads(1)

MODULES = Path(__file__).parent / "modules"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "generated").mkdir()
    return tmp_path


@pytest.fixture
def read(root: Path) -> ModuleType:
    """The hand-written module, as a file of that project."""
    path = root / "generated" / "read_mse.py"
    path.write_text((MODULES / "read_mse.py").read_text())
    spec = importlib.util.spec_from_file_location("read_mse", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["read_mse"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/even/by_hand/tell"
    lr: float = 0.003
    dropout: float = 0.2
    accumulate: int = 1
    precision: str = "32"


class Tell(Module):
    """image (B, 1, 8, 8) -> even (B,) logit. Draws numbers as it trains, by dropout."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(cfg.dropout)
        )
        self.head = nn.Linear(16, 1)
        self.right = BinaryAccuracy(threshold=0.0)

    def forward(self, image: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(image))
        return y[:, 0]

    def losses(self, even: Tensor, target: Tensor) -> Tensor:
        even_loss = losses.bce(even, target)
        self.record(even=even_loss)
        return even_loss

    def update(self, batch: Batch) -> None:
        image, target = batch
        self.step("model", self.losses(self(image), target))

    def measure(self, batch: Batch) -> None:
        image, target = batch
        even = self(image)
        self.losses(even, target)
        self.right.update(even, target)

    def constants(self, batch: Batch) -> tuple[Tensor, ...]:
        return (floors.logits(batch[1]),)

    def drives(self) -> dict[str, Drive]:
        cfg = self.cfg
        optimizer = torch.optim.AdamW(decay_groups(self, 0.01), lr=cfg.lr, fused=True)
        schedule = warmup_cosine(warmup=Updates(5))
        return {"model": Drive(optimizer, schedule, clip=1.0, accumulate=cfg.accumulate)}


def train(
    root: Path,
    cfg: Config | None = None,
    until: Until | None = None,
    build: Callable[[Any], Module] = Tell,
    val: float = 0.2,
    **how: Any,
) -> int:
    """Run the stage; 23 updates an epoch without ``val``, 15 with it and ``test``."""
    settings = {"precision": "32", "program": "p", "file": str(root / "generated" / "tell.py")}
    cfg = cfg or Config()
    return fit(
        build,
        cfg,
        Feed(Digits(), columns=("image", "even"), batch=80, val=val, test=val / 2),
        until=until or Until(Epochs(2)),
        **{**settings, "precision": cfg.precision, **how},
    )


def folder(root: Path, cfg: Config | None = None) -> Path:
    return root / (cfg or Config()).out


def lines(root: Path, split: str, cfg: Config | None = None) -> list[dict[str, Any]]:
    text = (folder(root, cfg) / "metrics.jsonl").read_text().splitlines()
    found = [line for line in map(json.loads, text) if line["split"] == split]
    return [line for line in found if line.get("mode") != "train"]


def in_child(work: Callable[[], int]) -> int:
    """Exit code of ``work`` in a process of its own; negative for the signal that killed it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = work()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hit_by(number: int, at: int, build: Callable[[Any], Module] = Tell) -> Callable[[Any], Module]:
    """Modules whose process gets a signal in the middle of update ``at`` (from 0)."""

    def made(cfg: Config) -> Module:
        module = build(cfg)
        update = module.update

        def struck(batch: Batch) -> None:
            if module.updates == at:
                os.kill(os.getpid(), number)
            update(batch)

        module.update = struck  # type: ignore[method-assign]
        return module

    return made


def final(root: Path, cfg: Config | None = None, tag: str | None = None) -> dict[str, Any]:
    loaded = Store(folder(root, cfg) / "checkpoints").load(tag)
    assert loaded is not None
    return loaded[0]


# The generated style, end to end.


def test_a_module_trains_is_measured_and_proves_it(root: Path, read: ModuleType) -> None:
    cfg = read.Config(budget=2)
    assert read.main(cfg) == 0
    out = root / cfg.out
    result, status = read_result(out), read_status(out)
    assert result is not None and status is not None
    assert (result.state, status.state) == ("done", "done")
    assert (result.program, result.module) == (read.PROGRAM, "generated/read_mse.py")
    assert (result.step, result.epoch) == (40, 2)
    names = {"digit", "loop", "total_model", "accuracy", "loop_brier"}
    assert set(result.metrics) == {f"{split}/{n}" for split in ("val", "test") for n in names}
    assert result.floors.keys() == result.metrics.keys()
    floor = result.floors["val/digit"] or 0.0
    assert floor == pytest.approx(math.log(10), abs=0.02)
    assert (result.metrics["val/digit"] or math.inf) < floor
    assert result.extra["provenance"]["module"]["path"] == "generated/read_mse.py"
    assert result.gate["met"] is False and result.gate["otherwise"] == "warn"
    assert any("gate not met" in warning for warning in result.warnings)
    assert list((out / "tensorboard").glob("events.*"))
    written = (out / "result.json").stat().st_mtime_ns
    assert read.main(cfg) == 0
    assert (out / "result.json").stat().st_mtime_ns == written


def test_a_module_runs_by_itself(root: Path, read: ModuleType) -> None:
    """Its own process, its own command line; 2 for a flag that is not there."""
    import subprocess

    command = [sys.executable, str(root / "generated" / "read_mse.py")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, "--budget", "1", "--out", "runs/own", "--at-least", "0"],
        capture_output=True,
        text=True,
        env=env,
        cwd=root.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "gate met: val/accuracy" in done.stdout
    assert "ightning" not in done.stdout + done.stderr
    assert done.stderr == ""
    assert (root / "runs/own/result.json").exists()


# Gates and budgets.


def test_the_first_epoch_that_meets_the_gate_is_the_last(root: Path) -> None:
    assert train(root, until=Until(Epochs(9), Gate("val/right", at_least=0.6))) == 0
    seen = [line["val/right"] for line in lines(root, "val")]
    assert seen[-1] >= 0.6
    assert all(value < 0.6 for value in seen[:-1])
    result = read_result(folder(root))
    assert result is not None
    assert result.gate["met"] is True
    assert result.epoch == len(seen) < 9


def test_a_gate_that_is_not_met_fails_with_3(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    until = Until(Epochs(2), Gate("val/right", above=1.0))
    assert train(root, until=until) == 3
    told = capsys.readouterr().out
    best = max(line["val/right"] for line in lines(root, "val"))
    for part in ("val/right after 2 epochs", f"achieved: {best:.4f}", "required: > 1.0000"):
        assert part in told
    assert "Traceback" not in told
    status = read_status(folder(root))
    assert status is not None
    assert (status.label, status.code) == ("failed(gate)", 3)
    assert "achieved" in status.reason
    assert read_result(folder(root)) is None
    assert train(root, until=until) == 3  # again: no training, the same verdict
    assert len(lines(root, "val")) == 2


@pytest.mark.parametrize(("otherwise", "stops"), [("warn", False), ("stop", True)])
def test_a_gate_may_end_as_done(root: Path, otherwise: Any, stops: bool) -> None:
    gate = Gate("val/right", above=1.0, otherwise=otherwise)
    assert train(root, until=Until(Epochs(1), gate)) == 0
    result = read_result(folder(root))
    assert result is not None
    assert result.gate["met"] is False
    assert result.stops is stops
    assert "gate not met" in result.warnings[0]


def test_patience_ends_a_stage_that_no_longer_improves(root: Path) -> None:
    gate = Gate("val/even", at_most=0.0, patience=2, otherwise="warn")
    assert train(root, Config(lr=1e-20), Until(Epochs(50), gate)) == 0
    seen = [line["val/even"] for line in lines(root, "val", Config())]
    best = seen.index(min(seen))
    assert len(seen) == best + 1 + 2 < 50


def test_a_gate_on_train_is_measured_in_eval_mode(root: Path) -> None:
    modes: list[bool] = []

    class Watched(Tell):
        def __init__(self, cfg: Config) -> None:
            super().__init__(cfg)
            self.body[2] = nn.LayerNorm(16)  # without running statistics one mode is enough

        def measure(self, batch: Batch) -> None:
            modes.append(self.training)
            super().measure(batch)

    until = Until(Epochs(1), Gate("train/right", at_least=0.0))
    assert train(root, until=until, build=Watched, val=0.0) == 0
    assert modes and not any(modes)
    measured = [line for line in lines(root, "train") if line.get("mode") == "eval"]
    result = read_result(folder(root))
    assert result is not None
    assert measured[0]["train/right"] == result.metrics["train/right"]


def test_a_budget_in_updates_ends_inside_an_epoch(root: Path) -> None:
    assert train(root, until=Until(Updates(27))) == 0
    result = read_result(folder(root))
    assert result is not None
    assert (result.step, result.extra["drives"]["model"]["steps"]) == (27, 27)
    assert [line["step"] for line in lines(root, "val")] == [16, 27]
    assert result.metrics["val/right"] == lines(root, "val")[-1]["val/right"]


def test_a_budget_in_minutes_ends_by_the_clock(root: Path) -> None:
    class Flat(Tell):
        def drives(self) -> dict[str, Drive]:
            return {"model": Drive(torch.optim.SGD(self.parameters(), lr=0.1))}

    assert train(root, until=Until(Minutes(0.5 / 60)), build=Flat) == 0
    result = read_result(folder(root))
    assert result is not None
    assert result.step > 0
    assert "val/right" in result.metrics


@pytest.mark.parametrize(("gives", "budget"), [(9, Epochs(2)), (0, Epochs(2)), (9, Minutes(9))])
def test_an_epoch_that_ends_before_its_last_update_is_an_error(
    root: Path, capsys: pytest.CaptureFixture[str], gives: int, budget: Epochs | Minutes
) -> None:
    """Else it would be begun again, without a batch, for ever."""

    class Short(Feed):
        def chunks(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
            return super().chunks(epoch, start, gives)

    class Flat(Tell):
        def drives(self) -> dict[str, Drive]:
            return {"model": Drive(torch.optim.SGD(self.parameters(), lr=0.1))}

    feed = Short(Digits(), columns=("image", "even"), batch=80)
    file = str(root / "generated" / "tell.py")
    assert fit(Flat, Config(), feed, until=Until(budget), file=file, program="p") == 66
    told = (
        f"epoch 1 ended after {gives} of its 23 updates: the data gave fewer batches than it said"
    )
    assert told in capsys.readouterr().out


def test_a_gate_on_what_nobody_measures_is_an_error_that_says_what_is(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(root, until=Until(Epochs(1), Gate("val/f1", at_least=1))) == 2
    assert "reads val/f1, but what is measured is val/even, val/right" in capsys.readouterr().out


def test_a_budget_in_env_steps_needs_an_environment(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(root, until=Until(EnvSteps(10))) == 2
    assert "no environment is stepped" in capsys.readouterr().out


def test_a_value_that_cannot_be_used_is_a_line_and_no_traceback(
    root: Path, read: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    assert read.main(read.Config(device="cuda:99", out="runs/far")) == 2
    told = capfd.readouterr()
    assert "failed(bad_value): there is no device 'cuda:99' here" in told.out
    assert "Traceback" not in told.out + told.err
    assert "Traceback" in (root / "runs/far/log").read_text()


# Going on.


@pytest.mark.parametrize("at", [6, 15, 22])  # inside, at the end of, and after the first epoch
@pytest.mark.parametrize(("precision", "accumulate"), [("32", 1), ("32", 4), ("16-mixed", 3)])
def test_a_run_that_was_asked_to_stop_goes_on_bit_for_bit(
    root: Path, at: int, precision: str, accumulate: int
) -> None:
    whole = Config(out="runs/whole/x/tell", precision=precision, accumulate=accumulate)
    broken = replace(whole, out="runs/broken/x/tell")
    how: dict[str, Any] = {"until": Until(Epochs(3)), "monitor": {"best": "val/even"}}
    assert in_child(lambda: train(root, whole, **how)) == 0
    code = in_child(lambda: train(root, broken, build=hit_by(signal.SIGTERM, at), **how))
    assert code == 75
    status = read_status(folder(root, broken))
    assert status is not None
    assert (status.state, status.code) == ("interrupted", 75)
    assert final(root, broken)["progress"]["updates"] == at + 1
    assert in_child(lambda: train(root, broken, **how)) == 0

    one, two = final(root, whole), final(root, broken)
    assert one["progress"]["updates"] == two["progress"]["updates"] == 48
    for state in ("model", "progress"):
        assert_same(one[state], two[state])
    assert_same(final(root, whole, "best"), final(root, broken, "best"))
    a, b = read_result(folder(root, whole)), read_result(folder(root, broken))
    assert a is not None and b is not None
    assert dict(a.metrics) == dict(b.metrics)
    assert lines(root, "val", whole) == lines(root, "val", broken)


def assert_same(one: Any, two: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


def test_a_killed_run_goes_on_from_its_last_save_and_logs_nothing_twice(root: Path) -> None:
    whole, broken = Config(out="runs/whole/x/tell"), Config(out="runs/broken/x/tell")
    how: dict[str, Any] = {"until": Until(Epochs(4)), "checkpoint": Checkpoint(every=Epochs(1))}
    assert in_child(lambda: train(root, whole, **how)) == 0
    killed = in_child(lambda: train(root, broken, build=hit_by(signal.SIGKILL, 55), **how))
    assert killed == -signal.SIGKILL
    assert final(root, broken)["progress"]["updates"] == 48
    assert lines(root, "train", broken)[-1]["step"] == 50  # logged, and to be logged again
    assert in_child(lambda: train(root, broken, **how)) == 0
    assert_same(final(root, whole)["model"], final(root, broken)["model"])
    for split in ("floor", "train", "val", "test"):
        assert lines(root, split, whole) == lines(root, split, broken)
    status = read_status(folder(root, broken))
    assert status is not None
    assert status.attempt == 2


def test_a_save_just_before_an_epoch_is_measured_logs_nothing_twice(root: Path) -> None:
    whole, broken = Config(out="runs/whole/x/tell"), Config(out="runs/broken/x/tell")
    how: dict[str, Any] = {"until": Until(Epochs(2)), "checkpoint": Checkpoint(every=Updates(16))}
    assert in_child(lambda: train(root, whole, **how)) == 0
    killed = in_child(lambda: train(root, broken, build=hit_by(signal.SIGKILL, 18), **how))
    assert killed == -signal.SIGKILL
    assert [line["step"] for line in lines(root, "val", broken)] == [16]
    assert final(root, broken)["progress"]["updates"] == 16
    with (folder(root, broken) / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 17, "spl')
    assert in_child(lambda: train(root, broken, **how)) == 0
    for split in ("floor", "train", "val", "test"):
        assert lines(root, split, whole) == lines(root, split, broken)


def test_checkpoints_that_cannot_be_read_are_a_persons_to_remove(root: Path) -> None:
    assert in_child(lambda: train(root, build=hit_by(signal.SIGTERM, 6))) == 75
    held = folder(root) / "checkpoints"
    for path in held.glob("last-*.pt"):
        path.write_bytes(b"")
    assert train(root) == 66
    status = read_status(folder(root))
    assert status is not None
    assert "can be read" in status.reason and "to begin again, remove that folder" in status.reason
    shutil.rmtree(held)
    assert train(root) == 0


def test_a_fresh_start_in_the_same_folder_logs_nothing_twice(root: Path) -> None:
    assert train(root) == 0
    seen = lines(root, "val")
    (folder(root) / "result.json").unlink()
    shutil.rmtree(folder(root) / "checkpoints")
    assert train(root) == 0
    assert lines(root, "val") == seen


def test_other_work_in_the_folder_is_set_aside_and_that_is_said(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(root, until=Until(Updates(2))) == 0
    result = read_result(folder(root))
    assert result is not None
    capsys.readouterr()
    assert train(root, Config(lr=0.1), Until(Updates(2))) == 0
    aside = f"tell.was-{result.key[:8]}"
    assert f"{Config().out} held other work, which is now {aside}\n" in capsys.readouterr().out
    assert read_result(folder(root).with_name(aside)) == result


def test_a_folder_that_cannot_be_made_is_a_line_and_no_traceback(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(root, Config(out="pyproject.toml/x/tell")) == 2
    said = capsys.readouterr().out
    assert said.startswith("pyproject.toml/x/tell: ")
    assert said.endswith("cannot be worked in: Not a directory\n")


def test_usr1_saves_and_training_goes_on(root: Path) -> None:
    saved: list[int] = []

    class Counted(Tell):
        def progress(self) -> dict[str, Any]:
            saved.append(self.updates)
            return super().progress()

    assert train(root, until=Until(Epochs(1)), build=hit_by(signal.SIGUSR1, 7, Counted)) == 0
    assert saved == [0, 8, 16]


def test_handlers_are_given_back(root: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert train(root, until=Until(Updates(1))) == 0
    after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert before == after


# Failures.


class Poisoned(Tell):
    """One pixel of one batch turns infinite inside the net."""

    def forward(self, image: Tensor) -> Tensor:
        if self.training and self.updates == 9:
            self.body[1].register_forward_hook(lambda m, i, o: o / torch.zeros(()))
        return super().forward(image)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_a_nan_stops_with_65_names_the_module_and_reaches_no_weight(
    root: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = Config(precision=precision)
    assert train(root, cfg, build=Poisoned) == 65
    said = capsys.readouterr()
    assert "failed(diverged): update 9 of optimizer `model`" in said.out
    assert "`body.1` (Linear) gave" in said.out or "`body.2`" in said.out
    assert "Traceback" not in said.out + said.err
    assert "batch 9 of epoch 1, rows " in said.out
    assert "Traceback" in (folder(root) / "log").read_text()
    status = read_status(folder(root))
    assert status is not None
    assert (status.label, status.code) == ("failed(diverged)", 65)
    assert "update 9" in status.reason
    assert read_result(folder(root)) is None
    assert all(v.isfinite().all() for v in final(root)["model"].values())


def test_an_unforeseen_exception_is_a_crash_with_its_traceback(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Tell):
        def update(self, batch: Batch) -> None:
            raise KeyError("nobody")

    assert train(root, build=Broken) == 1
    said = capsys.readouterr()
    assert "failed(crash): KeyError: 'nobody'" in said.out
    assert "in update" in said.err
    assert "in update" in (folder(root) / "log").read_text()
    status = read_status(folder(root))
    assert status is not None and status.label == "failed(crash)"


def test_the_spec_line_of_a_failure_is_said(root: Path, read: ModuleType) -> None:
    import hashlib

    path = root / "generated" / "read_mse.py"
    line = path.read_text().splitlines().index("        digit, loop = self(image)") + 1
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {
        "program": "p",
        "sha256": digest,
        "map": [[line, line, "specs/digits.yaml:9:5", "read"]],
    }
    (path.parent / "expc.lock.json").write_text(json.dumps({"files": {path.name: entry}}))

    class Broken(read.Read):  # type: ignore[misc, name-defined]
        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            raise RuntimeError("no kernel")

    read.Read = Broken  # type: ignore[attr-defined]
    cfg = read.Config(budget=1)
    # constants are measured without `forward`, so it is `update` that meets it
    assert read.main(cfg) == 1
    status = read_status(root / cfg.out)
    assert status is not None
    assert status.source == "specs/digits.yaml:9:5 (read)"


def test_a_folder_in_use_is_73_and_is_left_alone(root: Path) -> None:
    def compete() -> int:
        return train(root)

    with claim(folder(root), "other") as held:
        assert in_child(compete) == 73
        held.interrupt("over")
    status = read_status(folder(root))
    assert status is not None and status.key == "other"


def test_a_missing_column_is_66(root: Path) -> None:
    code = fit(
        Tell,
        Config(),
        Feed(Digits(), columns=("image", "odd"), batch=8),
        until=Until(Epochs(1)),
        file=str(root / "generated" / "tell.py"),
        program="p",
    )
    assert code == 66
    status = read_status(folder(root))
    assert status is not None
    assert status.label == "failed(missing_input)"
    assert "no column odd" in status.reason


# What a stage starts from, keeps and warns of.


def test_a_part_starts_from_another_stage_of_the_same_run(root: Path) -> None:
    first = Config(out="runs/x/seed=0/first")
    second = Config(out="runs/x/seed=0/second", lr=1e-20)
    how: dict[str, Any] = {"until": Until(Epochs(1))}
    code = train(root, second, init={"body": "stage:first/best_even"}, **how)
    assert code == 66  # it has not run
    assert train(root, first, monitor={"even": "val/even"}, **how) == 0

    started: list[dict[str, Tensor]] = []

    class Started(Tell):
        def start(self, *args: Any, **kwargs: Any) -> None:
            started.append({k: v.clone() for k, v in self.state_dict().items()})
            super().start(*args, **kwargs)

    init = {"body": "stage:first/best_even"}
    assert train(root, second, init=init, build=Started, program="q", **how) == 0
    best = final(root, first, "even")["model"]
    for key, value in started[0].items():
        assert torch.equal(value, best[key]) is key.startswith("body.")
    result, parent = read_result(folder(root, second)), read_result(folder(root, first))
    assert result is not None and parent is not None
    assert dict(result.parents) == {"first": parent.key}


def test_a_part_starts_from_a_file(root: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    head = {"weight": torch.full((1, 16), 2.0), "bias": torch.zeros(1)}
    save_file(head, root / "head.safetensors")
    torch.save({"head.weight": torch.full((1, 3), 2.0)}, root / "small.pt")
    cfg = Config(lr=1e-20)
    assert train(root, cfg, Until(Updates(1)), init={"head": "head.safetensors"}) == 0
    torch.testing.assert_close(final(root)["model"]["head.weight"], head["weight"])
    assert train(root, cfg, Until(Updates(1)), init={"head": "small.pt"}, program="q") == 66
    assert train(root, cfg, Until(Updates(1)), init={"head": "gone.pt"}, program="r") == 66
    for name in ("torn.pt", "torn.safetensors"):
        (root / name).write_bytes((root / "small.pt").read_bytes()[:100])
        assert train(root, cfg, Until(Updates(1)), init={"head": name}, program=name) == 66
        status = read_status(folder(root))
        assert status is not None
        assert f"{name} cannot be read: " in status.reason


def test_the_result_is_about_the_best_weights_not_the_last(root: Path) -> None:
    """The loss on val falls and rises again: a step that grows ends far from where it was best."""

    class Overshoot(Tell):
        def drives(self) -> dict[str, Drive]:
            return {"model": Drive(torch.optim.SGD(self.parameters(), lr=0.05))}

        def update(self, batch: Batch) -> None:
            super().update(batch)
            if self.epoch >= 2:
                with torch.no_grad():
                    self.head.weight.mul_(-1.05)

    assert train(root, until=Until(Epochs(4)), build=Overshoot, monitor={"best": "val/even"}) == 0
    seen = [line["val/even"] for line in lines(root, "val")]
    result = read_result(folder(root))
    assert result is not None
    assert result.metrics["val/even"] == min(seen) < seen[-1]
    assert result.extra["best"]["best"]["epoch"] == seen.index(min(seen)) + 1 < 4
    held = Tell(Config())
    held.load_state_dict(final(root, tag="best")["model"])
    feed = Feed(Digits(), columns=("image", "even"), batch=80, val=0.2, test=0.1)
    feed.setup(torch.device("cpu"), 0)
    assert held.measured(feed.batches("test"))["even"] == result.metrics["test/even"]


def test_of_two_that_are_equally_good_the_later_is_kept(root: Path) -> None:
    class Told(Tell):
        def measure(self, batch: Batch) -> None:
            super().measure(batch)
            self.record(same=torch.tensor(1.0))

    assert train(root, until=Until(Epochs(3)), build=Told, monitor={"best": "val/same"}) == 0
    assert final(root, tag="best")["best"]["epoch"] == 3


def test_the_figures_are_of_the_weights_kept_even_if_a_resumed_run_does_worse(root: Path) -> None:
    """A kill falls between the file of the best weights and the one that a run goes on from."""

    class Stuck(Tell):
        def update(self, batch: Batch) -> None:
            super().update(batch)
            with torch.no_grad():
                self.head.weight.zero_()

    cfg = Config(lr=0.02)
    how: dict[str, Any] = {
        "until": Until(Epochs(4)),
        "monitor": {"best": "val/even"},
        "checkpoint": Checkpoint(every=Epochs(2)),
    }
    killed = in_child(lambda: train(root, cfg, build=hit_by(signal.SIGKILL, 50), **how))
    assert killed == -signal.SIGKILL
    assert final(root)["progress"]["updates"] == 32
    assert final(root, tag="best")["best"]["epoch"] == 3
    assert train(root, cfg, build=Stuck, **how) == 0
    result = read_result(folder(root))
    assert result is not None
    assert result.extra["best"]["best"]["epoch"] == 3
    held = Tell(cfg)
    held.load_state_dict(final(root, tag="best")["model"])
    feed = Feed(Digits(), columns=("image", "even"), batch=80, val=0.2, test=0.1)
    feed.setup(torch.device("cpu"), 0)
    for split in ("val", "test"):
        measured = held.measured(feed.batches(split))
        assert measured["even"] == result.metrics[f"{split}/even"]


def test_floors_stand_beside_the_figures_and_are_those_of_a_constant(root: Path) -> None:
    assert train(root) == 0
    feed = Feed(Digits(), columns=("image", "even"), batch=80, val=0.2, test=0.1)
    feed.setup(torch.device("cpu"), 0)
    prior = float(feed.columns("train")[1].mean())
    target = feed.columns("val")[1]
    share = float(target.mean())
    entropy = -(share * math.log(prior) + (1 - share) * math.log(1 - prior))
    result = read_result(folder(root))
    assert result is not None
    assert result.floors["val/even"] == pytest.approx(entropy, rel=1e-5)
    assert result.floors["val/right"] == pytest.approx(max(share, 1 - share))
    (logged,) = lines(root, "floor")
    assert logged["floor/val/even"] == result.floors["val/even"]


def test_no_better_than_constant_is_said_aloud(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Deaf(Tell):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(torch.zeros_like(image))

    assert train(root, build=Deaf) == 0
    said = capsys.readouterr().out
    result = read_result(folder(root))
    assert result is not None
    warned = "\n".join(result.warnings)
    for text in (said, warned):
        assert "is no better than constant: one answer for every row gives" in text
        assert "output 1 of Deaf is the same for every row" in text
    assert "val/right" in warned


def test_a_model_that_learned_is_not_accused(root: Path) -> None:
    assert train(root, Config(lr=0.02), until=Until(Epochs(4))) == 0
    result = read_result(folder(root))
    assert result is not None
    assert (result.metrics["val/right"] or 0.0) > 0.8
    assert result.warnings == ()


def test_a_parameter_without_an_optimizer_is_said_aloud(root: Path) -> None:
    class Half(Tell):
        def drives(self) -> dict[str, Drive]:
            return {"model": Drive(torch.optim.SGD(self.body.parameters(), lr=0.1))}

    assert train(root, build=Half, until=Until(Updates(1))) == 0
    result = read_result(folder(root))
    assert result is not None
    assert "no optimizer trains head.weight, head.bias" in result.warnings


def test_without_a_val_split_the_figures_are_of_train(root: Path) -> None:
    assert train(root, until=Until(Updates(3)), val=0.0) == 0
    result = read_result(folder(root))
    assert result is not None
    assert set(result.metrics) == set(result.floors) == {"train/even", "train/right"}


def test_a_finished_stage_can_be_loaded(root: Path, read: ModuleType) -> None:
    from expc_runtime.export import load

    cfg = read.Config(budget=1)
    assert read.main(cfg) == 0
    model = load(root / cfg.out)
    digit, loop = model(torch.zeros(3, 1, 8, 8))
    assert (digit.shape, loop.shape) == ((3, 10), (3,))
    result = read_result(root / cfg.out)
    assert result is not None
    assert result.extra["columns"]["image"] == {"shape": [1, 8, 8], "dtype": "float32"}
    assert result.extra["weights"] == "best"


def test_smoke_is_two_updates_and_claims_nothing(root: Path) -> None:
    cfg = Config(smoke=True)
    assert train(root, cfg, Until(Epochs(9), Gate("val/right", above=2.0))) == 0
    result = read_result(root / f"{cfg.out}.smoke")
    assert result is not None
    assert (result.state, result.step) == ("smoke", 2)
    assert set(result.metrics) == {"val/even", "val/right"}
    assert result.gate == {}


def test_a_smoke_run_leaves_a_real_one_alone(root: Path) -> None:
    assert train(root, until=Until(Updates(3))) == 0
    assert train(root, Config(smoke=True)) == 0
    assert train(root, Config(smoke=True, out="runs/even.smoke/seed=0/tell")) == 0
    result = read_result(folder(root))
    assert result is not None
    assert (result.state, result.step) == ("done", 3)
    found = {str(path.parent.relative_to(root / "runs")) for path in root.rglob("result.json")}
    assert found == {"even/by_hand/tell", "even/by_hand/tell.smoke", "even.smoke/seed=0/tell"}


def test_a_smoke_run_starts_from_another_one(root: Path) -> None:
    first = Config(out="runs/x/by_hand/first", smoke=True)
    second = Config(out="runs/x/by_hand/second", smoke=True)
    assert train(root, first) == 0
    assert train(root, second, init={"body": "stage:first"}, program="q") == 0
    result, parent = (read_result(root / f"{cfg.out}.smoke") for cfg in (second, first))
    assert result is not None and parent is not None
    assert dict(result.parents) == {"first": parent.key}


def test_seeds_decide_the_run_and_nothing_else_does(root: Path) -> None:
    a, b, c = (Config(out=f"runs/{n}/x/tell", seed=s) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    for cfg in (a, b, c):
        torch.manual_seed(torch.seed() % 2**31)
        assert train(root, cfg, Until(Updates(5))) == 0
    assert_same(final(root, a)["model"], final(root, b)["model"])
    assert not torch.equal(
        final(root, a)["model"]["head.weight"], final(root, c)["model"]["head.weight"]
    )


class Rivals(Module):
    """Two optimizers in one update, no floor, a single column: nothing supervised about it."""

    def __init__(self, cfg: Run) -> None:
        super().__init__()
        self.maker = nn.Linear(4, 64)
        self.judge = nn.Linear(64, 1)

    def update(self, batch: Batch) -> None:
        (image,) = batch
        flat = image.flatten(1)
        made = self.maker(torch.randn(len(flat), 4))
        with self.only(self.judge):
            total_judge = (self.judge(flat) - self.judge(made.detach())).mean()
            self.step("judge", total_judge.square())
        with self.only(self.maker):
            total_maker = self.judge(made).mean()
            self.step("maker", total_maker.square())
        self.record(judge=total_judge, maker=total_maker)

    def measure(self, batch: Batch) -> None:
        self.record(answer=self.judge(batch[0].flatten(1)).mean())

    def drives(self) -> dict[str, Drive]:
        return {
            "maker": Drive(torch.optim.SGD(self.maker.parameters(), lr=0.01), clip=1.0),
            "judge": Drive(torch.optim.SGD(self.judge.parameters(), lr=0.01), accumulate=2),
        }


def test_nothing_assumes_one_optimizer_or_a_target(root: Path) -> None:
    code = fit(
        Rivals,
        Run(out="runs/rivals/x/train"),
        Feed(Digits(), columns=("image",), batch=100, val=0.1),
        until=Until(Updates(30)),
        file=str(root / "generated" / "rivals.py"),
        program="p",
    )
    assert code == 0
    result = read_result(root / "runs/rivals/x/train")
    assert result is not None
    steps = {name: drive["steps"] for name, drive in result.extra["drives"].items()}
    assert steps == {"maker": 30, "judge": 15}
    assert dict(result.floors) == {}

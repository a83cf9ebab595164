"""State files: who holds a stage, what proves it done, what a reader sees."""

import io
import json
import math
import os
import random
import signal
import string
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import expc_runtime
from expc_runtime.errors import DiskFull, Diverged, Locked, MissingInput
from expc_runtime.flags import Run
from expc_runtime.state import (
    Result,
    Status,
    alive,
    append_line,
    claim,
    identity,
    parent_key,
    process_start,
    read_env,
    read_json,
    read_result,
    read_status,
    resolve,
    run_name,
    write_env,
    write_json,
    write_status,
)
from expc_runtime.state.plan import Layout, Task, tasks
from expc_runtime.state.program import read_program
from expc_runtime.state.table import duration, some, table

ENV = os.environ | {"PYTHONPATH": str(Path(expc_runtime.__file__).parent.parent)}


def child(code: str, *args: object) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENV)


HOLD = """
import sys, time
from pathlib import Path
from expc_runtime.state import claim
stage = claim(Path(sys.argv[1]), "k1")
stage.beat(step=4, steps_target=10, epoch=1)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """A process that works in ``tmp_path``/read."""
    process = child(HOLD, tmp_path / "read")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_state_needs_no_torch() -> None:
    code = "import sys, expc_runtime.state, expc_runtime.sweep.serve, expc_runtime.launch; "
    process = child(code + "print({'torch', 'pytorch_lightning', 'numpy'} & set(sys.modules))")
    assert process.communicate()[0] == "set()\n"


# Identity


def test_identity_is_of_program_values_and_parents() -> None:
    base = identity("p", {"lr": 0.1, "seed": 0}, {"read": "a"})
    assert base == identity("p", {"seed": 0, "lr": 0.1}, {"read": "a"})
    others = [
        identity("q", {"lr": 0.1, "seed": 0}, {"read": "a"}),
        identity("p", {"lr": 0.2, "seed": 0}, {"read": "a"}),
        identity("p", {"lr": 0.1, "seed": 1}, {"read": "a"}),
        identity("p", {"lr": 0.1, "seed": 0}, {"read": "b"}),
        identity("p", {"lr": 0.1, "seed": 0}, {"legal": "a"}),
        identity("p", {"lr": 0.1, "seed": 0}, {}),
        identity("p", {"lr": "0.1", "seed": 0}, {"read": "a"}),
    ]
    assert len({base, *others}) == 8
    assert len(base) == 16


def test_identity_ignores_where_a_run_is_kept_and_computed() -> None:
    assert identity("p", {"out": "a", "device": "cpu"}, {}) == identity("p", {}, {})


def test_a_whole_batch_at_once_is_no_setting() -> None:
    """A spec in which a retry may halve `microbatch` keeps the results it had."""
    before = identity("p", {"lr": 0.1, "clip": None}, {})
    assert identity("p", {"lr": 0.1, "clip": None, "microbatch": 1.0}, {}) == before
    assert identity("p", {"lr": 0.1, "clip": None, "microbatch": 0.5}, {}) != before
    retried = {"lr": 0.1, "clip": None, "microbatch": 0.5, "planned": '{"microbatch": 1.0}'}
    assert identity("p", retried, {}) == before
    assert identity("p", {"lr": 0.1}, {}) != before


def test_identity_reads_equal_numbers_as_equal_but_not_truth() -> None:
    def key(value: object) -> str:
        return identity("p", {"x": value}, {})

    assert key(1) == key(1.0)
    assert key((1, 2)) == key([1.0, 2])
    assert key(True) != key(1)
    assert key("1") != key(1)
    assert key(None) != key("None")


@given(st.text(), st.text(alphabet=string.digits, max_size=3))
def test_run_name_is_one_folder(condition: str, seed: str) -> None:
    name = run_name(condition, seed)
    assert name not in ("", ".", "..")
    assert not set(name) & {"/", "\0", "\n"}
    assert not name.startswith(".")
    assert len(name.encode(errors="surrogatepass")) <= 200


@given(st.text(max_size=300), st.text(max_size=300))
def test_run_names_of_different_conditions_differ(a: str, b: str) -> None:
    assert (run_name(a, "0") == run_name(b, "0")) == (a == b)


def test_run_name_is_readable() -> None:
    assert run_name("loop=bce,lr=0.001", "2") == "loop=bce,lr=0.001,seed=2"
    assert run_name("", "2") == "seed=2"
    assert run_name("init=a/b", "0") == "init=a%2Fb,seed=0"


# Claims


def test_fresh_then_resume_then_done(tmp_path: Path) -> None:
    folder = tmp_path / "runs/x/seed=0/read"
    with claim(folder, "k1") as stage:
        assert stage.verdict == "fresh"
        stage.beat(step=4, steps_target=10, epoch=1)
        (folder / "checkpoints").mkdir()
        stage.interrupt("asked to stop")
    with claim(folder, "k1", program="p", module="m.py") as stage:
        assert (stage.verdict, stage.status.attempt, stage.status.step) == ("resume", 2, 4)
        stage.finish(Result(metrics={"test/accuracy": 0.9}))
    with claim(folder, "k1") as stage:
        assert stage.verdict == "done"
        assert stage.result is not None
        assert stage.result.metrics == {"test/accuracy": 0.9}
    result = read_result(folder)
    assert result is not None
    assert (result.key, result.program, result.module, result.attempt) == ("k1", "p", "m.py", 2)
    status = read_status(folder)
    assert status is not None
    assert (status.label, status.code) == ("done", 0)


def test_nothing_saved_starts_fresh_and_counts_the_attempt(tmp_path: Path) -> None:
    with claim(tmp_path / "read", "k1") as stage:
        stage.fail("diverged", "NaN", code=65)
    with claim(tmp_path / "read", "k1") as stage:
        assert (stage.verdict, stage.status.attempt) == ("fresh", 2)
        assert (stage.status.failure, stage.status.reason) == ("", "")


def test_other_key_is_set_aside_every_time(tmp_path: Path) -> None:
    for number, key in enumerate(["k1", "k2", "k1", "k2"]):
        with claim(tmp_path / "read", key) as stage:
            assert stage.verdict == "fresh"
            (stage.folder / "weights").write_text(str(number))
    kept = {path.name: (path / "weights").read_text() for path in tmp_path.iterdir()}
    assert kept == {"read": "3", "read.was-k1": "0", "read.was-k2": "1", "read.was-k1.2": "2"}


def test_a_folder_without_a_readable_status_is_set_aside_too(tmp_path: Path) -> None:
    (tmp_path / "read/checkpoints").mkdir(parents=True)
    (tmp_path / "read/status.json").write_text('{"state": "runn')
    with claim(tmp_path / "read", "k1") as stage:
        assert stage.verdict == "fresh"
        assert stage.moved == tmp_path / "read.was-unknown"


def test_smoke_is_never_done(tmp_path: Path) -> None:
    with claim(tmp_path / "read", "k1") as stage:
        (stage.folder / "checkpoints").mkdir()
        stage.finish(Result(state="smoke"))
    with claim(tmp_path / "read", "k1") as stage:
        assert stage.verdict == "fresh"
        assert not (stage.folder / "checkpoints").exists()


def test_held_folder_says_by_whom(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    with pytest.raises(Locked, match=f"read is in use by process {holder.pid} on "):
        claim(tmp_path / "read", "k1")
    with pytest.raises(Locked):
        claim(tmp_path / "read", "k2")  # another key takes nothing from a living process


def test_kernel_frees_a_killed_holder(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    status = read_status(tmp_path / "read")
    assert status is not None
    assert (status.state, status.gone) == ("running", True)
    with claim(tmp_path / "read", "k1") as stage:
        assert stage.status.attempt == 2


def test_living_holder_is_not_gone(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    status = read_status(tmp_path / "read")
    assert status is not None
    assert (status.pid, status.gone, status.percent) == (holder.pid, False, 40)
    reused = Status(**asdict(status) | {"process": status.process - 1})
    assert reused.gone


@pytest.mark.parametrize(
    ("error", "label", "code", "reason"),
    [
        (Diverged("loss is NaN"), "failed(diverged)", 65, "loss is NaN"),
        (OSError(28, "No space left on device"), "failed(disk_full)", DiskFull.code, "No space"),
        (ZeroDivisionError("x"), "failed(crash)", 1, "ZeroDivisionError: x"),
        (KeyboardInterrupt(), "interrupted", 130, "keyboard"),
    ],
)
def test_leaving_by_an_exception_says_so(
    tmp_path: Path, error: BaseException, label: str, code: int, reason: str
) -> None:
    with pytest.raises(type(error)), claim(tmp_path / "read", "k1"):
        raise error
    status = read_status(tmp_path / "read")
    assert status is not None
    assert (status.label, status.code) == (label, code)
    assert reason in status.reason


def test_leaving_without_a_result_is_a_failure(tmp_path: Path) -> None:
    with claim(tmp_path / "read", "k1"):
        pass
    status = read_status(tmp_path / "read")
    assert status is not None
    assert (status.label, status.reason) == ("failed(crash)", "ended without a result")


def test_beats_are_bounded_in_number(tmp_path: Path) -> None:
    with claim(tmp_path / "read", "k1") as stage:
        stage.beat(step=1, steps_target=100, epoch=0)
        for step in range(2, 50):
            stage.beat(step=step, steps_target=100, epoch=0)
        status = read_status(tmp_path / "read")
        assert status is not None
        assert status.step < 49
        stage.beat(step=50, steps_target=100, epoch=0, force=True)
        status = read_status(tmp_path / "read")
        assert status is not None
        assert (status.step, status.percent) == (50, 50)
        stage.interrupt("enough")


def test_product_of_a_shared_stage_is_found(tmp_path: Path) -> None:
    root = tmp_path / "runs/x"
    with claim(root / "lr=1,seed=0/read", "k1") as stage:
        stage.finish(Result())
    (root / "lr=2,seed=0/read").mkdir(parents=True)
    shared = Status(state="done", key="k1", same_as="lr=1,seed=0/read")
    write_status(root / "lr=2,seed=0/read", shared)
    assert resolve(root / "lr=2,seed=0/read") == root / "lr=1,seed=0/read"
    assert parent_key(root / "lr=2,seed=0/two", "read") == "k1"
    assert parent_key(root / "lr=2,seed=0/two", "legal") == ""


# Files


def test_no_figure_is_null_and_text_is_kept(tmp_path: Path) -> None:
    write_json(
        tmp_path / "a.json", {"nan": math.nan, "inf": [math.inf], "text": "ü\n", "n": (1, 2)}
    )
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "inf": [None],
        "text": "ü\n",
        "n": [1, 2],
    }


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"state": "somewhere"}', "\0\0"])
def test_unreadable_records_are_no_records(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    (tmp_path / "result.json").write_text(text)
    assert read_status(tmp_path) is None
    assert read_result(tmp_path) is None


def test_records_of_a_later_version_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", {"state": "done", "key": "k", "mood": "good"})
    write_json(tmp_path / "result.json", {"state": "done", "key": "k", "mood": "good"})
    assert read_status(tmp_path) == Status(state="done", key="k")
    assert read_result(tmp_path) == Result(state="done", key="k")


WRITE = """
import sys
from pathlib import Path
from expc_runtime.state import write_json
number = 0
while True:
    number += 1
    write_json(Path(sys.argv[1]), {"number": number, "fill": ["x" * 50] * 400, "again": number})
"""


def test_readers_never_see_half_a_file_even_of_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    rng = random.Random(0)
    for _ in range(5):
        writer = child(WRITE, path)
        while not path.exists():
            time.sleep(0.005)
        end = time.monotonic() + 0.1 + rng.random() / 10
        while time.monotonic() < end:
            data = read_json(path)
            assert data is not None
            assert data["number"] == data["again"]
        writer.kill()
        writer.communicate()
        assert read_json(path) is not None


def test_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"old": True})
    code = """
import resource, signal, sys
from pathlib import Path
from expc_runtime.state import write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    write_json(Path(sys.argv[1]), {"new": "x" * 10000})
except OSError as error:
    print(error.errno)
"""
    assert child(code, path).communicate()[0].strip() == "27"
    assert read_json(path) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_env_is_one_line_a_key(tmp_path: Path) -> None:
    values = {"run_name": "a=b, c\nd", "step": 3, "exit_code": ""}
    write_env(tmp_path / "status.env", values)
    assert read_env(tmp_path / "status.env") == {
        "run_name": "a=b, c d",
        "step": "3",
        "exit_code": "",
    }
    assert read_env(tmp_path / "nothing.env") == {}


def test_lines_of_two_writers_do_not_mix(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from expc_runtime.state import append_line
for i in range(300):
    append_line(Path(sys.argv[1]), {"who": sys.argv[2], "i": i, "fill": "x" * 500})
"""
    writers = [child(code, tmp_path / "events.jsonl", who) for who in "ab"]
    for writer in writers:
        writer.communicate()
    append_line(tmp_path / "events.jsonl", {"who": "c", "i": 0})
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    for who, count in (("a", 300), ("b", 300), ("c", 1)):
        assert [line["i"] for line in lines if line["who"] == who] == list(range(count))


def test_process_is_known_by_its_start(holder: "subprocess.Popen[str]") -> None:
    start = process_start(holder.pid)
    assert alive(holder.pid, start)
    assert not alive(holder.pid, start - 1)
    holder.kill()
    holder.wait()
    assert not alive(holder.pid, start)


# Programs and plans

MODULE = '''
from dataclasses import dataclass

PROGRAM = "5be1c0a7d2f4"


@dataclass(frozen=True)
class Config(Run):
    """About."""

    lr: float = 0.001  # *
    batch: int = 64
    channels: tuple[int, ...] = (16, 32)
    clip: float | None = None
    precision: str = "32"
    shuffle: bool = True
    offset: float = -0.5
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("generated/x/read.py")
    path.parent.mkdir(parents=True)
    path.write_text(MODULE)
    return path


def test_values_are_read_from_text_as_the_command_line_reads_them(module: Path) -> None:
    flags = ["--lr", "1e-4", "--channels", "8,16", "--clip=1", "--no-shuffle", "--offset", "-2"]
    values = read_program(module).values([*flags, "--seed", "3", "--smoke"])
    assert values == {
        "seed": 3,
        "out": "",
        "device": "auto",
        "planned": "",
        "smoke": True,
        "lr": 1e-4,
        "batch": 64,
        "channels": (8, 16),
        "clip": 1.0,
        "precision": "32",
        "shuffle": False,
        "offset": -2.0,
    }
    assert read_program(module).values(["--clip", "none"])["clip"] is None


def test_values_agree_with_those_of_the_running_stage(module: Path) -> None:
    flags = ["--lr", "3e-4", "--channels", "4", "--batch", "7", "--clip", "0.5", "--seed", "1"]
    code = "from expc_runtime.flags import Run, parse\n" + MODULE
    code += "import json, dataclasses\nprint(json.dumps(dataclasses.asdict(parse(Config))))"
    running = json.loads(child(code, *flags).communicate()[0])
    read = read_program(module).values(flags)
    assert identity("p", running, {}) == identity("p", read, {})
    assert set(asdict(Run())) <= set(read)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODULE.replace("PROGRAM", "PROGRAMME"), "has no PROGRAM line"),
        (MODULE.replace("= 64", "= size()"), "read.py:12: the default of batch must be a plain"),
        ("def main(:", "read.py:1: invalid syntax"),
    ],
)
def test_unreadable_modules_are_refused(module: Path, text: str, message: str) -> None:
    module.write_text(text)
    with pytest.raises(MissingInput, match=message):
        read_program(module)


def record(*words: str) -> bytes:
    return "".join(f"{word}\0" for word in (str(len(words)), *words)).encode()


LAYOUT = Layout("x", "generated/x", "python")


def test_plan_gives_commands_and_keys(module: Path) -> None:
    plan = (
        record("run", "lr=0.1", "2")
        + record("stage", "read", "read.py", "--", "--lr", "0.1", "--seed", "2")
        + record("stage", "two", "read.py", "--after", "read", "--", "--batch", "8")
        + record("end")
    )
    read, two = tasks(io.BytesIO(plan), LAYOUT)
    out = "runs/x/lr=0.1,seed=2"
    flags = ["--lr", "0.1", "--seed", "2"]
    assert list(read.argv) == ["python", "generated/x/read.py", *flags, "--out", f"{out}/read"]
    assert read.key == identity("5be1c0a7d2f4", read_program(module).values(flags), {})
    assert two.parents == (read.key,)
    values = read_program(module).values(["--batch", "8"])
    assert two.key == identity("5be1c0a7d2f4", values, {"read": read.key})
    assert (two.index, two.condition, two.seed, two.after) == (1, "lr=0.1", "2", ("read",))


def test_plan_streams_in_constant_memory(module: Path) -> None:
    def peak(runs: int) -> int:
        with Path("plan").open("wb") as file:
            for seed in map(str, range(runs)):
                file.write(record("run", "lr=0.1", seed))
                file.write(record("stage", "read", "read.py", "--", "--seed", seed))
            file.write(record("end"))
        tracemalloc.start()
        with Path("plan").open("rb") as plan:
            assert sum(1 for _ in tasks(plan, LAYOUT)) == runs
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)
    assert peak(6000) < 1.5 * peak(1500)


# The table


def fill(root: Path, task: Task, status: Status, result: Result | None = None) -> None:
    folder = root / task.name
    folder.mkdir(parents=True)
    write_status(folder, status)
    if result:
        write_json(folder / "result.json", asdict(result))


def finished(key: str, accuracy: float, loss: float, warnings: tuple[str, ...] = ()) -> Result:
    return Result(
        key=key,
        metrics={"val/accuracy": accuracy, "test/accuracy": accuracy, "test/total_model": loss},
        floors={"val/accuracy": 0.1, "test/accuracy": 0.102, "test/total_model": 2.3},
        warnings=warnings,
    )


def test_table_reads_at_a_glance(tmp_path: Path) -> None:
    plan = []
    for index, (loop, seed) in enumerate([(a, b) for a in ("bce", "mse") for b in "012"]):
        condition = f"loop={loop},precision=32"
        plan.append(
            Task(index + 1, f"{condition},seed={seed}", condition, seed, "read", key=str(index))
        )
    done = [(0.97, 0.11), (0.974, 0.12), (0.962, 0.1), (0.1, 12.5)]
    for task, (accuracy, loss) in zip(plan, done, strict=False):
        warnings = ("accuracy is no better than constant",) if accuracy < 0.2 else ()
        status = Status(state="done", key=task.key, attempt=1, seconds=95.0)
        fill(tmp_path, task, status, finished(task.key, accuracy, loss, warnings))
    failed = Status(
        state="failed",
        failure="diverged",
        reason="loss is NaN at step 320",
        source="specs/x.yaml:41:9 (read.loss.loop)",
        key="4",
        attempt=2,
        seconds=4000.0,
    )
    fill(tmp_path, plan[4], failed)
    assert table(plan, tmp_path) == TABLE.replace("ROOT", str(tmp_path))


TABLE = """\
read: 1 pending, 4 done, 1 failed(diverged)   (all: precision=32)
  condition  seeds            test/accuracy       test/total_model  state                        tries  time
  loop=bce       3  0.9687 ±0.0061 [0.1020]   0.110 ±0.010 [2.300]  done                         1      1 min 35 s
  loop=mse       3  0.1000         [0.1020]  12.500        [2.300]  1 pending, 1 done, 1 failed  2      34 min 08 s
  also recorded: val/accuracy

warning read of loop=mse,precision=32,seed=0:
    accuracy is no better than constant
failed(diverged) read of loop=mse,precision=32,seed=1:
    loss is NaN at step 320 (from specs/x.yaml:41:9 (read.loss.loop))
    ROOT/loop=mse,precision=32,seed=1/read/attempt-2.log
"""


def test_the_source_of_a_long_reason_does_not_join_the_command_that_ends_it(tmp_path: Path) -> None:
    task = Task(1, "a,seed=0", "a", "0", "read", key="k")
    (tmp_path / task.name).mkdir(parents=True)
    reason = "the loss is nan\n  see it again: python -m expc_runtime.rerun runs/x"
    write_status(
        tmp_path / task.name,
        Status(state="failed", failure="diverged", key="k", reason=reason, source="specs/x.yaml:1"),
    )
    lines = table([task], tmp_path).splitlines()
    assert "      see it again: python -m expc_runtime.rerun runs/x" in lines
    assert "    (from specs/x.yaml:1)" in lines


names = st.text(alphabet=string.ascii_letters + string.digits + "=,._-", max_size=150)


@given(
    st.lists(names, min_size=1, max_size=4, unique=True),
    st.lists(st.text(alphabet="abc_/", min_size=1, max_size=40), max_size=12),
    st.floats(-1e12, 1e12),
)
def test_table_fits_120_columns(conditions: list[str], metrics: list[str], value: float) -> None:
    result = Result(key="k", metrics=dict.fromkeys(metrics, value), floors={})
    plan = [Task(1, run_name(c, "0"), c, "0", "read", key="k") for c in conditions]
    with tempfile.TemporaryDirectory() as folder:
        for task in plan:
            status = Status(state="done", key="k", attempt=1, seconds=3.0)
            fill(Path(folder), task, status, result)
        text = table(plan, Path(folder))
    assert max(map(len, text.splitlines())) <= 120


def test_a_figure_too_large_to_read_is_a_power_of_ten(tmp_path: Path) -> None:
    plan = [Task(1, f"a,seed={seed}", "a", seed, "read", key=seed) for seed in "01"]
    for task, loss in zip(plan, (1.5e26, 2.7e28), strict=True):
        status = Status(state="done", key=task.key, attempt=1, seconds=3.0)
        fill(tmp_path, task, status, finished(task.key, 0.5, loss))
    assert "1.36e+28 ±1.90e+28 [2]" in table(plan, tmp_path)


def test_every_figure_of_the_last_split_has_a_column(tmp_path: Path) -> None:
    names = [f"test/figure_{number}" for number in range(12)]
    plan = [Task(1, "a,seed=0", "a", "0", "read", key="k")]
    figures = dict.fromkeys(["val/figure_0", *names], 0.5)
    result = Result(key="k", metrics=figures, floors=dict.fromkeys(names, 0.1))
    fill(tmp_path, plan[0], Status(state="done", key="k", attempt=1, seconds=3.0), result)
    text = table(plan, tmp_path)
    assert all(name in text for name in names)
    assert text.count("[0.1000]") == len(names)
    assert "also recorded: val/figure_0" in text


def test_rows_say_how_many_runs_met_their_gate(tmp_path: Path) -> None:
    plan = [Task(i, f"{c},seed={i}", c, str(i), "read", key=str(i)) for i, c in enumerate("aaab")]
    for task, met in zip(plan, (True, False, True, True), strict=True):
        status = Status(state="done", key=task.key, attempt=1, seconds=3.0)
        result = replace(finished(task.key, 0.9, 0.1, ()), gate={"met": met})
        fill(tmp_path, task, status, result)
    rows = [line.split() for line in table(plan, tmp_path).splitlines()]
    assert rows[1][-2:] == ["gate", "time"]  # all are done at their first try: no columns for it
    assert rows[2][-5:] == ["2", "of", "3", "3.0", "s"]
    assert rows[3][-3:] == ["met", "3.0", "s"]


def test_under_the_table_stands_in_how_many_seeds_a_condition_was_accepted(tmp_path: Path) -> None:
    measured = {"force": (True, False, True), "rate": (False, False), "free": (), "rssm": ()}
    plan = [
        Task(1, f"{c},seed={i}", c, str(i), "boundaries", key=f"{c}{i}")
        for c in measured
        for i in range(3)
    ]
    for task in plan:
        verdicts = measured[task.condition]
        if int(task.seed) < len(verdicts):
            met = verdicts[int(task.seed)]
            accept = {"met": met, "seeds": 2, "bounds": [{"metric": "reward.lift"}]}
            result = Result(
                key=task.key,
                metrics={"reward.rate": 0.1, "reward.lift": 2.5},
                extra={"accept": accept},
            )
            fill(tmp_path, task, Status(state="done", key=task.key), result)
    lines = table(plan, tmp_path).splitlines()
    assert lines[1].split()[:4] == ["condition", "seeds", "reward.lift", "state"]  # what was asked
    assert lines[-3:] == [
        "  also recorded: reward.rate",
        "  force: accepted in 2 of 3 seeds (2 wanted)",
        "  rate: accepted in 0 of 2 seeds (2 wanted; 1 not measured)",
    ]


def test_a_remark_with_figures_of_its_own_is_said_once(tmp_path: Path) -> None:
    plan = [Task(i, f"a,seed={i}", "a", str(i), "read", key=str(i)) for i in range(3)]
    for task in plan:
        warning = f"gate not met: val/accuracy\n  achieved: 0.9{task.seed}"
        status = Status(state="done", key=task.key, attempt=1, seconds=3.0)
        fill(tmp_path, task, status, finished(task.key, 0.9, 0.1, (warning,)))
    text = table(plan, tmp_path)
    assert text.count("gate not met") == 1
    assert "and 2 more" in text


def test_a_remark_that_a_run_makes_twice_is_of_one_run(tmp_path: Path) -> None:
    """Episodes have their own figures; what is counted is runs."""
    plan = [Task(i, f"a,seed={i}", "a", str(i), "read", key=str(i)) for i in range(2)]
    for task in plan:
        warnings = tuple(f"boundaries come in runs\nepisode {n}: 9 of 12" for n in range(3))
        status = Status(state="done", key=task.key, attempt=1, seconds=3.0)
        fill(tmp_path, task, status, finished(task.key, 0.9, 0.1, warnings))
    text = table(plan, tmp_path)
    assert "warning read of a,seed=0 and 1 more:" in text
    assert text.count("boundaries come in runs") == 1


def test_what_is_said_of_one_run_stands_under_one_heading(tmp_path: Path) -> None:
    task = Task(1, "a,seed=0", "a", "0", "read", key="k")
    status = Status(state="done", key=task.key, attempt=1, seconds=3.0)
    fill(tmp_path, task, status, finished(task.key, 0.9, 0.1, ("no better\n  than this", "late")))
    told = table([task], tmp_path).partition("warning ")[2]
    assert told == "read of a,seed=0:\n    no better\n      than this\n    late\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_names_that_do_not_fit_are_counted_and_none_is_cut() -> None:
    assert some(["a", "b"], 80) == "a, b"
    told = some([f"pad_enter.figure_{i}" for i in range(20)], 80)
    assert told.endswith("pad_enter.figure_3, and 16 more in result.json")

"""One stage by several ranks: the mathematics of one, and ends that all of them share.

Ranks are children forked from here, with the environment that torchrun gives them, so that torch is
imported once; one test has the real torchrun. Kills hit real processes.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch import Tensor, nn

from expc_runtime import floors, losses
from expc_runtime.checkpoint import Checkpoint, Store
from expc_runtime.clocks import Epochs, Minutes, Updates
from expc_runtime.data.digits import Digits
from expc_runtime.data.feed import Feed
from expc_runtime.data.stream import Stream
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Gate, Until
from expc_runtime.metrics import BinaryAccuracy
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive, decay_groups, warmup_cosine
from expc_runtime.ranks import ALONE, _buckets, _Several, meet
from expc_runtime.state import Result, Status, claim, read_result, read_status

torch.set_num_threads(1)

LONG = 120.0  # seconds; nothing here takes as many
SLOW = pytest.mark.slow


# A stage.


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/even/by_hand/tell"
    device: str = "cpu"
    norm: bool = False
    dropout: float = 0.0
    accumulate: int = 1
    precision: str = "32"


class Tell(Module):
    """image (B, 1, 8, 8) -> even (B,) logit."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        norm = nn.BatchNorm1d(16) if cfg.norm else nn.Identity()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), norm, nn.ReLU(), nn.Dropout(cfg.dropout)
        )
        self.head = nn.Linear(16, 1)
        self.right = BinaryAccuracy(threshold=0.0)
        self.log_every = 5

    def forward(self, image: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(image))
        return y[:, 0]

    def losses(self, even: Tensor, target: Tensor) -> Tensor:
        even_loss = losses.bce(even, target)
        self.record(even=even_loss)
        return even_loss

    def update(self, batch: Batch) -> None:
        image, target, _ = batch
        self.step("model", self.losses(self(image), target))

    def measure(self, batch: Batch) -> None:
        image, target, _ = batch
        even = self(image)
        self.losses(even, target)
        self.right.update(even, target)

    def constants(self, batch: Batch) -> tuple[Tensor, ...]:
        return (floors.logits(batch[1]),)

    def drives(self) -> dict[str, Drive]:
        optimizer = torch.optim.AdamW(decay_groups(self, 0.01), lr=0.003, fused=True)
        schedule = warmup_cosine(warmup=Updates(5))
        return {"model": Drive(optimizer, schedule, clip=1.0, accumulate=self.cfg.accumulate)}


class Numbered:
    """Digits whose rows say which they are."""

    def __init__(self, rows: int | None = None, bad: tuple[int, ...] = ()) -> None:
        self._count, self._bad = rows, bad

    def tensors(self) -> Mapping[str, Tensor]:
        held = {name: column[: self._count].clone() for name, column in Digits().tensors().items()}
        for row in self._bad:
            held["image"][row] = math.nan
        return held | {"row": torch.arange(len(held["image"]))}

    def names(self) -> list[str]:
        return ["image", "even", "row"]

    def lengths(self) -> list[int]:
        return [700, 700, 397]

    def block(self, number: int, columns: list[str]) -> dict[str, Tensor]:
        start = sum(self.lengths()[:number])
        rows = slice(start, start + self.lengths()[number])
        return {name: self.tensors()[name][rows] for name in columns}


COLUMNS = ("image", "even", "row")


def train(
    root: Path,
    cfg: Config,
    build: Callable[[Any], Module] = Tell,
    feed: Feed | Stream | None = None,
    **how: Any,
) -> int:
    """Run the stage: 16 updates an epoch, of 80 rows and a last one of 57."""
    whole: dict[str, Any] = {"until": Until(Epochs(2)), "precision": cfg.precision, **how}
    return fit(
        build,
        cfg,
        feed or Feed(Numbered(), columns=COLUMNS, batch=80, val=0.2, test=0.1),
        program="p",
        file=str(root / "generated" / "tell.py"),
        **whole,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "generated").mkdir()
    return tmp_path


# Ranks.


@pytest.fixture
def together(tmp_path: Path) -> Iterator[Callable[..., list[int]]]:
    """Runs work by some ranks at once; their exit codes, -N for a signal. None is left behind."""
    children: list[int] = []

    def run(
        size: int, work: Callable[[], int], meanwhile: Callable[[list[int]], None] | None = None
    ) -> list[int]:
        port = free_port()
        pids = [fork(rank, size, port, work, tmp_path / f"said.{rank}") for rank in range(size)]
        children.extend(pids)
        if meanwhile is not None:
            meanwhile(pids)
        codes = {pid: os.waitstatus_to_exitcode(end(pid)) for pid in pids}
        children.clear()
        return [codes[pid] for pid in pids]

    yield run
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def end(pid: int) -> int:
    """The wait status of a child; kills one that never ends."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} did not end in {LONG:.0f} s")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def fork(rank: int, size: int, port: int, work: Callable[[], int], said: Path) -> int:
    """Start ``work`` as torchrun would."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def alone(work: Callable[[], int]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(end(pid))
    code = 70
    try:
        code = work()
    finally:
        os._exit(code)


def folder(root: Path, cfg: Config) -> Path:
    return root / cfg.out


def final(root: Path, cfg: Config) -> dict[str, Any]:
    loaded = Store(folder(root, cfg) / "checkpoints").load()
    assert loaded is not None
    return loaded[0]


def result(root: Path, cfg: Config) -> Result:
    found = read_result(folder(root, cfg))
    assert found is not None
    return found


def status(root: Path, cfg: Config) -> Status:
    found = read_status(folder(root, cfg))
    assert found is not None
    return found


def lines(root: Path, cfg: Config, split: str | None = None) -> list[dict[str, Any]]:
    text = (folder(root, cfg) / "metrics.jsonl").read_text().splitlines()
    found = map(json.loads, text)
    return [line for line in found if split in (None, line["split"])]


def at_update(
    update: int, of: int, do: Callable[[], object], mark: Path
) -> Callable[[Any], Module]:
    """Modules in which rank ``of`` does something in the middle of an update, in the first attempt."""

    def made(cfg: Config) -> Module:
        module = Tell(cfg)
        whole = module.update

        def struck(batch: Batch) -> None:
            if module.updates == update and rank() == of and not module.rehearses and once(mark):
                do()
            whole(batch)

        module.update = struck  # type: ignore[method-assign]
        return module

    return made


def once(mark: Path) -> bool:
    if mark.exists():
        return False
    mark.touch()
    return True


def signalled(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


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


def assert_close(one: Mapping[str, Any], two: Mapping[str, Any], within: float = 2e-5) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        if isinstance(value, float) and key not in ("scale",):
            assert value == pytest.approx(two[key], rel=within, abs=within), key


# The same mathematics.


def told_rows(root: Path) -> Callable[[Any], Module]:
    """Modules that write which rows each update was given."""

    def made(cfg: Config) -> Module:
        module = Tell(cfg)
        whole = module.update

        def told(batch: Batch) -> None:
            if not module.rehearses:
                with (root / f"rows.{cfg.seed}.{os.environ.get('WORLD_SIZE', '1')}.{rank()}").open(
                    "a"
                ) as f:
                    f.write(json.dumps([module.updates, batch[2].tolist()]) + "\n")
            whole(batch)

        module.update = told  # type: ignore[method-assign]
        return module

    return made


def rows(root: Path, size: int) -> dict[int, list[int]]:
    """Rows of each update, those of all ranks in the order of the ranks."""
    found: dict[int, list[int]] = {}
    for number in range(size):
        for line in (root / f"rows.0.{size}.{number}").read_text().splitlines():
            update, taken = json.loads(line)
            found.setdefault(update, []).extend(taken)
    return found


@pytest.mark.parametrize(("accumulate", "microbatch"), [pytest.param(1, 1.0, marks=SLOW), (3, 0.5)])
def test_two_ranks_compute_what_one_does(
    root: Path, together: Callable[..., list[int]], accumulate: int, microbatch: float
) -> None:
    one = Config(out="runs/one/x/tell", accumulate=accumulate)
    two = replace(one, out="runs/two/x/tell")
    how: dict[str, Any] = {"monitor": {"best": "val/even"}, "build": told_rows(root)}
    assert alone(lambda: train(root, one, **how)) == 0
    assert together(2, lambda: train(root, two, microbatch=microbatch, **how)) == [0, 0]

    assert rows(root, 2) == rows(root, 1)
    assert len(rows(root, 2)[0]) == 80
    assert len(rows(root, 2)[15]) < 80  # the last of an epoch
    for a, b in zip(lines(root, one), lines(root, two), strict=True):
        assert (a["split"], a["step"]) == (b["split"], b["step"])
        assert_close(a, b)
    a, b = result(root, one), result(root, two)
    assert_close(a.metrics, b.metrics)
    assert a.floors == pytest.approx(b.floors, rel=1e-6)
    assert (a.step, a.extra["drives"]) == (b.step, b.extra["drives"])
    assert b.extra["provenance"]["ranks"] == 2
    for key, value in final(root, one)["model"].items():
        torch.testing.assert_close(value, final(root, two)["model"][key], rtol=1e-4, atol=1e-5)


def test_gradients_of_many_buckets_are_all_summed_two_buckets_at_a_time(
    together: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expc_runtime.ranks.BUCKET", 64)
    sizes = (3, 20, 1, 16, 40, 2)

    def work() -> int:
        ranks = meet()
        under_way, most = 0, 0
        receive = _Several._receive

        def counted(self: _Several, *sent: Any) -> None:
            nonlocal under_way
            receive(self, *sent)
            under_way -= 1

        def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
            nonlocal under_way, most
            for bucket in _buckets(tensors):
                yield bucket
                under_way += 1
                most = max(most, under_way)

        monkeypatch.setattr(_Several, "_receive", counted)
        monkeypatch.setattr("expc_runtime.ranks._buckets", buckets)
        params = [torch.zeros(size) for size in sizes]
        for k, param in enumerate(params):
            param.grad = torch.full_like(param, float(10 * k + ranks.rank))
        told = ranks.sum_gradients(params, torch.tensor(0.5))
        whole = all((p.grad == 20.0 * k + 1).all() for k, p in enumerate(params))
        ranks.close()
        return 0 if whole and told.tolist() == [1.0, 0.0] and (most, under_way) == (2, 0) else 1

    assert together(2, work) == [0, 0]


def test_a_batch_with_too_few_rows_for_all_is_everybodys(
    root: Path, together: Callable[..., list[int]]
) -> None:
    one, three = Config(out="runs/one/x/tell"), Config(out="runs/three/x/tell")

    def few() -> Feed:
        return Feed(Numbered(85), columns=COLUMNS, batch=40)  # 40, 40, 5

    how: dict[str, Any] = {"until": Until(Epochs(4))}
    assert alone(lambda: train(root, one, feed=few(), **how)) == 0
    assert together(3, lambda: train(root, three, feed=few(), **how)) == [0, 0, 0]
    for a, b in zip(lines(root, one), lines(root, three), strict=True):
        assert_close(a, b)


@SLOW
def test_float16_takes_and_skips_the_same_steps(
    root: Path, together: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drive, "SCALE", 2.0**40)  # some of the first steps overflow
    one = Config(out="runs/one/x/tell", precision="16-mixed")
    two = replace(one, out="runs/two/x/tell")
    assert alone(lambda: train(root, one)) == 0
    assert together(2, lambda: train(root, two)) == [0, 0]
    skipped = result(root, one).extra["drives"]["model"]["skipped"]
    assert skipped > 5
    assert result(root, two).extra["drives"]["model"]["skipped"] == pytest.approx(skipped, abs=1)
    for key in ("val/even", "test/even"):
        a, b = result(root, one).metrics[key], result(root, two).metrics[key]
        assert a == pytest.approx(b, abs=0.02)


def test_a_stream_is_read_by_all_and_shared_like_columns(
    root: Path, together: Callable[..., list[int]]
) -> None:
    def feed() -> Stream:
        return Stream(Numbered(), columns=COLUMNS, batch=80, window=700, val=0.2, test=0.1)

    one, two = Config(out="runs/one/x/tell"), Config(out="runs/two/x/tell")
    build = told_rows(root)
    assert alone(lambda: train(root, one, build, feed())) == 0
    assert together(2, lambda: train(root, two, build, feed())) == [0, 0]
    assert rows(root, 2) == rows(root, 1)
    assert_close(result(root, one).metrics, result(root, two).metrics)


@pytest.mark.parametrize("statistics", [pytest.param("reestimated", marks=SLOW), "running"])
def test_ranks_begin_alike_draw_apart_and_average_their_statistics(
    root: Path, together: Callable[..., list[int]], statistics: str
) -> None:
    """Before a measurement batch norm has one set of statistics, whatever each rank has read."""
    cfg = Config(norm=True, dropout=0.5)

    def seen(cfg: Config) -> Module:
        module = Tell(cfg)
        torch.save(torch.rand(()), root / f"made.{rank()}")
        update, measure = module.update, module.measure

        def updated(batch: Batch) -> None:
            if not module.rehearses and module.updates == 0:
                torch.save(dict(module.state_dict()), root / f"began.{rank()}")
                torch.save(torch.random.get_rng_state(), root / f"draws.{rank()}")
            update(batch)
            if not module.rehearses:
                torch.save(dict(module.state_dict()), root / f"trained.{rank()}")

        def measured(batch: Batch) -> None:
            torch.save(dict(module.state_dict()), root / f"measured.{rank()}")
            measure(batch)

        module.update, module.measure = updated, measured  # type: ignore[method-assign]
        return module

    how: dict[str, Any] = {"until": Until(Epochs(1)), "norm_statistics": statistics}
    assert together(2, lambda: train(root, cfg, seen, **how)) == [0, 0]

    def held(what: str) -> list[Any]:
        return [torch.load(root / f"{what}.{number}", weights_only=True) for number in (0, 1)]

    assert_same(*held("began"))
    assert_same(*held("measured"))
    assert not torch.equal(*held("draws"))
    one, two = held("trained")
    mean = "body.2.running_mean"
    assert not torch.equal(one[mean], two[mean])
    if statistics == "running":
        torch.testing.assert_close(held("measured")[0][mean], (one[mean] + two[mean]) / 2)
    assert [line for line in result(root, cfg).warnings if "averaged over ranks" in line]


def test_a_rank_has_its_stretch_of_a_batch_and_the_weight_of_its_rows() -> None:
    for size in (2, 3, 5):
        made = []
        for number in range(size):
            ranks = object.__new__(_Several)  # without the others
            ranks.rank, ranks.size = number, size
            made.append(ranks)
        for count in range(1, 40):
            parts = [ranks.part(count) for ranks in made]
            assert sum(weight for _, weight in parts) == pytest.approx(1)
            taken = [list(range(count))[stretch] for stretch, _ in parts]
            if count < 2 * size:
                assert taken == [list(range(count))] * size
            else:
                assert [*chain(*taken)] == list(range(count))
                assert min(map(len, taken)) >= 2
                for rows, (_, weight) in zip(taken, parts, strict=True):
                    assert weight == pytest.approx(len(rows) / count)
            shards = [list(ranks.shards([(torch.arange(count),)])) for ranks in made]
            assert [*chain(*(s[0][0].tolist() for s in shards if s))] == list(range(count))


def test_a_world_of_one_is_that_and_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meet() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "4")  # of something else than torchrun
    assert meet() is ALONE
    assert ALONE.gather(3) == [3]
    assert ALONE.part(7) == (slice(0, 7), 1.0)


# Ends.


def test_a_gate_ends_all_at_the_same_epoch_and_the_result_is_the_first_ranks(
    root: Path, together: Callable[..., list[int]]
) -> None:
    cfg = Config()
    until = Until(Epochs(9), Gate("val/right", at_least=0.6))
    assert together(2, lambda: train(root, cfg, until=until, monitor={"best": "val/right"})) == [
        0,
        0,
    ]
    found = result(root, cfg)
    assert found.gate["met"]
    assert found.epoch < 9
    assert set(found.extra["artifacts"]) == {"last", "best"}
    assert status(root, cfg).state == "done"
    assert together(2, lambda: train(root, cfg, until=until)) == [0, 0]  # done already
    assert status(root, cfg).attempt == 1


def test_a_gate_that_is_not_met_fails_with_3(
    root: Path, together: Callable[..., list[int]]
) -> None:
    until = Until(Epochs(1), Gate("val/right", at_least=0.999))
    assert together(2, lambda: train(root, Config(), until=until)) == [3, 3]
    assert status(root, Config()).label == "failed(gate)"


def test_a_budget_in_minutes_ends_all_at_the_same_update(
    root: Path, together: Callable[..., list[int]]
) -> None:
    class Plain(Tell):
        def drives(self) -> dict[str, Drive]:
            return {"model": Drive(torch.optim.SGD(self.parameters(), lr=0.01))}

    until = Until(Minutes(0.03))
    assert together(2, lambda: train(root, Config(), Plain, until=until)) == [0, 0]
    assert result(root, Config()).step > 16


@pytest.mark.parametrize(
    ("of", "accumulate"),
    [(1, 3), *(pytest.param(*case, marks=SLOW) for case in [(0, 1), (0, 3), (1, 1)])],
)
def test_one_rank_asked_to_stop_stops_all_and_they_go_on_bit_for_bit(
    root: Path, together: Callable[..., list[int]], of: int, accumulate: int
) -> None:
    whole = Config(out="runs/whole/x/tell", norm=True, dropout=0.3, accumulate=accumulate)
    broken = replace(whole, out="runs/broken/x/tell")
    stop = at_update(21, of, signalled(signal.SIGTERM), root / "struck")
    assert together(2, lambda: train(root, whole)) == [0, 0]
    assert together(2, lambda: train(root, broken, stop)) == [75, 75]
    ended = status(root, broken)
    assert (ended.state, ended.code) == ("interrupted", 75)
    assert f"SIGTERM to rank {of}" in ended.reason
    steps = final(root, broken)["progress"]["updates"]
    assert 22 <= steps <= 21 + accumulate  # told with the next gradients
    assert together(2, lambda: train(root, broken, stop)) == [0, 0]

    one, two = final(root, whole), final(root, broken)
    assert_same(one["model"], two["model"])
    assert_same(one["progress"], two["progress"])
    assert_same(one["ranks"], two["ranks"])
    assert dict(result(root, whole).metrics) == dict(result(root, broken).metrics)
    assert lines(root, whole, "val") == lines(root, broken, "val")


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("of", [pytest.param(0, marks=SLOW), 1])
def test_a_killed_rank_ends_all_and_they_go_on_bit_for_bit(
    root: Path, together: Callable[..., list[int]], of: int
) -> None:
    whole = Config(out="runs/whole/x/tell", norm=True, dropout=0.3)
    broken = replace(whole, out="runs/broken/x/tell")
    how: dict[str, Any] = {"checkpoint": Checkpoint(every=Updates(5))}
    kill = at_update(21, of, signalled(signal.SIGKILL), root / "struck")
    started: list[int] = []
    assert together(2, lambda: train(root, whole, **how)) == [0, 0]
    codes = together(2, lambda: train(root, broken, kill, **how), started.extend)
    assert (codes[of], codes[1 - of]) == (-signal.SIGKILL, 137)
    assert gone(started)
    ended = status(root, broken)
    assert (ended.label, ended.code) == ("failed(killed)", 137)
    assert f"rank {of} is gone" in ended.reason
    assert final(root, broken)["progress"]["updates"] == 20
    assert together(2, lambda: train(root, broken, kill, **how)) == [0, 0]
    assert status(root, broken).attempt == 2
    assert_same(final(root, whole)["model"], final(root, broken)["model"])
    assert_same(final(root, whole)["ranks"], final(root, broken)["ranks"])
    assert lines(root, whole) == lines(root, broken)


def test_what_one_rank_raises_ends_all_and_is_told_as_its_own(
    root: Path, together: Callable[..., list[int]]
) -> None:
    def fail() -> None:
        raise KeyError("a table that is not there")

    cfg = Config()
    build = at_update(7, 1, fail, root / "struck")
    assert together(2, lambda: train(root, cfg, build)) == [1, 1]
    ended = status(root, cfg)
    assert ended.label == "failed(crash)"
    assert "rank 1: KeyError: 'a table that is not there'" in ended.reason
    log = (folder(root, cfg) / "log").read_text()
    assert "Traceback" in log
    assert "in fail" in log


def test_what_one_rank_raises_before_it_trains_ends_all_with_its_class(
    root: Path, together: Callable[..., list[int]]
) -> None:
    class Odd(Tell):
        def __init__(self, cfg: Config) -> None:
            super().__init__(cfg)
            if rank() == 1:
                raise ValueError("channels=0: must be at least 1")

    assert together(2, lambda: train(root, Config(), Odd)) == [2, 2]
    ended = status(root, Config())
    assert (ended.label, ended.reason) == (
        "failed(bad_value)",
        "rank 1: channels=0: must be at least 1",
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_nan_on_one_rank_ends_all_with_65_and_the_right_rows(
    root: Path, together: Callable[..., list[int]], accumulate: int
) -> None:
    cfg = Config(accumulate=accumulate)

    def feed(bad: tuple[int, ...] = ()) -> Feed:
        return Feed(Numbered(bad=bad), columns=COLUMNS, batch=80)

    made = feed()
    made.setup(torch.device("cpu"), cfg.seed)
    batch = made.batch_rows(0, 2).tolist()
    bad = batch[60]  # in the second half of the third batch
    assert together(2, lambda: train(root, cfg, feed=feed((bad,)))) == [65, 65]
    ended = status(root, cfg)
    assert ended.label == "failed(diverged)"
    assert ended.reason.startswith("rank 1: update 2 of optimizer `model`")
    assert f"rows {bad} of the source" in ended.reason
    assert all(value.isfinite().all() for value in final(root, cfg)["model"].values())


class Mail:
    """A flag on its way to the host."""

    def __init__(self, bad: Tensor, loss: Tensor, called: Tensor | None) -> None:
        assert called is not None
        self._content = bad.clone(), loss.clone(), called.clone()

    def read(self) -> tuple[bool, float, Tensor]:
        bad, loss, called = self._content
        return not bool(bad), float(loss), called


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drives behave as on a GPU: what is known of a step is read in the next one."""
    start = Drive.start

    def started(drive: Any, name: str, **how: Any) -> None:
        start(drive, name, **how)
        drive._on_cpu, drive._reads_late = False, True

    monkeypatch.setattr(Drive, "start", started)
    monkeypatch.setattr("expc_runtime.optim._LateFlag", Mail)


def test_flags_that_are_read_late_are_read_by_all_at_the_same_update(
    root: Path, together: Callable[..., list[int]], late: None
) -> None:
    whole = Config(out="runs/whole/x/tell", dropout=0.3)
    broken = replace(whole, out="runs/broken/x/tell")
    stop = at_update(21, 1, signalled(signal.SIGTERM), root / "struck")
    assert together(2, lambda: train(root, whole)) == [0, 0]
    assert together(2, lambda: train(root, broken, stop)) == [75, 75]
    assert final(root, broken)["progress"]["updates"] == 23
    assert together(2, lambda: train(root, broken, stop)) == [0, 0]
    assert_same(final(root, whole)["model"], final(root, broken)["model"])

    feed = Feed(Numbered(), columns=COLUMNS, batch=80)
    feed.setup(torch.device("cpu"), 0)
    bad = feed.batch_rows(0, 2).tolist()[60]
    cfg = Config(out="runs/nan/x/tell")
    feed = Feed(Numbered(bad=(bad,)), columns=COLUMNS, batch=80)
    assert together(2, lambda: train(root, cfg, feed=feed)) == [65, 65]
    reason = status(root, cfg).reason
    assert reason.startswith("rank 1: update 2 of optimizer `model`")
    assert f"rows {bad} of the source" in reason


def test_a_rank_that_is_stuck_is_ended_when_another_is_gone(
    root: Path, together: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one is in a collective of a GPU, which never fails by itself."""
    monkeypatch.setattr("expc_runtime.ranks.PATIENCE", 0.5)

    def made(cfg: Config) -> Module:
        module = at_update(7, 1, signalled(signal.SIGKILL), root / "killed")(cfg)
        update = module.update

        def stuck(batch: Batch) -> None:
            if module.updates == 7 and rank() == 0 and not module.rehearses:
                time.sleep(LONG)
            update(batch)

        module.update = stuck  # type: ignore[method-assign]
        return module

    began = time.monotonic()
    assert together(2, lambda: train(root, Config(), made)) == [137, -signal.SIGKILL]
    assert time.monotonic() - began < LONG
    assert "rank 1 is gone" in status(root, Config()).reason


def test_a_folder_in_use_is_73_for_all(root: Path, together: Callable[..., list[int]]) -> None:
    with claim(folder(root, Config()), "held"):
        assert together(2, lambda: train(root, Config())) == [73, 73]


@pytest.mark.parametrize("size", [1, pytest.param(3, marks=SLOW)])
def test_more_or_fewer_ranks_go_on_with_the_same_mathematics(
    root: Path, together: Callable[..., list[int]], size: int
) -> None:
    whole = Config(out="runs/whole/x/tell", accumulate=3)
    broken = replace(whole, out="runs/broken/x/tell")
    stop = at_update(19, 1, signalled(signal.SIGTERM), root / "struck")
    assert alone(lambda: train(root, whole)) == 0
    assert together(2, lambda: train(root, broken, stop)) == [75, 75]
    if size == 1:
        assert alone(lambda: train(root, broken)) == 0
    else:
        assert together(size, lambda: train(root, broken)) == [0] * size
    for split in ("val", "test"):
        for a, b in zip(lines(root, whole, split), lines(root, broken, split), strict=True):
            assert_close(a, b)
    assert any("where there were 2" in line for line in result(root, broken).warnings)


def test_what_shares_no_batch_says_so(root: Path, together: Callable[..., list[int]]) -> None:
    from expc_runtime.evals.evaluate import evaluate

    def measure() -> int:
        made = evaluate(
            Config(out="runs/even/by_hand/look"),
            None,  # type: ignore[arg-type]
            of="tell",
            file=str(root / "generated" / "look.py"),
            program="p",
        )
        return made

    assert alone(lambda: train(root, Config(), until=Until(Updates(2)))) == 0
    assert together(2, measure) == [2, 2]
    ended = status(root, Config(out="runs/even/by_hand/look"))
    assert ended.label == "failed(bad_value)"
    assert "leave run.devices of this stage at 1" in ended.reason


# The real torchrun.

MODULE = Path(__file__).parent / "modules" / "read_mse.py"
OUT = "runs/d/r/read"


@pytest.fixture
def torchrun(root: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts two ranks of the hand-written module; leaves neither them nor torchrun behind."""
    path = root / "generated" / "read_mse.py"
    path.write_text(MODULE.read_text())
    started: list[subprocess.Popen[bytes]] = []

    def start(*flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        with (root / "said").open("ab") as said:
            agent = subprocess.Popen(
                [*command, "--nproc-per-node", "2", str(path), "--out", OUT, *flags],
                cwd=root,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=said,
                stderr=said,
            )
        started.append(agent)
        return agent

    yield start
    for agent in started:
        agent.kill()  # and the kernel its ranks
        agent.wait()


def workers(agent: int) -> list[int]:
    """The processes of ranks 0 and 1, once training is under way."""
    found: dict[int, int] = {}
    for pid in map(int, Path(f"/proc/{agent}/task/{agent}/children").read_text().split()):
        with suppress(OSError):
            held = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {int(value[5:]): pid for value in held if value.startswith(b"RANK=")}
    return [found[0], found[1]]


def until_true(what: Callable[[], bool], root: Path) -> None:
    deadline = time.monotonic() + LONG
    while not what():
        assert time.monotonic() < deadline, (root / "said").read_text()
        time.sleep(0.05)


def training(root: Path, beyond: int = 0) -> Callable[[], bool]:
    def found() -> bool:
        status = read_status(root / OUT)
        return status is not None and status.state == "running" and status.step > beyond

    return found


def test_torchrun_a_killed_rank_is_named_and_the_next_start_goes_on(
    root: Path, torchrun: Callable[..., subprocess.Popen[bytes]]
) -> None:
    agent = torchrun("--budget", "4000", "--at-least", "2")
    until_true(training(root), root)
    ranks = workers(agent.pid)
    os.kill(ranks[1], signal.SIGKILL)
    assert agent.wait(LONG) == 1
    ended = read_status(root / OUT)
    assert ended is not None
    assert (ended.label, ended.code) == ("failed(killed)", 137)
    assert "rank 1 is gone" in ended.reason
    assert gone(ranks)
    assert Store(root / OUT / "checkpoints").load() is not None


@SLOW
def test_torchrun_asked_to_stop_saves_and_goes_on(
    root: Path, torchrun: Callable[..., subprocess.Popen[bytes]]
) -> None:
    flags = ("--budget", "5", "--at-least", "2", "--batch", "8")
    first = torchrun(*flags)
    until_true(training(root, beyond=20), root)
    ranks = workers(first.pid)
    first.terminate()
    assert first.wait(LONG) == 1
    ended = read_status(root / OUT)
    assert ended is not None
    assert (ended.state, ended.code) == ("interrupted", 75)
    assert gone(ranks)
    assert torchrun(*flags).wait(LONG) == 0
    found = read_result(root / OUT)
    assert found is not None
    assert (found.state, found.epoch, found.attempt) == ("done", 5, 2)


@SLOW
def test_torchrun_killed_leaves_no_rank_behind(
    root: Path, torchrun: Callable[..., subprocess.Popen[bytes]]
) -> None:
    agent = torchrun("--budget", "4000", "--at-least", "2")
    until_true(training(root), root)
    ranks = workers(agent.pid)
    agent.kill()
    agent.wait()
    until_true(lambda: gone(ranks), root)
    status = read_status(root / OUT)
    assert status is not None
    assert status.gone  # nobody was left to write more

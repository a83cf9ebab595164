"""Who holds what grows, and whether memory that ran out was too small or leaked."""

import functools
import re
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from expc_runtime.checkpoint import Store
from expc_runtime.clocks import Epochs
from expc_runtime.data.feed import Feed
from expc_runtime.diagnosis.memory import Memory, growth, holders, size
from expc_runtime.errors import Leak, OutOfMemory, exhausted
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Until
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive
from expc_runtime.state import read_result, read_status
from expc_runtime.training.measuring import Figures

torch.set_num_threads(1)
MB = 10**6
HERE = Path(__file__).parent


def kept() -> Tensor:
    tensor: Tensor = torch.zeros(MB // 4)
    return tensor


# A slope.


@settings(max_examples=50, deadline=None)
@given(
    slope=st.integers(10**6, 10**9),
    start=st.integers(0, 10**9),
    peaks=st.lists(st.integers(0, 39), max_size=4),
)
def test_the_slope_is_that_of_the_line_whatever_a_few_peaks_say(
    slope: int, start: int, peaks: list[int]
) -> None:
    held = [start + slope * 50 * k for k in range(40)]
    for k in peaks:
        held[k] += 10**12
    found = growth([(50 * k, bytes_) for k, bytes_ in enumerate(held)])
    assert found is not None
    assert found.slope == pytest.approx(slope, rel=0.25)


def test_a_leak_is_steady_and_neither_noise_nor_a_start_is() -> None:
    line = growth([(k, k * 20 * MB) for k in range(20)])
    assert line is not None and line.steady
    noise = growth([(k, 10**9 + (k * 7919 % 13) * 10 * MB) for k in range(40)])
    assert noise is not None and not noise.steady
    start = growth([(k, min(k, 3) * 500 * MB) for k in range(40)])
    assert start is not None and not start.steady
    crumbs = growth([(k, 10**9 + k * 1000) for k in range(40)])
    assert crumbs is not None and not crumbs.steady
    assert growth([(0, 0), (1, 10**9)]) is None


# Holders.


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.head = nn.Linear(2, 1)

    def drives(self) -> dict[str, Drive]:
        return {"model": Drive(torch.optim.SGD(self.parameters(), lr=0.1))}


class Watcher:
    def __init__(self) -> None:
        self.seen: list[Tensor] = [kept()]

    def see(self, part: nn.Module, given: Any, made: Any) -> None:
        self.seen.append(made)

    def __call__(self, part: nn.Module, given: Any, made: Any) -> None:
        self.seen.append(made)


def in_a_closure() -> Callable[..., None]:
    found: dict[str, list[Tensor]] = {"body": [kept(), kept()]}

    def hook(part: nn.Module, given: Any, made: Any) -> None:
        found["body"].append(made)

    return hook


def in_a_default(part: nn.Module, given: Any, made: Any, known: Any = deque([kept()])) -> None:  # noqa: B006, B008
    known.append(made)


SEEN: list[Tensor] = []


def in_a_global(part: nn.Module, given: Any, made: Any) -> None:
    SEEN.append(made)


def partly(store: list[Tensor], part: nn.Module, given: Any, made: Any) -> None:
    store.append(made)


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (
            in_a_closure(),
            r"dict `found` in a forward hook \(test_memory.py:\d+\) on `body.1` holds 2",
        ),
        (
            Watcher().see,
            r"list `seen` in a forward hook \(test_memory.py:\d+\) on `body.1` holds 1",
        ),
        (Watcher(), r"list `seen` in a forward hook \(test_memory.py:\d+\) on `body.1` holds 1"),
        (
            in_a_default,
            r"deque `known` in a forward hook \(test_memory.py:\d+\) on `body.1` holds 1",
        ),
        (
            functools.partial(partly, [kept()]),
            r"list `argument 0` in a forward hook \(test_memory.py:\d+\) on `body.1` holds 1 tensor \(1 MB\)",
        ),
    ],
)
def test_what_a_hook_keeps_is_found_wherever_it_keeps_it(hook: Any, told: str) -> None:
    net = Net()
    net.body[1].register_forward_hook(hook)
    [holder] = [h for h in holders(net, HERE) if "hook" in h.what]
    assert re.match(told, str(holder)), str(holder)


def test_a_global_that_a_hook_fills_is_named_by_the_hook() -> None:
    net = Net()
    net.body.register_full_backward_hook(lambda part, given, made: SEEN.extend(made))
    SEEN.append(kept())
    try:
        [holder] = holders(net, HERE)
        assert "list `SEEN` in a backward hook (test_memory.py:" in str(holder)
    finally:
        SEEN.clear()


def test_a_list_of_a_module_is_named_by_its_attribute_and_losses_by_their_graphs() -> None:
    net = Net()
    net.body.losses = [net.head(torch.ones(1, 2)).sum() for _ in range(3)]  # type: ignore[assignment]
    [holder] = holders(net, HERE)
    assert str(holder).startswith(
        "list `losses` of `body` holds 3 tensors (12 B), each with the graph"
    )


def test_a_net_that_keeps_nothing_has_no_holder() -> None:
    net = Net()
    net.start("32", total_updates=1, updates_per_epoch=1)
    assert list(holders(net, HERE)) == []


# Between two evaluations.


def watched(net: Net, held: Callable[[], int] = lambda: 0) -> Memory:
    net.start("32", total_updates=1, updates_per_epoch=1)
    return Memory(net, torch.device("cpu"), HERE, held)


def test_what_grew_is_said_with_how_much_and_what_did_not_is_not() -> None:
    net, store = Net(), [kept() for _ in range(3)]
    net.body[1].register_forward_hook(functools.partial(partly, store))
    net.tables = {"fixed": [kept()]}  # type: ignore[assignment]
    memory = watched(net)
    store += [kept() for _ in range(3)]
    assert list(memory.look()) == []  # a ring that fills looks like this
    store += [kept() for _ in range(6)]
    [(who, text)] = memory.look()
    assert "`argument 0` in a forward hook" in who
    assert text.endswith("holds 12 tensors (12 MB), 6 more than at the last evaluation")
    assert list(memory.look()) == []


def test_hooks_that_are_registered_again_and_again_are_counted() -> None:
    net = Net()
    memory = watched(net)
    for _ in range(2):
        for _ in range(3):
            net.head.register_forward_hook(lambda part, given, made: None)
        told = list(memory.look())
    [(_, text)] = told
    assert text.startswith("`head` has 6 hooks, 3 more than at the last evaluation")


HIDDEN: list[Tensor] = []


def test_growth_that_nobody_known_holds_is_looked_for_among_all_tensors() -> None:
    net, held = Net(), [0]
    memory = watched(net, lambda: held[0])
    memory._root = HERE / "nowhere"  # its globals are nobody's

    def train(updates: int) -> None:
        for _ in range(updates):
            HIDDEN.append(torch.zeros(7, 11, 13))
            net._live.updates += 1
            held[0] += 100 * MB
            memory.sample()

    try:
        train(10)
        assert [text for _, text in memory.look()] == []
        train(10)
        [(_, first)] = memory.look()
        train(10)
        [(_, second)] = memory.look()
    finally:
        HIDDEN.clear()
    assert "memory after each update grows by 100 MB an update over the last" in first
    assert "10 more tensors (7, 11, 13) of float32, in list `HIDDEN` of" in second


# None left.


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4000000000000000 bytes. Error code 12"
        ),
    ],
)
def test_every_way_to_say_it_is_understood(error: Exception) -> None:
    assert exhausted(error)


def test_another_error_is_another() -> None:
    assert not exhausted(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not exhausted(ValueError("out of memory"))


def verdict(memory: Memory) -> OutOfMemory | Leak:
    return memory.exhausted("no more", "in update 7", object(), advice="halve it")("saved")


def test_a_size_comes_with_its_parts_and_advice() -> None:
    memory = watched(Net())
    error = verdict(memory)
    assert isinstance(error, OutOfMemory)
    assert "held: parameters 36 B" in str(error)
    assert "a size, no leak" in str(error) and "halve it" in str(error)


def test_a_slope_without_a_name_is_a_leak_as_well() -> None:
    net, held = Net(), [0]
    memory = watched(net, lambda: held[0])
    for _ in range(10):
        net._live.updates += 1
        held[0] += 100 * MB
        memory.sample()
    error = verdict(memory)
    assert isinstance(error, Leak)
    assert "a leak: memory after each update grew by 100 MB an update" in str(error)


def test_a_graphics_card_is_asked_for_its_own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    net.start("32", total_updates=1, updates_per_epoch=1)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * MB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 80 * MB)
    memory = Memory(net, torch.device("cuda", 0), HERE)
    memory.sample()
    assert list(memory._figures) == [(0, 3 * MB)]
    assert memory.peak() == {"device": 80 * MB}
    assert "the rest at its most 80 MB" in str(verdict(memory))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (192 * MB, "192 MB"), (2 * 10**12, "2 TB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert size(count) == text


class Lazy(dict[str, Tensor]):
    """As large libraries have them: to ask for what it holds is to import it."""

    def values(self) -> Any:
        raise AssertionError("was woken")


def test_a_container_that_makes_its_values_is_not_asked_to() -> None:
    net = Net()
    net.cache = Lazy(a=kept(), b=kept())
    assert [(h.tensors, h.bytes) for h in holders(net, HERE) if "cache" in h.what] == [(2, 2 * MB)]


def test_a_tensor_without_memory_of_its_own_is_no_end_of_a_training() -> None:
    net = Net()
    net.escaped = []

    def let_out(x: Tensor) -> Tensor:
        net.escaped.append(x)
        return x + 1

    torch.vmap(let_out)(torch.ones(3))
    net.escaped.append(kept())
    assert [(h.tensors, h.bytes) for h in holders(net, HERE) if "escaped" in h.what] == [(2, MB)]


# Of a whole run.


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/line/seed=0/fit"
    accumulate: int = 1


class Points:
    def tensors(self) -> dict[str, Tensor]:
        x = torch.linspace(-1, 1, 64)[:, None]
        return {"x": x, "y": 2 * x[:, 0]}


class Line(Module):
    """Draws numbers as it trains; runs out of memory in one backward pass or step, if told to."""

    fails = ""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.body = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        if self.training and self.updates == 11 and self.fails == "forward":
            torch.empty(10**15)
        if self.training and self.updates == 11 and self.fails == "backward":
            y.register_hook(lambda grad: torch.empty(10**15))  # type: ignore[no-untyped-call]
        return y[:, 0]

    def update(self, batch: Batch) -> None:
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.record(loss=loss)
        self.step("model", loss)

    def measure(self, batch: Batch) -> None:
        self.record(loss=(self(batch[0]) - batch[1]).square().mean())

    def drives(self) -> dict[str, Drive]:
        optimizer: Any = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        if self.fails == "step":
            take = optimizer.step

            def step() -> None:
                take()
                if self.updates == 11:
                    torch.empty(10**15)

            optimizer.step = step
        drive = Drive(optimizer, accumulate=self.cfg.accumulate, clip=1.0)
        if self.fails == "norm":
            norm = drive._norm

            def of(grads: list[Tensor]) -> Tensor:
                if self.updates == 11:
                    torch.empty(10**15)
                return norm(grads)

            drive._norm = of  # type: ignore[method-assign]
        return {"model": drive}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def run(root: Path, accumulate: int = 1, microbatch: float = 1.0) -> int:
    feed = Feed(Points(), columns=("x", "y"), batch=8)
    file = str(root / "fit.py")
    cfg = Config(accumulate=accumulate)
    until = Until(Epochs(3))
    return fit(Line, cfg, feed, until=until, microbatch=microbatch, file=file, program="p")


def weights(root: Path) -> dict[str, Tensor]:
    loaded = Store(root / Config().out / "checkpoints").load()
    assert loaded is not None
    model: dict[str, Tensor] = loaded[0]["model"]
    return model


def said(root: Path) -> str:
    status = read_status(root / Config().out)
    assert status is not None
    return f"{status.label} {status.reason}"


@pytest.mark.parametrize("fails", ["forward", "backward", "norm"])
def test_what_was_not_torn_is_saved_and_goes_on_bit_for_bit(
    root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
) -> None:
    monkeypatch.setattr(Line, "fails", fails)
    assert run(root) == 71
    assert said(root).startswith(
        "failed(oom) out of memory in update 11: [enforce fail at alloc_cpu"
    )
    assert "`retry: {oom: {microbatch: half}}`" in said(root)
    assert "saved: the same command goes on from update 11" in said(root)
    monkeypatch.setattr(Line, "fails", "")
    assert run(root) == 0
    whole = tmp_path_factory.mktemp("whole")
    (whole / "pyproject.toml").touch()
    assert run(whole) == 0
    for name, value in weights(whole).items():
        assert torch.equal(weights(root)[name], value), name


@pytest.mark.parametrize(("fails", "accumulate"), [("step", 1), ("backward", 4), ("norm", 4)])
def test_what_was_torn_is_not_saved_and_the_last_checkpoint_stands(
    root: Path, monkeypatch: pytest.MonkeyPatch, fails: str, accumulate: int
) -> None:
    monkeypatch.setattr(Line, "fails", fails)
    assert run(root, accumulate) == 71
    assert "the same command goes on from the last checkpoint, update" in said(root)
    monkeypatch.setattr(Line, "fails", "")
    assert run(root, accumulate) == 0


def test_memory_that_runs_out_before_the_first_update_is_said_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Line, "__init__", lambda self, cfg: torch.empty(10**15))
    assert run(root) == 71
    assert said(root).startswith("failed(oom) out of memory before the first update: [enforce fail")


def test_the_best_weights_are_never_saved_as_the_last(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end the net has the best weights: what runs out of memory then saves nothing."""

    def measure(self: Line, batch: Batch) -> None:
        self.record(loss=torch.tensor(float(self.updates)))  # the first epoch's is best

    def ended() -> int:
        feed = Feed(Points(), columns=("x", "y"), batch=8, val=0.25, test=0.25)
        return fit(
            Line,
            Config(),
            feed,
            until=Until(Epochs(3)),
            monitor={"best": "val/loss"},
            file=str(root / "fit.py"),
            program="p",
        )

    def test(self: Figures, step: int, epoch: int) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Line, "measure", measure)
    with monkeypatch.context() as patched:
        patched.setattr(Figures, "test", test)
        assert ended() == 71
    assert "the same command goes on from the last checkpoint, update 12" in said(root)
    best = Store(root / Config().out / "checkpoints").load("best")
    assert best is not None and best[1].step == 4
    last = weights(root)
    assert any(not torch.equal(value, last[name]) for name, value in best[0]["model"].items())
    assert ended() == 0
    assert all(torch.equal(value, last[name]) for name, value in weights(root).items())


def test_the_tensors_of_what_broke_off_are_free_when_it_is_judged(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[Any] = []
    seen: list[bool] = []

    def update(self: Line, batch: Batch) -> None:
        held = torch.zeros(10)
        alive.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def take_back(self: Line) -> bool:
        seen.append(alive[-1]() is not None)
        return False

    monkeypatch.setattr(Line, "update", update)
    monkeypatch.setattr(Line, "take_back", take_back)
    assert run(root) == 71
    assert seen == [False]


def test_batch_norm_that_reads_parts_is_said_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(self: Line, cfg: Config) -> None:
        Module.__init__(self)
        self.cfg = cfg
        self.body = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 1)

    assert run(root, microbatch=0.5) == 0
    result = read_result(root / Config().out)
    assert result is not None and not [w for w in result.warnings if "microbatch" in w]
    monkeypatch.setattr(Line, "__init__", build)
    feed = Feed(Points(), columns=("x", "y"), batch=8)
    file = str(root / "fit.py")
    until = Until(Epochs(1))
    assert fit(Line, Config(), feed, until=until, microbatch=0.5, file=file, program="q") == 0
    result = read_result(root / Config().out)
    assert result is not None
    assert [w for w in result.warnings if "batch norm reads each part of a batch by itself" in w]

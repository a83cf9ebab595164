"""What is on another device than the net is named before it is met. The other device is `meta`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from expc_runtime.clocks import Epochs
from expc_runtime.data.feed import Feed
from expc_runtime.diagnosis.devices import require_batch, require_module, strays
from expc_runtime.errors import BadValue
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Until
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive
from expc_runtime.state import read_status
from expc_runtime.training import conclusion
from expc_runtime.training.loop import Loop

torch.set_num_threads(1)
CPU, META = torch.device("cpu"), torch.device("meta")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))


def away(value: Any) -> Any:
    return value.to("meta")


def teachers(net: Net) -> None:
    net.teachers = [nn.Linear(1, 1), away(nn.Linear(1, 1))]  # type: ignore[assignment]


def scale(net: Net) -> None:
    net.scale = away(torch.ones(3))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda net: away(net.body), "parameter `body.weight` is on meta"),
        (lambda net: net.register_buffer("mean", away(net.mean)), "buffer `mean` is on meta"),
        (teachers, "of `teachers[1]`, which is no submodule"),
        (scale, "tensor `scale` is on meta: make it a buffer"),
    ],
)
def test_what_is_elsewhere_is_named_by_its_attribute(
    spoil: Callable[[Net], object], told: str
) -> None:
    net = Net()
    require_module(net, CPU, "at the end")
    assert strays(net, CPU) == []
    spoil(net)
    with pytest.raises(BadValue, match="at the end, on cpu:") as error:
        require_module(net, CPU, "at the end")
    assert told in str(error.value)


def test_a_tensor_of_the_host_may_be_meant_so_and_is_named_once_devices_have_met() -> None:
    net = Net().to("meta")
    net.names = torch.arange(3)
    net.number = torch.tensor(3.0)
    assert strays(net, META) == [
        "tensor `names` is on cpu: make it a buffer, and it moves with the net"
    ]


@pytest.mark.parametrize("name", ["names", "metadata"])
def test_a_tensor_of_the_host_is_no_fault_whatever_it_is_called(name: str) -> None:
    net, cuda = nn.ReLU(), torch.device("cuda", 0)
    setattr(net, name, torch.arange(3))
    require_module(net, cuda, "before measuring")
    assert len(strays(net, cuda)) == 1


def test_a_column_elsewhere_is_named() -> None:
    batch = (torch.zeros(2), away(torch.zeros(2)))
    require_batch(("x", "y"), batch[:1], CPU, "before the first update")
    with pytest.raises(
        BadValue, match="before the first update, on cpu:\n  column `y` of the batch"
    ):
        require_batch(("x", "y"), batch, CPU, "before the first update")


def test_many_are_counted() -> None:
    with pytest.raises(BadValue, match="and 3 more"):
        require_module(nn.ModuleList(nn.Linear(1, 1) for _ in range(4)), META, "here")


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/line/seed=0/fit"


class Points:
    def tensors(self) -> dict[str, Tensor]:
        x = torch.linspace(-1, 1, 64)[:, None]
        return {"x": x, "y": 2 * x[:, 0]}


class Line(Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.body = nn.Linear(1, 1)
        self.scale = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) * self.scale
        return y[:, 0]

    def update(self, batch: Batch) -> None:
        self.step("model", (self(batch[0]) - batch[1]).square().mean())

    def measure(self, batch: Batch) -> None:
        self.record(loss=(self(batch[0]) - batch[1]).square().mean())

    def drives(self) -> dict[str, Drive]:
        return {"model": Drive(torch.optim.SGD(self.parameters(), lr=0.05))}


class Astray(Feed):
    """Its second column stays elsewhere."""

    def chunks(self, *where: Any, **how: Any) -> Any:
        for chunk in super().chunks(*where, **how):
            yield [(x, away(y)) for x, y in chunk]


def run(root: Path, feed: type[Feed] = Feed) -> str:
    (root / "pyproject.toml").touch()
    file = str(root / "fit.py")
    made = feed(Points(), columns=("x", "y"), batch=8, val=0.25, test=0.25)
    code = fit(Line, Config(), made, until=Until(Epochs(2)), file=file, program="p")
    status = read_status(root / Config().out)
    assert status is not None
    return f"{code} {status.label} {status.reason}"


def test_a_batch_elsewhere_ends_a_run_before_its_first_update(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run(tmp_path, Astray)
    assert told.startswith("2 failed(bad_value) before the first update, on cpu:")
    assert "column `y` of the batch is on meta" in told
    assert "Traceback" not in capsys.readouterr().out


def test_a_net_that_was_made_elsewhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Line.__init__

    def build(self: Line, cfg: Config) -> None:
        make(self, cfg)
        self.body = away(self.body)

    monkeypatch.setattr(Line, "__init__", build)
    assert "parameter `body.weight` is on meta" in run(tmp_path)


@pytest.mark.parametrize(
    ("before", "when"),
    [
        ((Loop, "end_epoch"), "before measuring"),
        ((conclusion, "_chosen"), "at the end, before the last measurement"),
    ],
)
def test_what_wandered_off_later_is_named_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: tuple[Any, str], when: str
) -> None:
    do = getattr(*before)
    made: list[Line] = []
    make = Line.__init__

    def build(self: Line, cfg: Config) -> None:
        make(self, cfg)
        made.append(self)

    def wander(given: Any) -> Any:
        made[-1].register_buffer("late", away(torch.zeros(2)), persistent=False)
        return do(given)

    monkeypatch.setattr(Line, "__init__", build)
    monkeypatch.setattr(*before, wander)
    assert f"{when}, on cpu:\n  buffer `late` is on meta" in run(tmp_path)


def test_devices_that_met_are_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def update(self: Line, batch: Batch) -> None:
        self.kept = torch.ones(8)
        raise RuntimeError("Expected all tensors to be on the same device, but found two")

    monkeypatch.setattr(Line, "update", update)
    monkeypatch.setattr(
        "expc_runtime.diagnosis.devices._same",
        lambda device, other: device.type == other.type == "meta",
    )
    monkeypatch.setattr("expc_runtime.diagnosis.devices.require_module", lambda *told: None)
    monkeypatch.setattr("expc_runtime.diagnosis.devices.require_batch", lambda *told: None)
    told = run(tmp_path)
    assert told.startswith("2 failed(bad_value) tensors on two devices met, on cpu:")
    assert "tensor `kept` is on cpu: make it a buffer" in told
    assert "Traceback" not in capsys.readouterr().out

"""A board net in an ONNX file computes what the net computes, for any number of positions."""

import importlib.util
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from torch import Tensor

import expc_runtime
from expc_runtime.checkpoint import Store
from expc_runtime.export import columns_of, to_onnx
from expc_runtime.state import Result, write_json

MODULE = """
from dataclasses import dataclass

from torch import Tensor

from expc_runtime.flags import Run
from expc_runtime.models import LinearHead, {net}
from expc_runtime.module import Module

PROGRAM = "5be1c0a7d2f4"


@dataclass(frozen=True)
class Config(Run):
    pass


class Play(Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = {net}({arguments})
        self.value_head = LinearHead(self.backbone.out_features, out=1)

    def forward(self, board: Tensor, hand: Tensor) -> Tensor:
        value: Tensor = self.value_head(self.backbone(board, hand))
        return value

    def losses(self, value: Tensor, value_target: Tensor) -> Tensor:
        return (value - value_target).sum()
"""

NETS = {
    "ResNet": "channels=(8, 8, 8, 8)",  # its last planes are small: products on a CPU in training
    "MLPMixer": "width=16, layers=1, token_width=8, channel_width=16",
    "ViT": "width=16, depth=1, heads=2",
}


def positions(rows: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(rows)
    board = torch.randint(0, 29, (rows, 9, 9), generator=drawn, dtype=torch.uint8)
    return board, torch.randint(0, 3, (rows, 14), generator=drawn, dtype=torch.uint8)


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    net: str = request.param
    code = tmp_path / f"generated/shogi/{net.lower()}.py"
    code.parent.mkdir(parents=True)
    code.write_text(MODULE.format(net=net, arguments=NETS[net]))
    (tmp_path / "pyproject.toml").touch()
    folder = tmp_path / "runs/shogi/seed=0/play"
    folder.mkdir(parents=True)
    board, hand = positions(2)
    config = {"seed": 0, "out": "runs/x", "device": "cpu"}
    extra = {"columns": columns_of({"board": board, "hand": hand})}
    result = Result(
        key="0123456789abcdef",
        program="5be1c0a7d2f4",
        module=f"generated/shogi/{net.lower()}.py",
        config=config,
        extra=extra,
    )
    write_json(folder / "result.json", asdict(result))
    spec = importlib.util.spec_from_file_location(f"play_{net}", code)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"play_{net}"] = module
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    weights = module.Play(module.Config()).state_dict()
    Store(folder / "checkpoints").save({"model": weights, "epoch": 1}, step=1)
    return folder


@pytest.mark.parametrize("run", NETS, indirect=True)
def test_onnx_of_a_board_net_takes_any_number_of_positions(run: Path, tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    with warnings.catch_warnings(record=True) as told:
        path = to_onnx(run, tmp_path / "play.onnx")
    assert "TracerWarning" not in [each.category.__name__ for each in told]
    session, net = ReferenceEvaluator(str(path)), expc_runtime.load(run)
    for rows in (1, 2, 5):
        board, hand = positions(rows)
        with torch.no_grad():
            wanted = net(board, hand)
        (got,) = session.run(["value"], {"board": board.numpy(), "hand": hand.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5)

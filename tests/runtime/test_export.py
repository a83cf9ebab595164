"""What leaves a run computes what the run computed."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import expc_runtime
from expc_runtime.checkpoint import Store
from expc_runtime.errors import MissingInput
from expc_runtime.export import Column, columns_of, main, to_onnx, to_safetensors
from expc_runtime.state import Result, Status, write_json, write_status

MODULE = '''
"""Two heads on one backbone, as the compiler prints them."""

from dataclasses import dataclass

from torch import Tensor

from expc_runtime.flags import Run
from expc_runtime.metrics import Accuracy
from expc_runtime.models import ConvNet, LinearHead
from expc_runtime.module import Module

PROGRAM = "5be1c0a7d2f4"


@dataclass(frozen=True)
class Config(Run):
    channels: tuple[int, ...] = (16, 32)
    dropout: float = 0.0


class Read(Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = ConvNet(channels=cfg.channels, dropout=cfg.dropout)
        self.digit_head = LinearHead(self.backbone.out_features, out=10)
        self.loop_head = LinearHead(self.backbone.out_features, out=1)
        self.tied = self.loop_head
        self.accuracy = Accuracy()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(image)
        digit = self.digit_head(features)
        loop = self.loop_head(features)
        return digit, loop

    def losses(self, digit: Tensor, loop: Tensor, loop_target: Tensor) -> Tensor:
        return digit.sum() + loop.sum()
'''

IMAGES = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
RESULT = Result(
    key="0123456789abcdef",
    program="5be1c0a7d2f4",
    module="generated/digits/read_mse.py",
    config={"channels": [4, 6], "dropout": 0.5, "seed": 3, "out": "runs/x", "device": "cpu"},
    extra={"columns": columns_of({"image": IMAGES, "digit": torch.zeros(7, dtype=torch.int64)})},
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "generated/digits").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    (root / "generated/digits/read_mse.py").write_text(MODULE)
    return root


Weights = dict[str, "torch.Tensor"]


@pytest.fixture
def run(project: Path) -> Path:
    """A finished stage: weights after training are not those a constructor draws."""
    folder = project / "runs/digits/seed=3/read"
    folder.mkdir(parents=True)
    write_json(folder / "result.json", asdict(RESULT))
    spec = importlib.util.spec_from_file_location("read_mse", project / RESULT.module)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["read_mse"] = module
    spec.loader.exec_module(module)
    store = Store(folder / "checkpoints")
    for tag, seed in ((None, 1), ("best_loop", 2)):
        torch.manual_seed(seed)
        net = module.Read(module.Config(channels=(4, 6), dropout=0.5))
        net.train()
        net(torch.rand(64, 1, 8, 8) * 3)  # moves the running statistics
        store.save({"model": net.state_dict(), "epoch": 4}, step=100, tag=tag)
        net.eval()
        write_json(folder / f"expected-{tag}.json", {"y": [y.tolist() for y in net(IMAGES)]})
    return folder


def expected(run: Path, tag: str | None = None) -> list["torch.Tensor"]:
    return [torch.tensor(y) for y in json.loads((run / f"expected-{tag}.json").read_text())["y"]]


def assert_same(run: Path, got: list["torch.Tensor"], tag: str | None = None) -> None:
    for one, two in zip(got, expected(run, tag), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("best", [None, "best_loop"])
def test_the_trained_module_is_loaded_in_eval_mode(run: Path, best: str | None) -> None:
    torch.manual_seed(9)
    drawn = torch.rand(1)
    torch.manual_seed(9)
    module = expc_runtime.load(run, best=best)
    assert torch.equal(torch.rand(1), drawn)  # building it took nothing from the caller's generator
    assert not module.training
    assert_same(run, list(module(IMAGES)), best)


def test_the_weights_loaded_are_those_of_the_figures(run: Path) -> None:
    extra = {**RESULT.extra, "weights": "best_loop"}
    write_json(run / "result.json", asdict(replace(RESULT, extra=extra)))
    assert_same(run, list(expc_runtime.load(run)(IMAGES)), "best_loop")
    assert_same(run, list(expc_runtime.load(run, best="last")(IMAGES)))


def test_a_run_that_is_the_same_as_another_gives_that_one(run: Path) -> None:
    other = run.parents[1] / "seed=3,copy" / "read"
    other.mkdir(parents=True)
    write_status(other, Status(state="done", same_as="seed=3/read"))
    assert_same(run, list(expc_runtime.load(other)(IMAGES)))


def test_safetensors_holds_the_weights_and_where_they_are_from(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from safetensors import safe_open

    path = to_safetensors(run, tmp_path / "out" / "read.safetensors")
    module = expc_runtime.load(run, best="best_loop")  # other weights, to be replaced
    with safe_open(path, "pt") as held:
        weights = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118
        about = held.metadata()
    module.load_state_dict(weights)
    assert_same(run, list(module(IMAGES)))
    assert (about["program"], about["step"]) == ("5be1c0a7d2f4", "100")
    assert json.loads(about["config"])["channels"] == [4, 6]
    assert [p.name for p in path.parent.iterdir()] == ["read.safetensors"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_onnx_computes_what_the_module_computes(run: Path, tmp_path: Path, rows: int) -> None:
    pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    path = to_onnx(run, tmp_path / "read.onnx", best="best_loop")
    session = ReferenceEvaluator(str(path))
    got = session.run(["digit", "loop"], {"image": IMAGES[:rows].numpy()})
    for one, two in zip(got, expected(run, "best_loop"), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), two[:rows], rtol=1e-4, atol=1e-5)


def test_an_input_that_was_not_recorded_can_be_given(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    write_json(run / "result.json", asdict(replace(RESULT, extra={})))
    with pytest.raises(MissingInput, match="shape of image is not recorded"):
        to_onnx(run, tmp_path / "read.onnx")
    assert to_onnx(run, tmp_path / "read.onnx", inputs={"image": Column((1, 8, 8))}).is_file()
    given = ["--format", "onnx", "-o", str(tmp_path / "b.onnx"), "--input", "image=1x8x8"]
    assert main([str(run), *given]) == 0
    assert (tmp_path / "b.onnx").is_file()


def recompile(project: Path, run: Path) -> None:
    path = project / RESULT.module
    path.write_text(path.read_text().replace("5be1c0a7d2f4", "ffffffffffff"))


def lose_module(project: Path, run: Path) -> None:
    (project / RESULT.module).unlink()


def lose_result(project: Path, run: Path) -> None:
    (run / "result.json").unlink()


def lose_checkpoints(project: Path, run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (recompile, "compiled anew since: it is program ffffffffffff, the run is 5be1c0a7d2f4"),
        (lose_module, "which is not there"),
        (lose_result, "no result.json: the stage is not done"),
        (lose_checkpoints, "no last checkpoint"),
    ],
)
def test_what_is_missing_is_said(
    harm: Callable[[Path, Path], None], message: str, project: Path, run: Path
) -> None:
    harm(project, run)
    with pytest.raises(MissingInput, match=message):
        expc_runtime.load(run)


def test_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    out = tmp_path / "weights.safetensors"
    words = [str(run), "-o", str(out)]
    command = [sys.executable, "-m", "expc_runtime.export", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    assert out.is_file()
    assert main([*words, "--best", "loss"]) == 66
    assert capsys.readouterr().err.startswith("no loss checkpoint in ")

"""Numbers beside the goldens: the first losses at seed 0, and plain torch that finds the same ones.

`losses.json` of a case says what its modules gave. The transcriptions below share no code with the runtime or the
generated modules: layers, formulas, optimizers and the order of rows are written out from their definitions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from tests.compiler.conftest import Golden

GOLDEN = Path(__file__).parent.parent / "golden"
SEEN = 5
MODULES = [
    "two_stages/expected/first.py",
    "two_stages/expected/second_cold.py",
    "real_values/expected/estimate_smooth_l1.py",
    "soft_labels/expected/sort.py",
    "own_loss/expected/fit_line.py",
    "yes_no/expected/tell_none.py",
]
# Worlds and nets over boards have their plain transcriptions in benchmarks/ and tests/runtime, which hold every term to them.
PLAIN_ELSEWHERE = [
    "worlds/expected/train_rssm.py",
    "worlds/expected/train_vta_kl_rate.py",
    "boards/expected/squares_resnet.py",
    "boards/expected/squares_mlp_mixer.py",
    "boards/expected/squares_planes_vit.py",
    "boards/expected/squares_vit.py",
    "handed_on/expected/first.py",
]


class _Enough(BaseException):
    """The numbers wanted are there."""


def first_losses(
    module: str, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    """Totals of the first updates at seed 0, in 32 bits on the CPU."""
    from expc_runtime.module import Module

    loaded = golden.load(module)
    monkeypatch.chdir(GOLDEN / module.split("/")[0])
    totals: list[float] = []
    step = Module.step

    def listen(self: Any, name: str, total: Any) -> None:
        if self._live.rehearsed is None:
            totals.append(float(total.detach()))
        if len(totals) == SEEN:
            raise _Enough
        step(self, name, total)

    monkeypatch.setattr(Module, "step", listen)
    flags: dict[str, Any] = {"out": str(tmp_path / "stage"), "device": "cpu", "seed": 0}
    if hasattr(loaded.Config, "precision"):
        flags["precision"] = "32"
    with pytest.raises(_Enough):
        loaded.main(loaded.Config(**flags))
    return totals


@pytest.mark.parametrize("module", [*MODULES, *PLAIN_ELSEWHERE])
def test_first_losses_are_what_they_were(
    module: str,
    golden: Golden,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    told = first_losses(module, golden, tmp_path, monkeypatch)
    case, _, file = module.split("/")
    kept = GOLDEN / case / "losses.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if request.config.getoption("--expc-update", default=False):
        known = {**known, file: [float(f"{value:.7g}") for value in told]}
        kept.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert told == pytest.approx(known[file], rel=1e-4)


# ------------------------------------------------------------------------------------ transcriptions


def draw(text: str) -> Any:
    """The generator of a text: the first eight bytes of its SHA-256, halved."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)


def batches(
    columns: list[Any], batch: int, held: int, split_seed: int = 0, drop_last: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Batches of seed 0, epoch after epoch; the last `held` rows of the split's permutation are held out."""
    rows = len(columns[0])
    split = torch.randperm(rows, generator=draw(f"split {split_seed}"))
    train = split[: rows - held].sort().values
    for epoch in range(100):
        order = train[torch.randperm(len(train), generator=draw(f"epoch 0 {epoch}"))]
        for chosen in order.split(batch):
            if len(chosen) == batch or not drop_last:
                yield tuple(column[chosen] for column in columns)


def digits() -> Any:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the digits come with scikit-learn")
    table = np.loadtxt(
        Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz"), delimiter=","
    )
    return torch.tensor(table, dtype=torch.float32)


def run(
    net: Any,
    data: Iterator[tuple[Any, ...]],
    loss: Callable[..., Any],
    optimizer: Any,
    factor: Callable[[int], float] = lambda step: 1.0,
    clip: float | None = None,
    accumulate: int = 1,
) -> list[float]:
    """Plain training; the loss of each batch."""
    losses = []
    rates = [group["lr"] for group in optimizer.param_groups]
    for update, batch in zip(range(SEEN), data, strict=False):
        total = loss(net, *batch)
        losses.append(float(total.detach()))
        (total / accumulate).backward()
        if (update + 1) % accumulate:
            continue
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(update // accumulate)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def weights_and_others(net: Any, decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]


def conv(channels: list[int]) -> list[Any]:
    layers: list[Any] = []
    for i, (a, b) in enumerate(zip([1, *channels], channels, strict=False)):
        layers += [nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(b), nn.ReLU()]
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def zero_first() -> list[float]:
    table = digits()
    image, zero = table[:, :64].reshape(-1, 1, 8, 8) / 16, (table[:, 64] == 0).float()
    torch.manual_seed(0)
    net = nn.Sequential(*conv([4, 8]), nn.Linear(8, 1))

    def loss(net: Any, x: Any, t: Any) -> Any:
        p = torch.sigmoid(net(x)[:, 0])
        return -(2 * t * p.log() + (1 - t) * (1 - p).log()).mean()

    sgd = torch.optim.SGD(weights_and_others(net, 1e-4), lr=0.01, momentum=0.9)
    return run(net, batches([image, zero], 64, held=round(0.2 * 1797)), loss, sgd)


def digit_second() -> list[float]:
    table = digits()
    image, digit = table[:, :64].reshape(-1, 1, 8, 8) / 16, table[:, 64].long()
    torch.manual_seed(0)
    net = nn.Sequential(*conv([4, 8]), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 10))
    held = round(0.2 * 1797) + round(0.1 * 1797)

    def loss(net: Any, x: Any, t: Any) -> Any:
        return -net(x).log_softmax(1)[torch.arange(len(t)), t].mean()

    def factor(step: int) -> float:  # 60 updates are 30 steps, 10 updates of warm-up are 5
        return (step + 1) / 5 if step < 5 else 0.1 + 0.9 * (1 - (step - 5) / 25)

    adamw = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0)
    data = batches([image, digit], 64, held, split_seed=3, drop_last=True)
    return run(net, data, loss, adamw, factor, accumulate=2)


def level_and_drift() -> list[float]:
    rows = {k: torch.tensor(v) for k, v in np.load(GOLDEN / "real_values" / "rows.npz").items()}
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1))
    level, drift = nn.Linear(8, 1), nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 1))
    net = nn.ModuleList([trunk, level, drift])

    def loss(net: Any, x: Any, y: Any, z: Any) -> Any:
        features = trunk(x)
        miss = (level(features)[:, 0] - y).abs()
        smooth = torch.where(miss < 0.5, miss**2 / (2 * 0.5), miss - 0.5 / 2).mean()
        return smooth + 0.1 * ((drift(features)[:, 0] - z) ** 2).mean()

    adam = torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.9, 0.99))
    data = batches([rows["readings"], rows["level"], rows["drift"]], 16, held=16)
    return run(net, data, loss, adam, lambda step: min(1, (step + 1) / 4), clip=1.0)


def soft_labels() -> list[float]:
    rows = {k: torch.tensor(v) for k, v in np.load(GOLDEN / "soft_labels" / "rows.npz").items()}
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    share, label = nn.Linear(8, 3), nn.Linear(8, 3)
    net = nn.ModuleList([trunk, share, label])

    def loss(net: Any, x: Any, t: Any, y: Any) -> Any:
        features, each = trunk(x), torch.arange(len(x))
        logs = share(features).log_softmax(1)
        kl = (t * (t.log() - logs)).sum(1).mean()
        p = label(features).softmax(1)
        wrong = p.sum(1) - p[each, y]
        gce = ((1 - p[each, y] ** 0.5) / 0.5 + 0.1 * wrong).mean()
        smoothed = 0.1 / 3 + 0.9 * F.one_hot(y, 3)
        return kl + 0.5 * gce - (smoothed * logs).sum(1).mean()

    adamw = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0)
    data = batches([rows["x"], rows["share"], rows["label"].long()], 12, held=0)
    return run(net, data, loss, adamw, lambda step: (1 + math.cos(math.pi * step / 8)) / 2)


def quantile() -> list[float]:
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(64, 1, generator=draws)
    y = 2 * x[:, 0] + 1 + 0.1 * torch.randn(64, generator=draws)
    knots, scale = torch.linspace(0, 1, 4), torch.ones(4) / 4
    losses = []
    for xs, ys in batches([x, y], 16, held=16):
        knots.requires_grad_(), scale.requires_grad_()
        miss = ys - (xs - knots).abs() @ scale
        loss = torch.where(miss > 0, 0.9 * miss, -0.1 * miss).mean()
        losses.append(float(loss.detach()))
        if len(losses) == SEEN:
            break
        down = torch.autograd.grad(loss, [knots, scale])
        knots, scale = (
            (p - 0.01 * g.sign()).detach() for p, g in zip((knots, scale), down, strict=True)
        )
    return losses


def yes_no() -> list[float]:
    table = digits()
    image, digit = table[:, :64].reshape(-1, 1, 8, 8) / 16, table[:, 64].long()
    targets = [digit % 2 == 0, torch.isin(digit, torch.tensor([0, 6, 8, 9])), digit == 0]
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
    )
    heads = nn.ModuleList([nn.Linear(4, 1) for _ in range(3)])
    net = nn.ModuleList([trunk, heads])

    def loss(net: Any, x: Any, even: Any, loop: Any, zero: Any) -> Any:
        features = trunk(x)
        p, q, r = (torch.sigmoid(head(features)[:, 0]) for head in heads)
        sure = loop * p + (1 - loop) * (1 - p)
        alpha = 0.25 * loop + 0.75 * (1 - loop)
        focal = -(alpha * (1 - sure) ** 1.5 * sure.log()).mean()
        low = (q - 0.05).clamp(min=0)
        asymmetric = -(even * q.log() + (1 - even) * low**4 * (1 - low).log()).mean()
        return focal + asymmetric + 2 * ((r - zero) ** 2).mean()

    sgd = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    data = batches([image, *(t.float() for t in targets)], 64, held=round(0.1 * 1797))
    return run(net, data, loss, sgd)


ORACLES: dict[str, Callable[[], list[float]]] = {
    "two_stages/expected/first.py": zero_first,
    "two_stages/expected/second_cold.py": digit_second,
    "real_values/expected/estimate_smooth_l1.py": level_and_drift,
    "soft_labels/expected/sort.py": soft_labels,
    "own_loss/expected/fit_line.py": quantile,
    "yes_no/expected/tell_none.py": yes_no,
}


@pytest.mark.parametrize("module", MODULES)
def test_plain_torch_finds_the_same_losses(
    module: str, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = first_losses(module, golden, tmp_path, monkeypatch)
    assert told == pytest.approx(ORACLES[module](), rel=1e-5)

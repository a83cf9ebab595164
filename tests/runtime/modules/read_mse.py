# A module in the style of the compiler's, written by hand for the tests of the runtime.
"""Read a digit and say whether it is drawn with a loop.

python tests/runtime/modules/read_mse.py --lr 0.003 --seed 2
"""

from dataclasses import dataclass

from torch import Tensor
from torch.optim import AdamW

from expc_runtime import floors, losses
from expc_runtime.checkpoint import Checkpoint
from expc_runtime.clocks import Epochs, Minutes
from expc_runtime.data.digits import Digits
from expc_runtime.data.feed import Feed
from expc_runtime.fit import fit
from expc_runtime.flags import Run, start
from expc_runtime.gates import Gate, Until
from expc_runtime.metrics import Accuracy, Brier
from expc_runtime.models import ConvNet, LinearHead
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive, decay_groups, warmup_cosine

PROGRAM = "5be1c0a7d2f4"  # names this program and its values; results carry it


@dataclass(frozen=True)
class Config(Run):
    """Every number the spec sets; each is a flag. Fields marked * are swept."""

    out: str = "runs/digits/by_hand/read_mse"
    # data
    batch: int = 64
    split_val: float = 0.2
    split_test: float = 0.1
    # model
    channels: tuple[int, ...] = (8, 16)
    # loss
    loop_weight: float = 0.5
    # optim
    lr: float = 0.003  # *
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    precision: str = "32"
    # until
    budget: int = 3
    at_least: float = 0.9


class Read(Module):
    """image (B, 1, 8, 8) -> digit (B, 10) class logits, loop (B,) logit."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = ConvNet(channels=cfg.channels)
        self.digit_head = LinearHead(self.backbone.out_features, out=10)
        self.loop_head = LinearHead(self.backbone.out_features, out=1)
        self.accuracy = Accuracy()
        self.loop_brier = Brier()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(image)
        digit = self.digit_head(features)
        loop = self.loop_head(features)
        return digit, loop

    def losses(
        self, digit: Tensor, loop: Tensor, digit_target: Tensor, loop_target: Tensor
    ) -> Tensor:
        loop_prob = loop.sigmoid()
        digit_loss = losses.cross_entropy(digit, digit_target)
        loop_loss = losses.mse(loop_prob, loop_target)
        total_model = digit_loss + self.cfg.loop_weight * loop_loss
        self.record(digit=digit_loss, loop=loop_loss, total_model=total_model)
        return total_model

    def update(self, batch: Batch) -> None:
        image, digit_target, loop_target = batch
        digit, loop = self(image)
        total_model = self.losses(digit, loop, digit_target, loop_target)
        self.step("model", total_model)

    def measure(self, batch: Batch) -> None:
        image, digit_target, loop_target = batch
        digit, loop = self(image)
        self.losses(digit, loop, digit_target, loop_target)
        self.accuracy.update(digit, digit_target)
        self.loop_brier.update(loop.sigmoid(), loop_target)

    def constants(self, batch: Batch) -> tuple[Tensor, ...]:
        """Constant answers of each head; the best of them is the floor any model must beat."""
        _, digit_target, loop_target = batch
        return floors.class_logits(digit_target, classes=10), floors.logits(loop_target)

    def drives(self) -> dict[str, Drive]:
        """One optimizer for each total, with its schedule, clip and accumulation."""
        cfg = self.cfg
        return {
            "model": Drive(
                AdamW(decay_groups(self, cfg.weight_decay), lr=cfg.lr, fused=True),
                schedule=warmup_cosine(warmup=Epochs(1)),
                clip=cfg.clip,
                accumulate=cfg.accumulate,
            )
        }


def main(cfg: Config) -> int:
    """Train, measure, write result.json; returns the exit code."""
    return fit(
        Read,
        cfg,
        Feed(
            Digits(),
            columns=("image", "digit", "loop"),
            batch=cfg.batch,
            val=cfg.split_val,
            test=cfg.split_test,
        ),
        until=Until(
            Epochs(cfg.budget), Gate("val/accuracy", at_least=cfg.at_least, otherwise="warn")
        ),
        precision=cfg.precision,
        checkpoint=Checkpoint(every=Minutes(10), keep=2),
        monitor={"best": "val/accuracy"},
        file=__file__,
        program=PROGRAM,
    )


if __name__ == "__main__":
    raise SystemExit(start(main, Config))

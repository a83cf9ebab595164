"""What only building a stage shows: `expc plan --check` finds these, on tensors that have shapes and no data."""

from __future__ import annotations

from expc.lint.core import DryRule


class CannotBeMade(DryRule):
    """A part of the stage can't be made from these values.

    A net, a metric or an optimizer raises where it is constructed, a module can't be imported, or a file does not hold what
    the spec says. The stage would fail when it starts, which can be hours after the sweep did.

    ```python lab.py
    from torch import Tensor, nn


    class Grouped(nn.Module):
        def __init__(self, width: int, groups: int = 4) -> None:
            super().__init__()
            if width % groups:
                raise ValueError(f"width={width} is no multiple of groups={groups}")
            self.conv = nn.Conv2d(1, width, 3)
            self.norm = nn.GroupNorm(groups, width)
            self.out_features = width

        def forward(self, image: Tensor) -> Tensor:
            return self.norm(self.conv(image)).mean((2, 3))
    ```

    ## Bad
    ```yaml
    model:
      backbone: {use: "lab:Grouped", width: 30}
    ```

    ## Good
    ```yaml
    model:
      backbone: {use: "lab:Grouped", width: 32}
    ```
    """

    code, name = "XC120", "cannot-be-made"


class HandOffMisfit(DryRule):
    """A part can't start from what another stage, or a file, holds for it.

    The keys or the shapes of the two parts differ. Every stage before would train, and then this one would refuse to start.

    ## Bad
    ```yaml whole
    expc: 1
    name: example
    about: Do digits help to see loops?
    stages:
      first:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        model: {backbone: {use: conv_net, channels: [8, 16]}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw, lr: 3.0e-3}
        until: {epochs: 2}
      second:
        kind: supervised
        init: {backbone: {from: first}}
        data: {use: digits, batch: 64, split: {val: 0.2}}
        model: {backbone: {use: conv_net, channels: [8, 32]}}
        heads: {loop: {use: linear_head, out: 1}}
        loss: {loop: {use: bce}}
        optim: {use: adamw, lr: 3.0e-3}
        until: {epochs: 2}
    ```

    ## Good
    ```yaml whole
    expc: 1
    name: example
    about: Do digits help to see loops?
    model: {backbone: {use: conv_net, channels: [8, 16]}}
    stages:
      first:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw, lr: 3.0e-3}
        until: {epochs: 2}
      second:
        kind: supervised
        init: {backbone: {from: first}}
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {loop: {use: linear_head, out: 1}}
        loss: {loop: {use: bce}}
        optim: {use: adamw, lr: 3.0e-3}
        until: {epochs: 2}
    ```
    """

    code, name = "XC220", "hand-off-misfit"


class UntrainedPart(DryRule):
    """No optimizer trains a part of the model.

    It would keep the values that it was made with, and the loss would fall all the same: the other parts learn around it.

    ```python lab.py
    from collections.abc import Iterable

    from torch import Tensor
    from torch.optim import SGD


    class Matrices(SGD):
        def __init__(self, params: Iterable[Tensor], lr: float, vectors: bool = False) -> None:
            super().__init__([p for p in params if vectors or p.ndim > 1], lr=lr)
    ```

    ## Bad
    ```yaml
    optim: {use: "lab:Matrices", lr: 0.1}
    ```

    ## Good
    ```yaml
    optim: {use: "lab:Matrices", lr: 0.1, vectors: true}
    ```
    """

    code, name = "XC221", "untrained-part"


class ShapesMisfit(DryRule):
    """A part of the model can't take the batch, or gives something else than it says.

    The next part and every head are made for `out_features` numbers a row, and a loss compares shapes. Batch norm can't train
    on one row: the last batch of an epoch may be that short.

    ```python lab.py
    from torch import Tensor, nn


    class Pooled(nn.Module):
        def __init__(self, width: int = 16, keep: bool = False) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, width, 3)
            self.keep = keep
            self.out_features = width

        def forward(self, image: Tensor) -> Tensor:
            cells = self.conv(image)
            return cells.flatten(1) if self.keep else cells.mean((2, 3))
    ```

    ## Bad
    ```yaml
    model:
      backbone: {use: "lab:Pooled", keep: true}
    ```

    ## Good
    ```yaml
    model:
      backbone: {use: "lab:Pooled"}
    ```
    """

    code, name = "XC320", "shapes-misfit"


class LossMisfit(DryRule):
    """A loss or a metric can't take the answer and its target, or gives no single number.

    Shapes must agree exactly, because broadcasting (N, 1) against (N,) trains something else in silence; and a sum of
    terms needs one number of each.

    ```python lab.py
    from torch import Tensor

    from expc_runtime.ports import Prob


    def off_by(pred: Prob, target: Prob, *, reduction: str = "mean", power: int = 2) -> Tensor:
        error = (pred - target).abs() ** power
        return error if power > 2 else error.mean()
    ```

    ## Bad
    ```yaml
    heads:
      loop: {use: linear_head, out: 1}
    loss:
      loop: {use: "lab:off_by", power: 4}
    metrics:
      brier: {use: brier, of: loop}
    ```

    ## Good
    ```yaml
    heads:
      loop: {use: linear_head, out: 1}
    loss:
      loop: {use: "lab:off_by", power: 2}
    metrics:
      brier: {use: brier, of: loop}
    ```
    """

    code, name = "XC321", "loss-misfit"

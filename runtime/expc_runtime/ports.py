"""Names for what a tensor means, for the annotations of your own losses, metrics and models.

To torch each of them is a `Tensor`. The compiler reads the annotations from the source text and
checks with them that a loss is given what it was written for:

    def hinge(pred: BinaryLogits, target: Prob, *, reduction: str = "mean") -> Tensor: ...
"""

from typing import TypeAlias

from torch import Tensor

Features: TypeAlias = Tensor  # (B, F) floats
BinaryLogits: TypeAlias = Tensor  # (B,) or (B, L) log odds of yes
ClassLogits: TypeAlias = Tensor  # (B, C) unnormalised log probabilities
ClassProbs: TypeAlias = Tensor  # (B, C) rows of probabilities
Prob: TypeAlias = Tensor  # (B,) or (B, L) probabilities in [0, 1]
Real: TypeAlias = Tensor  # (B,) or (B, L) any real number
Image: TypeAlias = Tensor  # (..., H, W, C) real numbers
ClassId: TypeAlias = Tensor  # (B,) integers in [0, C)
Latent: TypeAlias = dict[str, Tensor]  # a state: tensors by name, rows first

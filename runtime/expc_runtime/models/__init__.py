"""Networks: backbones that say their `out_features`, and heads that read features."""

from expc_runtime.models.conv import ConvNet
from expc_runtime.models.heads import LinearHead
from expc_runtime.models.mlp import MLP

__all__ = ["MLP", "ConvNet", "LinearHead"]

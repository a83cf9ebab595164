"""Networks: backbones that say their `out_features`, and heads that read features."""

from expc_runtime.models.conv import ConvNet
from expc_runtime.models.heads import LinearHead
from expc_runtime.models.mixer import MLPMixer
from expc_runtime.models.mlp import MLP
from expc_runtime.models.resnet import ResNet
from expc_runtime.models.vit import PlanesViT, ViT

__all__ = ["MLP", "ConvNet", "LinearHead", "MLPMixer", "PlanesViT", "ResNet", "ViT"]

"""Frozen backbones: they map images in [0, 1] to a list of feature maps; timm (2.5 s) is imported on first use."""

from .eight_bit import round_weights
from .frozen import FeatureExtractor, FrozenFeatures, ImageNormalization, average_pool, layer_norm
from .timm_features import TimmFeatures
from .timm_module import available_strides, fitting_strides
from .views import ConcatenatedMaps, GroupedMaps, ImagePyramid, PooledViews, RandomChannels, rotations

__all__ = [
    "ConcatenatedMaps", "FeatureExtractor", "FrozenFeatures", "GroupedMaps", "ImageNormalization", "ImagePyramid",
    "PooledViews", "RandomChannels", "TimmFeatures", "available_strides", "average_pool", "fitting_strides",
    "layer_norm", "rotations", "round_weights",
]  # fmt: skip

"""Frozen backbones: images in [0, 1] in, a list of feature maps out.

Importing this package does not import timm (2.5 s); building a `TimmFeatures` does.
"""

from semflow.features.frozen import FeatureExtractor, FrozenFeatures, ImageNormalisation, average_pool
from semflow.features.levels import available_strides
from semflow.features.module import ModuleFeatures
from semflow.features.timm_features import TimmFeatures

__all__ = [
    "FeatureExtractor",
    "FrozenFeatures",
    "ImageNormalisation",
    "ModuleFeatures",
    "TimmFeatures",
    "available_strides",
    "average_pool",
]

"""Frozen backbones: images in [0, 1] in, a list of feature maps out.

Importing this package does not import timm (2.5 s); building a `TimmFeatures` does.
"""

from semflow.features.frozen import FeatureExtractor, FrozenFeatures, ImageNormalisation, average_pool, layer_norm
from semflow.features.levels import available_strides, fitting_strides
from semflow.features.module import ModuleFeatures
from semflow.features.timm_features import TimmFeatures
from semflow.features.views import ImagePyramid, PooledViews, rotations

__all__ = [
    "FeatureExtractor",
    "FrozenFeatures",
    "ImageNormalisation",
    "ImagePyramid",
    "ModuleFeatures",
    "PooledViews",
    "TimmFeatures",
    "available_strides",
    "average_pool",
    "fitting_strides",
    "layer_norm",
    "rotations",
]

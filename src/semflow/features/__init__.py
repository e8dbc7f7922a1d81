"""Frozen backbones: images in [0, 1] in, a list of feature maps out.

Importing this package does not import timm (2.5 s); building a `TimmFeatures` does.
"""

from .frozen import FeatureExtractor, FrozenFeatures, ImageNormalization, average_pool, layer_norm
from .levels import available_strides, fitting_strides
from .module import ModuleFeatures
from .timm_features import TimmFeatures
from .views import ImagePyramid, PooledViews, rotations

__all__ = [
    "FeatureExtractor",
    "FrozenFeatures",
    "ImageNormalization",
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

"""Networks around a flow: position codes, subnets, and the statistics network with its variance heads."""

from .position import FourierPosition2d, LearnedPosition2d, PositionCode, PositionTables, SinusoidalPosition2d
from .statistics_network import FeatureStatisticsNetwork, StatisticsNetwork
from .subnets import Context, ConvSubnet, LocationSubnet, Subnet, SubnetFactory
from .variance import FixedVariance, InverseGammaVariance, LearnedVariance, PredictedMean, Statistics, VarianceHead

__all__ = [
    "Context",
    "ConvSubnet",
    "FeatureStatisticsNetwork",
    "FixedVariance",
    "FourierPosition2d",
    "InverseGammaVariance",
    "LearnedPosition2d",
    "LearnedVariance",
    "LocationSubnet",
    "PositionCode",
    "PositionTables",
    "PredictedMean",
    "SinusoidalPosition2d",
    "Statistics",
    "StatisticsNetwork",
    "Subnet",
    "SubnetFactory",
    "VarianceHead",
]

"""Networks used by flows: position codes, subnets, the statistics network and variance heads."""

from .cross_scale import ChannelNorm, CrossScaleConvs, CrossScaleSubnetFactory, FusionSubnet
from .modes import in_eval_mode, switched_to_eval
from .network_subnet import NetworkSubnet
from .position import FourierPosition2d, LearnedPosition2d, PositionCode, PositionTables, SinusoidalPosition2d
from .statistics_network import FeatureStatisticsNetwork, StatisticsNetwork
from .subnets import Context, ConvSubnet, LocationSubnet, PerceptronSubnet, Subnet, SubnetFactory
from .variance import FixedVariance, InverseGammaVariance, LearnedVariance, PredictedMean, Statistics, VarianceHead

__all__ = [
    "ChannelNorm", "Context", "ConvSubnet", "CrossScaleConvs", "CrossScaleSubnetFactory", "FeatureStatisticsNetwork",
    "FixedVariance", "FourierPosition2d", "FusionSubnet", "InverseGammaVariance", "LearnedPosition2d",
    "LearnedVariance", "LocationSubnet", "NetworkSubnet", "PerceptronSubnet", "PositionCode", "PositionTables",
    "PredictedMean", "SinusoidalPosition2d", "Statistics", "StatisticsNetwork", "Subnet", "SubnetFactory",
    "VarianceHead", "in_eval_mode", "switched_to_eval",
]  # fmt: skip

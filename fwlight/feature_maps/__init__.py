"""Feature maps phi on queries and keys, one file a family."""

from fwlight.feature_maps.base import FeatureMap
from fwlight.feature_maps.dpfp import DPFPFeatureMap
from fwlight.feature_maps.elementwise import (
    EluFeatureMap,
    IdentityFeatureMap,
    ReLUFeatureMap,
    SiLUFeatureMap,
    TanhFeatureMap,
)
from fwlight.feature_maps.favor import FAVORFeatureMap
from fwlight.feature_maps.quadratic import QuadraticFeatureMap
from fwlight.feature_maps.softmax import SoftmaxFeatureMap

__all__ = [
    "DPFPFeatureMap",
    "EluFeatureMap",
    "FAVORFeatureMap",
    "FeatureMap",
    "IdentityFeatureMap",
    "QuadraticFeatureMap",
    "ReLUFeatureMap",
    "SiLUFeatureMap",
    "SoftmaxFeatureMap",
    "TanhFeatureMap",
]

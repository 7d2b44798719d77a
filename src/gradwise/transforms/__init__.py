"""Decide: transforms that choose one affine map a gradient from its moments."""

from gradwise.transforms._agc import AGC
from gradwise.transforms._autoclip import AutoClip
from gradwise.transforms._autoscale import Autoscale
from gradwise.transforms._center import Center
from gradwise.transforms._chain import Chain, chain
from gradwise.transforms._clip import ClipNorm
from gradwise.transforms._lagged import Lagged
from gradwise.transforms._zclip import ZClip
from gradwise.transforms._znorm import ZNorm
from gradwise.transforms.base import State, Transform, decide

__all__ = [
    "AGC",
    "AutoClip",
    "Autoscale",
    "Center",
    "Chain",
    "ClipNorm",
    "Lagged",
    "State",
    "Transform",
    "ZClip",
    "ZNorm",
    "chain",
    "decide",
]

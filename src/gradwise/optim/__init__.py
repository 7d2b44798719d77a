"""Optimizers: torch's conventions, transforms inside, one file a method."""

from gradwise.optim._adamomentum import AdaMomentum
from gradwise.optim._adamw import AdamW
from gradwise.optim._adarem import AdaRem
from gradwise.optim._hgm import HGM
from gradwise.optim._implicit import ImplicitSGD
from gradwise.optim._kalman import RKalman
from gradwise.optim._natural import RENG, RING
from gradwise.optim._ota import AdaGradOTA, AdamOTA
from gradwise.optim._sgd import SGD
from gradwise.optim._sgdf import SGDF

__all__ = [
    "HGM",
    "RENG",
    "RING",
    "SGD",
    "SGDF",
    "AdaGradOTA",
    "AdaMomentum",
    "AdaRem",
    "AdamOTA",
    "AdamW",
    "ImplicitSGD",
    "RKalman",
]

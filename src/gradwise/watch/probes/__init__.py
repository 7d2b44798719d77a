"""Probes: what costs a pass of its own over weights or gradients, and is measured now and then."""

from gradwise.watch.probes.directions import Directions
from gradwise.watch.probes.histograms import Histograms
from gradwise.watch.probes.weights import Weights, module_of

__all__ = ["Directions", "Histograms", "Weights", "module_of"]

"""The metrics that runs have, in words: what they are called, and how they are drawn."""

from dataclasses import dataclass
from typing import Any

__all__ = ["LayerMetric", "layer_metric"]

_TITLES = {
    "norm": ("Norm", "positive"),
    "std": ("Std", "positive"),
    "mean": ("Mean", "signed"),
    "var": ("Variance", "positive"),
    "max_abs": ("Largest", "positive"),
    "zeros": ("Zeros", "share"),
    "nonfinite": ("Not finite", "positive"),
    "weight_norm": ("Weight norm", "positive"),
    "update_norm": ("Update norm", "positive"),
    "update_ratio": ("Update ratio", "positive"),
    "cosine": ("Cosine", "signed"),
    "sign_agreement": ("Same sign", "share"),
}

_MEANINGS = {
    "norm": "Euclidean norm of the layer's gradient",
    "std": "Standard deviation of the entries of the layer's gradient",
    "mean": "Mean of the entries of the layer's gradient",
    "var": "Variance of the entries of the layer's gradient",
    "max_abs": "Largest magnitude in the layer's gradient",
    "zeros": "Share of the gradient's entries that are exactly zero",
    "nonfinite": "Number of the gradient's entries that are NaN or infinite",
    "weight_norm": "Euclidean norm of the layer's weights",
    "update_norm": "Euclidean norm of what a step added to the weights",
    "update_ratio": "Norm of what a step added to the weights, divided by their norm",
    "cosine": "Cosine to the layer's previous sampled gradient",
    "sign_agreement": "Share of entries with the sign they had in the previous sampled gradient",
}


_EVEN = {"weight_norm", "nonfinite"}  # of a layer they vary little, or are mostly zero


@dataclass(frozen=True)
class LayerMetric:
    """Something that is recorded of each layer.

    Attributes:
        key: its column.
        title: a word or two.
        meaning: what it is, or nothing where gradwise does not know it.
        kind: "positive", "signed" or "share" (0 to 1).
        rank: where it stands among the others.
    """

    key: str
    title: str
    meaning: str
    kind: str
    rank: int

    def payload(self) -> dict[str, Any]:
        """The metric as the page's script reads it."""
        log = self.kind == "positive" and self.key not in _EVEN
        return {
            "key": self.key,
            "title": self.title,
            "meaning": self.meaning,
            "kind": self.kind,
            "axis": "log" if log else "linear",
        }


def layer_metric(key: str) -> LayerMetric:
    """What is known of a metric; one that gradwise does not know may have any sign.

    Args:
        key: its column.

    Examples:
        >>> layer_metric("max_abs").title, layer_metric("entropy").kind
        ('Largest', 'signed')
    """
    title, kind = _TITLES.get(key, (key, "signed"))
    rank = list(_TITLES).index(key) if key in _TITLES else len(_TITLES)
    return LayerMetric(key, title, _MEANINGS.get(key, ""), kind, rank)

"""What the pictures of reproduction and analysis pages draw."""

import numpy as np
import pytest
from scipy import stats

from gradwise.report.drawing import axes, band

ROWS = [[1.0, 2.0, np.nan], [3.0, 8.0, np.nan], [5.0, 32.0, np.inf]]


def drawn(geometric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The line, and the lower and upper edge of the band."""
    with axes(1, 1) as (_, axis):
        band(axis, [0.0, 1.0, 2.0], ROWS, "name", geometric=geometric)
        line = np.asarray(axis.lines[0].get_ydata())
        corners = np.concatenate([path.vertices for path in axis.collections[0].get_paths()])
    edges = [corners[corners[:, 0] == x, 1] for x in (0.0, 1.0)]
    return line, np.array([e.min() for e in edges]), np.array([e.max() for e in edges])


def test_a_band_is_students_interval() -> None:
    line, low, high = drawn(geometric=False)
    values = np.array(ROWS)[:, :2]
    np.testing.assert_allclose(line[:2], values.mean(0))
    assert np.isnan(line[2])
    half = stats.t.ppf(0.975, 2) * values.std(0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(low, values.mean(0) - half)
    np.testing.assert_allclose(high, values.mean(0) + half)
    assert low[1] < 0  # what a logarithmic axis could not show


def test_a_geometric_band_is_that_of_logarithms() -> None:
    line, low, high = drawn(geometric=True)
    logs = np.log(np.array(ROWS)[:, :2])
    half = stats.t.ppf(0.975, 2) * logs.std(0, ddof=1) / np.sqrt(3)
    assert line[1] == pytest.approx(8.0)
    np.testing.assert_allclose(low, np.exp(logs.mean(0) - half))
    np.testing.assert_allclose(high, np.exp(logs.mean(0) + half))
    assert (low > 0).all()

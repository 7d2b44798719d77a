"""Amending in tests, and checking that every picture agrees with the records."""

import numpy as np
import numpy.typing as npt

from gradwise.watch.store import Run, RunWriter

NAN = float("nan")


def amend(writer: RunWriter, values: dict[int, float], name: str = "late") -> None:
    """Amend one metric: step -> value."""
    writer.amend(np.array(list(values)), {name: np.array(list(values.values()))})


def late_values(steps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """What the tests amend: exact, and different at every step."""
    return np.asarray(steps) * 7 / 4 + 1


def check_pictures(run: Run, name: str = "late") -> None:
    """The bins are those of the records as they are now, in every number of points."""
    table = run.steps
    steps = table["step"].to_numpy()
    values = table[name].to_numpy() if name in table.column_names else np.full(len(steps), NAN)
    for points in (1, 10, 1000):
        bins = run.downsampled_steps(points)
        if name not in bins.names:
            assert np.all(np.isnan(values))
            continue
        at = bins.names.index(name)
        for i, (first, last) in enumerate(zip(bins.first_step, bins.last_step, strict=True)):
            inside = values[(steps >= first) & (steps <= last)]
            inside = inside[~np.isnan(inside)]
            assert bins.count[i, at] == len(inside)
            if len(inside):
                assert bins.min[i, at] == inside.min()
                assert bins.max[i, at] == inside.max()
                np.testing.assert_allclose(bins.mean[i, at], inside.mean())

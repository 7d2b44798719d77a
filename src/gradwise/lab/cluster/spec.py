"""From `--cluster` to a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gradwise.errors import UserError
from gradwise.lab.cluster.base import Cluster

_EXPECTED = (
    "expected cluster to be ray, ray://HOST:PORT, ray:HOST:PORT, slurm, or slurm with options of "
    "sbatch such as slurm:partition=gpu,time=60"
)


@contextlib.contextmanager
def open_cluster(spec: str) -> Iterator[Cluster]:
    """Connect to a cluster, and disconnect in the end.

    Args:
        spec: `ray` (the cluster that this machine is part of, or that `RAY_ADDRESS` names),
            `ray://HOST:PORT` (from outside, through Ray's client server), `ray:HOST:PORT` (the
            cluster with that head, of which this machine is part), `slurm`, or
            `slurm:OPTION=VALUE,...` with long options of sbatch.

    Returns:
        A context with the cluster.

    Raises:
        UserError: where the text is none of these, the client is not installed, or the cluster does
            not answer.

    Examples:
        >>> with open_cluster("kubernetes") as cluster:
        ...     pass
        Traceback (most recent call last):
        gradwise.errors.UserError: expected cluster to be ray, ray://HOST:PORT, ...
    """
    kind, _, rest = spec.strip().partition(":")
    cluster: Cluster
    if kind == "ray" and (rest or ":" not in spec):
        from gradwise.lab.cluster.on_ray import RayCluster

        cluster = RayCluster(f"ray:{rest}" if rest.startswith("//") else rest or None)
    elif kind == "slurm" and (rest or ":" not in spec):
        from gradwise.lab.cluster.on_slurm import SlurmCluster, parse_options

        cluster = SlurmCluster(parse_options(rest))
    else:
        raise UserError(f"{_EXPECTED}; got {spec!r}")
    with contextlib.closing(cluster):
        yield cluster

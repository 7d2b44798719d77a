"""Trials on the machines of a Ray or Slurm cluster, with the comparison's folder shared by all."""

from gradwise.lab.cluster.base import Cluster, Task
from gradwise.lab.cluster.spec import open_cluster
from gradwise.lab.cluster.sweep import plan_there, run_there

__all__ = ["Cluster", "Task", "open_cluster", "plan_there", "run_there"]

"""What a watch measures, also in the tool where a team keeps its curves.

No tool is imported before a sink for it is made.
"""

from gradwise.watch.sinks.base import Sink
from gradwise.watch.sinks.feed import SinkFeed
from gradwise.watch.sinks.mlflow import MLflow
from gradwise.watch.sinks.names import layer_name, step_name
from gradwise.watch.sinks.tensorboard import TensorBoard
from gradwise.watch.sinks.trackio import Trackio
from gradwise.watch.sinks.wandb import WandB

__all__ = [
    "MLflow",
    "Sink",
    "SinkFeed",
    "TensorBoard",
    "Trackio",
    "WandB",
    "layer_name",
    "step_name",
]

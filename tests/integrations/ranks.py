"""A script: two processes train together under Accelerate and under Lightning.

    python ranks.py FOLDER

writes into the folder what each process found. The processes are forks of one that has imported
everything and trained nothing. Where a launcher has started this process as one of several,

    torchrun --nproc-per-node 2 ranks.py FOLDER
    accelerate launch --cpu --num_processes 2 --mpirun_hostfile HOSTS ranks.py FOLDER

it is one of two that train under Accelerate.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

STEPS = 4


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    """The micro-batches of one process, two a step."""
    made = torch.Generator().manual_seed(rank)
    return [
        (torch.randn(4, 6, generator=made), torch.randint(3, (4,), generator=made))
        for _ in range(2 * STEPS)
    ]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def report(
    folder: Path, name: str, rank: int, watch: Any, model: nn.Module, events: Any = ()
) -> None:
    found = {
        "events": list(events),
        "path": None if watch.path is None else str(watch.path),
        "step": watch.step,
        "params": [p.detach() for p in model.parameters()],
    }
    torch.save(found, folder / f"{name}-{rank}.pt")


def under_accelerate(folder: Path) -> None:
    from accelerate import Accelerator

    from gradwise.integrations.accelerate import watch
    from gradwise.transforms import Autoscale

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model, optimizer = accelerator.prepare(model, optimizer)
    assert isinstance(model, nn.parallel.DistributedDataParallel)
    out = folder / "accelerate"
    made = watch(accelerator, optimizer, model, out, transforms=[Autoscale()], noise_every=1)
    events: list[str] = []
    made.attachment.readers.append(lambda *_: events.append("read"))
    made.optimizer.register_step_post_hook(lambda *_: events.append("update"))
    for batch in batches(accelerator.process_index):
        with accelerator.accumulate(model):
            loss = loss_of(model, batch)
            accelerator.backward(loss)
            events.append("backward")
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
                events.append("clip")
            optimizer.step()
            optimizer.zero_grad()
        accelerator.log({"loss": loss.detach()})
    report(folder, "accelerate", accelerator.process_index, made, model, events)
    accelerator.end_training()


def lightning_module(done: Callable[[Any], None]) -> Any:
    """A class of modules that train `network()`; `done` gets the module after the training."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def train_dataloader(self) -> Any:
            return DataLoader(batches(self.global_rank), batch_size=None)  # type: ignore[arg-type]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = loss_of(self.net, batch)
            self.log("loss", loss, batch_size=4)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.5)

        def on_train_end(self) -> None:
            done(self)

    return Module


def lightning_trainer(**options: Any) -> Any:
    """A Trainer on two processes that keeps quiet, with two micro-batches a step."""
    import lightning.pytorch as pl

    return pl.Trainer(
        accelerator="cpu",
        devices=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,
        **options,
    )


def under_lightning(folder: Path) -> None:
    from gradwise.integrations.lightning import WatchCallback
    from gradwise.transforms import Autoscale

    def done(module: Any) -> None:
        report(folder, "lightning", module.global_rank, callback.watches[0], module)

    callback = WatchCallback(transforms=[Autoscale()], noise_every=1)
    lightning_trainer(
        max_epochs=1,
        strategy="ddp_fork",
        callbacks=[callback],
        default_root_dir=folder / "lightning",
    ).fit(lightning_module(done)())
    assert callback.watches == ()  # they were the other processes'


def main() -> None:
    folder = Path(sys.argv[1])
    os.environ.update(GLOO_SOCKET_IFNAME="lo", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of three libraries; the tests see those of one process
    if {"WORLD_SIZE", "PMI_SIZE"} & os.environ.keys():  # by torchrun, by MPI
        under_accelerate(folder)
        return
    from accelerate.launchers import debug_launcher

    debug_launcher(under_accelerate, (folder,), num_processes=2)
    under_lightning(folder)


if __name__ == "__main__":
    main()

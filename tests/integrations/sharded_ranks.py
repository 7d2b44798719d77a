"""A script: two processes that share the parameters train under a host, stop and go on.

    torchrun --nproc-per-node 2 sharded_ranks.py FOLDER lightning|accelerate|transformers PART

writes into the folder what each process has in the end. The parts are `first`, which leaves a
checkpoint in the middle, `second`, which goes on from it, and, with transformers, `whole`.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from gradwise.transforms import Autoscale
from integrations.ranks import (
    STEPS,
    batches,
    lightning_module,
    lightning_trainer,
    loss_of,
    network,
)

HALF = STEPS // 2  # steps; there are two micro-batches in each


def report(folder: Path, name: str, watch: Any, model: nn.Module) -> None:
    params: list[Any] = list(model.parameters())
    found = {
        "rows": [p.to_local().shape[0] for p in params],
        "params": [p.full_tensor().detach() for p in params],
        "path": None if watch.path is None else str(watch.path),
        "state": watch.optimizer._gradwise_attachment.state_dict()["state"],
    }
    torch.save(found, folder / f"{name}-{os.environ['RANK']}.pt")


def under_lightning(folder: Path, part: str) -> None:
    from lightning.pytorch.strategies import ModelParallelStrategy

    from gradwise.integrations.lightning import WatchCallback

    second = part == "second"

    def done(module: Any) -> None:
        report(folder, "lightning", callback.watches[0], module)

    class Module(lightning_module(done)):  # type: ignore[misc]
        def configure_model(self) -> None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def train_dataloader(self) -> Any:
            at = 2 * HALF * self.trainer.current_epoch
            half = batches(self.global_rank)[at : at + 2 * HALF]
            return DataLoader(half, batch_size=None)  # type: ignore[arg-type]

    callback = WatchCallback(folder / "lightning", transforms=[Autoscale()])
    trainer = lightning_trainer(
        max_epochs=2 if second else 1,
        reload_dataloaders_every_n_epochs=1,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        callbacks=[callback],
        default_root_dir=folder,
    )
    trainer.fit(Module(), ckpt_path=folder / "half.ckpt" if second else None)
    if not second:
        trainer.save_checkpoint(folder / "half.ckpt")


def as_if_on_gpus() -> None:
    """Accelerate shards on those alone, for no reason but a word."""
    from accelerate.state import DistributedType, PartialState

    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def under_accelerate(folder: Path, part: str) -> None:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    from gradwise.integrations.accelerate import watch

    second = part == "second"
    as_if_on_gpus()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=1
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, gradient_accumulation_steps=2)
    assert accelerator.is_fsdp2
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model, optimizer = accelerator.prepare(model, optimizer)
    made = watch(accelerator, optimizer, model, folder / "accelerate", transforms=[Autoscale()])
    if second:
        accelerator.load_state(str(folder / "half"))
    begin = 2 * HALF if second else 0
    for batch in batches(accelerator.process_index)[begin : begin + 2 * HALF]:
        with accelerator.accumulate(model):
            loss = loss_of(model, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.log({"loss": loss.detach()})
    if not second:
        accelerator.save_state(str(folder / "half"))
    report(folder, "accelerate", made, model)
    accelerator.end_training()


def under_transformers(folder: Path, part: str) -> None:
    from transformers import Trainer, TrainingArguments

    from gradwise.integrations.transformers import WatchCallback
    from integrations.hf_models import language_model, sentences

    name = "whole" if part == "whole" else "transformers"
    options = TrainingArguments(
        str(folder / f"{name}-checkpoints"),
        per_device_train_batch_size=2,
        max_steps=HALF if part == "first" else STEPS,
        save_steps=HALF,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        lr_scheduler_type="constant",
        learning_rate=0.05,
        fsdp=True,
        fsdp_config={"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
    )
    as_if_on_gpus()
    callback = WatchCallback(folder / name, transforms=[Autoscale()])
    trainer = Trainer(language_model(), options, train_dataset=sentences(16), callbacks=[callback])
    assert trainer.accelerator.is_fsdp2
    trainer.train(resume_from_checkpoint=part == "second")
    report(folder, name, callback.watch, trainer.model_wrapped)


def main() -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of three libraries; the tests see those of one process
    globals()[f"under_{sys.argv[2]}"](Path(sys.argv[1]), sys.argv[3])


if __name__ == "__main__":
    main()

"""`gradwise compare`: train methods side by side and say which one helps."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click


@click.command(short_help="Train methods side by side and say which one helps.")
@click.option(
    "--data",
    default="digits",
    show_default=True,
    metavar="NAME|MODULE:FUNCTION",
    help="digits (needs no files), cifar10, cifar100, fashion-mnist, mnist, or a "
    "function of yours that returns train_x, train_y, test_x, test_y.",
)
@click.option("--data-dir", metavar="DIR", help="Folder with the data set's files.")
@click.option(
    "--model",
    metavar="NAME|MODULE:FUNCTION",
    help="digits-resnet, mlp, resnet20, resnet32, resnet56, vgg16bn, or a function of "
    "yours that takes num_classes and in_shape.  [default: by data]",
)
@click.option(
    "--methods",
    default="sgd,center,autoscale,znorm,clip",
    show_default=True,
    metavar="LIST",
    help="What to compare: optimizers of torch (sgd, adamw, ...), optimizers and transforms of "
    "gradwise (see `gradwise methods`), with arguments, as clip(max_norm=0.5), or joined, as "
    "adamw+center+clip.",
)
@click.option(
    "--baseline",
    metavar="METHOD",
    help="What the others are compared with.  [default: the first of torch's optimizers]",
)
@click.option(
    "--seeds",
    default="3",
    show_default=True,
    metavar="N|LIST",
    help="Number of seeds, or a list such as 0,1,5; the one seed 7 is written '7,'.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the comparison; the same folder goes on where it stopped.  "
    "[default: runs/DATA-MODEL]",
)
@click.option("--epochs", type=int, help="Passes over the training set.  [default: by data]")
@click.option("--batch-size", type=int, help="Rows a step.  [default: by data]")
@click.option(
    "--optimizer", help="Optimizer under every method that is a transform.  [default: sgd]"
)
@click.option(
    "--lr",
    metavar="RATE|LIST",
    help="Peak learning rate of all methods. Of a list such as 0.01,0.1,1 every method runs with "
    "each, and is judged by the one that does best on training rows that are held out for that.  "
    "[default: 0.1 for sgd, 0.001 for adamw, ..., of gradwise's own what their papers say]",
)
@click.option(
    "--validation",
    type=float,
    metavar="SHARE",
    help="Share of the training rows that a list of learning rates holds out.  [default: 0.1]",
)
@click.option(
    "--momentum", type=float, help="Momentum of optimizers that have one.  [default: 0.9]"
)
@click.option("--weight-decay", type=float, help="Weight decay.  [default: 0.0005]")
@click.option("--schedule", help="cosine, step or constant.  [default: cosine]")
@click.option("--warmup-epochs", type=float, help="Epochs of linear warm-up.  [default: 0]")
@click.option(
    "--augment",
    help="none, standard (crop and flip) or strong (and cutout, mixup, "
    "label smoothing).  [default: standard]",
)
@click.option("--limit-train", type=int, metavar="N", help="Use N training rows only.")
@click.option("--limit-test", type=int, metavar="N", help="Use N test rows only.")
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps.  [default: auto]")
@click.option(
    "--amp", help="Mixed precision: auto, off, bf16, fp16.  [default: auto, which is off on a CPU]"
)
@click.option(
    "--compile",
    is_flag=True,
    default=None,
    help="Compile every model with torch.compile, on a GPU as CUDA graphs. Where that is not "
    "possible, trials run without, and say so.",
)
@click.option(
    "--threads",
    type=int,
    help="CPU threads a trial; part of the settings, because sums depend on it.  [default: 1]",
)
@click.option(
    "--record-every",
    type=int,
    metavar="K",
    help="Record the gradients' dynamics every K steps; 0 for never.  [default: 1]",
)
@click.option(
    "--jobs",
    type=int,
    help="Trials at a time; never more than the CPU has cores for.  [default: fills the CPU's "
    "cores, or one a GPU]",
)
@click.option(
    "--per-device",
    type=int,
    metavar="K",
    help="Trials that share a GPU, as its memory allows; with several GPUs, on each.  [default: 1]",
)
@click.option(
    "--cluster",
    metavar="SPEC",
    help="Run the trials on a cluster, with --out on storage that its machines share: ray, "
    "ray://HOST:PORT, slurm, or slurm:partition=gpu,time=60 with options of sbatch. --jobs is then "
    "how many are sent at a time.  [default: this machine]",
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of a table.")
def compare(
    data: str,
    methods: str,
    baseline: str | None,
    seeds: str,
    lr: str | None,
    out: Path | None,
    jobs: int | None,
    per_device: int | None,
    cluster: str | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Train several methods from the same weights on the same batches, and compare them.

    Every method runs with every seed, each trial in a process of its own. The differences in test
    accuracy to the baseline are paired by seed; the table says of each method whether it is
    better, worse, or whether no difference was detected. The folder gets report.html, report.md
    and summary.json. After Ctrl-C or a crash, the same command finishes the job; methods and seeds
    can be added to a finished one, and learning rates to a list of them.

    \b
    Examples:
      gradwise compare --methods sgd,autoscale,clip --seeds 5
      gradwise compare --data cifar10 --data-dir ~/data --model resnet20 --epochs 30
      gradwise compare --optimizer adamw --methods "adamw,autoscale,clip(max_norm=0.5)"
      gradwise compare --methods "adamw,sgdf,hgm(gamma=0.3)" --lr 0.001,0.01,0.1,1
      gradwise compare --data my_module:load --model my_module:net --out runs/mine
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    from gradwise.cli.output import print_json
    from gradwise.cli.progress import follow
    from gradwise.cli.table import print_comparison
    from gradwise.errors import UserError
    from gradwise.lab.cluster import open_cluster
    from gradwise.lab.compare import compare_methods
    from gradwise.lab.methods import split_methods
    from gradwise.lab.settings import parse_rates, parse_seeds, settings_for
    from gradwise.report import write_report

    if ":" in f"{data}{given['model'] or ''}":
        # Code of the user's finds its neighbours, also those that it imports late.
        sys.path.append(os.getcwd())
    rates = None if lr is None else parse_rates(lr)
    settings = settings_for(data, {**given, "lr": rates})  # the other options are its fields
    names, numbers = split_methods(methods), parse_seeds(seeds)
    folder = out or Path("runs") / f"{data}-{settings.model}".replace(":", "-").replace("/", "-")
    # Standard output is for the answer: what code of the user's prints goes elsewhere.
    told = contextlib.redirect_stdout(sys.stderr)
    trials = len(names) * len(numbers) * max(len(settings.grid), 1)
    there = contextlib.nullcontext() if cluster is None else open_cluster(cluster)
    with there as machines, told, follow(trials) as listen:
        summary = compare_methods(
            settings,
            names,
            numbers,
            folder,
            baseline=baseline,
            jobs=jobs,
            per_device=per_device,
            cluster=machines,
            command=shlex.join(["gradwise", *click.get_current_context().find_root().obj]),
            listen=listen,
            tell=lambda text: click.echo(f"gradwise: {text}", err=True),
        )
    if as_json:
        print_json(summary)
    else:
        print_comparison(summary)
    try:
        pages = write_report(folder)
    except UserError as error:  # not the user's mistake here, and no reason to lose the answer
        click.echo(f"gradwise: {error}", err=True)
        return 1
    if not as_json:
        click.echo(f"\nreport: {pages[0]}")
    return 0 if summary["finished"] else 1

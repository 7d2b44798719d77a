"""What the subcommands of `gradwise analyse` share: options, loading, progress, the answer."""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
from torch import nn

from gradwise.cli.analyse._answer import Answer, check_out, print_answer, record, write_folder
from gradwise.cli.analyse._own import user_code
from gradwise.cli.analyse._problem import Problem, Samples
from gradwise.errors import UserError

__all__ = ["Answer", "Given", "Problem", "analysis_options"]

Tell = Callable[[int, int], None]

_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "model": click.option(
        "--model",
        metavar="NAME|MODULE:FUNCTION",
        help="digits-resnet, mlp, resnet20, resnet32, resnet56, vgg16bn, or a function of yours "
        "that takes nothing, or num_classes and in_shape.  [default: by data]",
    ),
    "data": click.option(
        "--data",
        default="digits",
        show_default=True,
        metavar="NAME|MODULE:FUNCTION",
        help="digits (needs no files), cifar10, cifar100, fashion-mnist, mnist, or a function of "
        "yours that returns (inputs, targets), a loader of such batches, or train and test sets.",
    ),
    "data_dir": click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder with the data set's files.",
    ),
    "weights": click.option(
        "--weights",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Weights to measure at: a state dict saved by torch.save, or a checkpoint that holds "
        "one.  [default: fresh ones]",
    ),
    "loss": click.option(
        "--loss",
        metavar="NAME|MODULE:FUNCTION",
        help="cross-entropy, mse, or a function of yours of outputs and targets, the mean over a "
        "batch.  [default: by targets]",
    ),
    "split": click.option(
        "--split",
        type=click.Choice(["train", "test"]),
        default="train",
        show_default=True,
        help="Which set, where there are two.",
    ),
    "limit": click.option("--limit", type=int, metavar="N", help="The first N samples only."),
    "batch_size": click.option(
        "--batch-size",
        type=int,
        metavar="B",
        help="Samples a batch; a loader of yours has its own.",
    ),
    "device": click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."
    ),
    "seed": click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Of fresh weights and of all draws.",
    ),
    "as_json": click.option("--json", "as_json", is_flag=True, help="Print JSON instead of words."),
    "out": click.option(
        "--out",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder for analysis.json and the page with its pictures.",
    ),
}


@dataclass(frozen=True)
class Given:
    """The common options as the user gave them, and what is done with them.

    Attributes:
        model: name or `module:function`, None for the usual one.
        data: name or `module:function`, None where the command has no such option.
        data_dir: folder of the data's files.
        weights: file.
        loss: name or `module:function`, None for the one that fits the targets.
        split: "train" or "test".
        limit: samples, None for all.
        batch_size: None for the analysis' own.
        device: its name.
        seed: of fresh weights and all draws.
        as_json: whether the answer is JSON.
        out: folder for a page, or None.
    """

    model: str | None = None
    data: str | None = None
    data_dir: Path | None = None
    weights: Path | None = None
    loss: str | None = None
    split: str = "train"
    limit: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    seed: int = 0
    as_json: bool = False
    out: Path | None = None
    _asked: tuple[str, ...] = ()
    _began: float = field(default_factory=time.monotonic, repr=False)

    def samples(self) -> Samples:
        """The data alone.

        Raises:
            UserError: for every mistake in the options that concern them.
        """
        from gradwise.cli.analyse._samples import load_samples
        from gradwise.lab.seeding import seed_everything

        self._check()
        if self.data is None:
            raise UserError("expected --data NAME or --data module:function, got none")
        with user_code():
            seed_everything(self.seed)  # for a function that draws its data
            return load_samples(
                self.data,
                self.data_dir,
                split=self.split,
                limit=self.limit,
                batch_size=self.batch_size,
            )

    def problem(self, *, with_loss: bool = True) -> Problem:
        """Data, model, weights and loss, which have been run together once.

        Args:
            with_loss: False where no loss is asked for; it is not looked at then.

        Raises:
            UserError: for every mistake in the common options, and what fails in the user's code.
        """
        from gradwise.cli.analyse._loss import find_loss, no_loss
        from gradwise.cli.analyse._model import check, load_weights, make_model
        from gradwise.lab.device import resolve_device
        from gradwise.lab.seeding import seed_everything
        from gradwise.lab.settings import settings_for

        name = self.model or settings_for(self.data or "", {}).model
        device = resolve_device(self.device)
        samples = self.samples()

        def new_model() -> nn.Module:
            with user_code():
                seed_everything(self.seed)
                made = make_model(name, samples)
                if self.weights is not None:
                    load_weights(made, self.weights, name)
                return made.to(device)

        model = new_model()
        with user_code():
            if with_loss:
                loss_name, loss_fn = find_loss(self.loss, _some_targets(samples))
                check(model, name, samples, loss_fn, loss_name)
            else:
                loss_name, loss_fn = "none", no_loss
                check(model, name, samples, None, loss_name)
        return Problem(model, name, loss_fn, loss_name, samples, device, self.batch_size, new_model)

    @contextlib.contextmanager
    def working(self, noun: str) -> Iterator[Tell]:
        """Where the analysis runs: shows progress, and says in a sentence what a model did wrong.

        Args:
            noun: what is counted, in the plural.

        Returns:
            A context with a function of (done, total), where a total of 0 is unknown.
        """
        from gradwise.cli.analyse._progress import following

        with user_code(), following(noun) as tell:
            try:
                yield tell
            except Exception as error:
                where = None if isinstance(error, UserError) else _in_model(error)
                if where is None:
                    raise
                said = " ".join(f"{type(error).__name__}: {error}".split())
                raise UserError(f"the model failed with {said} ({where})") from error

    def answer(self, answer: Answer, problem: Problem | None = None) -> None:
        """Print what was found, and write the page where one was asked for.

        Args:
            answer: what was found.
            problem: what it was found on; None where there is no model.
        """
        from gradwise.cli.output import print_json

        if problem is not None and problem.caution:
            answer = replace(answer, caution=problem.caution)
        found = record(answer, self._common(problem), time.monotonic() - self._began)
        if self.as_json:
            print_json(found)
        else:
            print_answer(answer)
        if self.out is None:
            return
        page = write_folder(self.out, answer, found)
        if not self.as_json:
            click.echo(f"\nreport: {page}")

    def _check(self) -> None:
        from gradwise.lab.seeding import MAX_SEED

        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"expected 0 <= seed <= {MAX_SEED}, got seed={self.seed}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"expected batch_size >= 1, got batch_size={self.batch_size}")
        if self.data_dir and not self.data_dir.expanduser().is_dir():
            raise UserError(f"found no folder {self.data_dir} (--data-dir)")
        if self.out:
            check_out(self.out)

    def _common(self, problem: Problem | None) -> dict[str, Any]:
        """The common options with the values that were used."""
        if problem is None:
            names = [name for name in ("data", "split", "limit", "seed") if name in self._asked]
            return {name: getattr(self, name) for name in names}
        from gradwise.lab.outcome import device_name

        return {
            "model": problem.model_name,
            "parameters": sum(p.numel() for p in problem.model.parameters() if p.requires_grad),
            "weights": None if self.weights is None else str(self.weights),
            "loss": problem.loss_name,
            "data": problem.data_name,
            "split": self.split,
            "limit": self.limit,
            "samples": problem.samples,
            "seed": self.seed,
            "device": device_name(problem.device),
        }


def analysis_options(
    command: Callable[..., Any] | None = None, *, without: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Give a command the common options, which it gets as one argument `given`.

    Args:
        command: the function; None where the decorator is called with arguments.
        without: names of options that would do nothing in it.
    """
    if command is None:
        return functools.partial(analysis_options, without=without)
    assert set(without) <= set(_OPTIONS)
    inner = command

    @functools.wraps(inner)
    def outer(**options: Any) -> Any:
        common = {name: options.pop(name) for name in _OPTIONS if name in options}
        return inner(given=Given(**common, _asked=tuple(common)), **options)

    decorated: Callable[..., Any] = outer
    for name, option in reversed(_OPTIONS.items()):
        if name not in without:
            decorated = option(decorated)
    return decorated


def _some_targets(samples: Samples) -> Any:
    return samples.data[1] if isinstance(samples.data, tuple) else next(iter(samples.data))[1]


def _in_model(error: Exception) -> str | None:
    """Where a module's forward pass, or a backward pass, raised it; None where we did."""
    frames = traceback.extract_tb(error.__traceback__)
    files = [Path(frame.filename) for frame in frames]
    modules = ("nn/modules/module.py", "autograd/__init__.py", "autograd/graph.py")
    inside = any(file.as_posix().endswith(modules) for file in files)
    if not inside or Path(__file__).parents[2] in files[-1].parents:
        return None
    return f"line {frames[-1].lineno} of {frames[-1].filename}"

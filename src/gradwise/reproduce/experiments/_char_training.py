"""One training of the language model: a method, a condition, a seed, a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

import gradwise as gw
from gradwise.errors import UserError
from gradwise.lab.seeding import MAX_SEED, derived_seed
from gradwise.reproduce.experiments._char_model import (
    BAD_KINDS,
    Bad,
    CharGPT,
    evaluate,
    training_batch,
)
from gradwise.reproduce.experiments._char_text import Text

__all__ = ["JUDGED", "METHODS", "bad_steps", "check", "train"]

JUDGED = ("nothing", "autoscale", "clip")
"""The methods that the claims are about."""

METHODS: dict[str, Callable[[torch.optim.Optimizer, float], object]] = {
    "nothing": lambda optimizer, max_norm: None,
    "autoscale": lambda optimizer, max_norm: gw.autoscale(optimizer),
    "clip": lambda optimizer, max_norm: gw.attach(optimizer, gw.transforms.ClipNorm(max_norm)),
    "autoclip": lambda optimizer, max_norm: gw.attach(optimizer, gw.transforms.AutoClip()),
    "zclip": lambda optimizer, max_norm: gw.attach(optimizer, gw.transforms.ZClip()),
}
"""What each does to an optimizer, in the one line that a user writes."""

_TOLD = 20  # steps between two words on how far it is
_STRETCH = 0.05  # of all steps: what the last ones must all be like before it counts as lasting


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that are out of their bounds, with one sentence.

    Args:
        settings: of the recipe.

    Raises:
        UserError: names the setting, the value and the bound.
    """
    for name, allowed, needed in (
        ("methods", tuple(METHODS), JUDGED),
        ("conditions", ("clean", *BAD_KINDS), ("clean",)),
    ):
        given = settings[name]
        for one in given:
            if one not in allowed:
                raise UserError(f"expected {name} among {', '.join(allowed)}, got {one!r}")
        for one in {*needed, *given}:
            if given.count(one) != 1:
                raise UserError(f"expected {one!r} once in {name}, got {name}={given!r}")
    _check_numbers(settings)


def _check_numbers(settings: dict[str, Any]) -> None:
    rates, seeds, betas = settings["learning_rates"], settings["seeds"], settings["betas"]
    if not rates or not all(_number(rate) and rate > 0 for rate in rates):
        raise UserError(f"expected learning_rates > 0, got learning_rates={rates!r}")
    if sorted(set(rates)) != rates:
        raise UserError(f"expected learning_rates in rising order, got learning_rates={rates!r}")
    if settings["curve_lr"] not in rates:
        raise UserError(
            f"expected curve_lr to be one of learning_rates, got curve_lr={settings['curve_lr']}"
        )
    if not all(type(seed) is int and 0 <= seed <= MAX_SEED for seed in seeds) or not seeds:
        raise UserError(f"expected seeds of 0 to {MAX_SEED}, got seeds={seeds!r}")
    if len(betas) != 2 or not all(_number(beta) and 0 <= beta < 1 for beta in betas):
        raise UserError(f"expected two betas in [0, 1), got betas={betas!r}")
    for name in ("width", "depth", "heads", "context", "batch_size", "steps", "eval_windows"):
        if settings[name] < 1:
            raise UserError(f"expected {name} >= 1, got {name}={settings[name]}")
    if settings["width"] % settings["heads"]:
        raise UserError(
            f"expected width to be a multiple of heads={settings['heads']}, "
            f"got width={settings['width']}"
        )
    if not 0 <= settings["warmup"] < settings["steps"]:
        raise UserError(
            f"expected 0 <= warmup < steps={settings['steps']}, got warmup={settings['warmup']}"
        )
    for name in ("bad_share", "dropout", "final_lr"):
        if not 0 <= settings[name] < 1:
            raise UserError(f"expected 0 <= {name} < 1, got {name}={settings[name]}")
    for name in ("bad_scale", "max_norm", "margin", "within"):
        if not 0 < settings[name] < math.inf:
            raise UserError(f"expected a finite {name} > 0, got {name}={settings[name]}")
    if not 0 <= settings["weight_decay"] < math.inf:
        raise UserError(
            f"expected a finite weight_decay >= 0, got weight_decay={settings['weight_decay']}"
        )


def _number(value: object) -> bool:
    """JSON has whole numbers too where floats are meant; True is none of them."""
    return type(value) in (int, float) and math.isfinite(float(str(value)))


def bad_steps(settings: dict[str, Any], condition: str, seed: int) -> list[int]:
    """The steps at which the batch is a bad one.

    Args:
        settings: of the recipe.
        condition: "clean" or one of `BAD_KINDS`.
        seed: of the run.
    """
    if condition == "clean":
        return []
    bad = Bad(condition, settings["bad_share"], settings["bad_scale"])
    return [step for step in range(settings["steps"]) if bad.hits(seed, step)]


def train(
    settings: dict[str, Any],
    text: Text,
    method: str,
    condition: str,
    seed: int,
    lr: float,
    tell: Callable[[int], None],
) -> dict[str, Any]:
    """Train once, and ask the held-out parts of the text.

    Args:
        settings: of the recipe, checked.
        text: to learn.
        method: one of `METHODS`.
        condition: "clean" or one of `BAD_KINDS`.
        seed: of weights, batches and bad steps.
        lr: the largest learning rate of the schedule.
        tell: told the step now and then.

    Returns:
        `lr`; `validation` and `test`, losses in bits a character, None where they are no number;
        `losses` of the steps, bits a character before the bad batch's weight, None likewise;
        `diverged_at`: the first step of a stretch until the end in which the good batches' loss is
        no number or above that of guessing blindly, None where there is none.
    """
    device, context = torch.device(settings["device"]), settings["context"]
    spoiled = set(bad_steps(settings, condition, seed))
    bad = Bad(condition, settings["bad_share"], settings["bad_scale"]) if spoiled else None
    losses: list[float | None] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed("model", seed))
        model = CharGPT(
            text.vocabulary,
            settings["width"],
            settings["depth"],
            settings["heads"],
            context,
            settings["dropout"],
        ).to(device)
        beta1, beta2 = settings["betas"]
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=lr,
            betas=(float(beta1), float(beta2)),
            weight_decay=settings["weight_decay"],
        )
        METHODS[method](optimizer, settings["max_norm"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: factor(settings, at))
        for step in range(settings["steps"]):
            inputs, targets = training_batch(
                text.train, seed, step, settings["batch_size"], context
            )
            weight = 1.0
            if bad is not None and step in spoiled:
                inputs, targets, weight = bad.batch(seed, step, inputs, targets, text.vocabulary)
            logits = model(inputs.to(device)).flatten(0, 1)
            loss = F.cross_entropy(logits, targets.to(device).flatten())
            bits = loss.item() / math.log(2.0)
            if not math.isfinite(bits):  # the weights are not either, and stay so
                losses += [None] * (settings["steps"] - step)
                break
            losses.append(round(bits, 4))
            optimizer.zero_grad()
            torch.autograd.backward(weight * loss)
            optimizer.step()
            schedule.step()
            if step % _TOLD == 0:
                tell(step)
        held_out = [
            evaluate(model, part, context, settings["eval_windows"], device)
            for part in (text.validation, text.test)
        ]
    validation, test = (bits if math.isfinite(bits) else None for bits in held_out)
    return {
        "lr": lr,
        "validation": validation,
        "test": test,
        "losses": losses,
        "diverged_at": _diverged_at(losses, spoiled, text.uniform_bits),
    }


def factor(settings: dict[str, Any], step: int) -> float:
    """The learning rate of a step over the largest: up in a line, down in half a cosine.

    Args:
        settings: of the recipe.
        step: from 0.

    Examples:
        >>> shape = {"warmup": 1, "steps": 5, "final_lr": 0.0}
        >>> [round(factor(shape, step), 3) for step in range(5)]
        [0.5, 1.0, 0.854, 0.5, 0.146]
    """
    warmup, steps, final = settings["warmup"], settings["steps"], settings["final_lr"]
    if step < warmup:
        return float((step + 1) / (warmup + 1))
    done = (step - warmup) / (steps - warmup)
    return float(final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


def _diverged_at(losses: list[float | None], spoiled: set[int], bound: float) -> int | None:
    """Where the last stretch begins whose good batches all have a loss above a bound, or none."""
    begins = None
    for step in reversed(range(len(losses))):
        loss = losses[step]
        if loss is not None and loss <= bound and step not in spoiled:
            break
        if step not in spoiled or loss is None:
            begins = step
    if begins is None:
        return None
    lasts = len(losses) - begins >= max(1.0, _STRETCH * len(losses))
    return begins if lasts or losses[-1] is None else None

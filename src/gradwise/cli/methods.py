"""`gradwise methods`: what there is to choose from, and where it comes from."""

from __future__ import annotations

import click


@click.command(short_help="List the methods with paper, equation and a line on each.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def methods(name: str | None, as_json: bool) -> None:
    """List the methods that `gradwise compare --methods` takes, or tell all about one.

    \b
    How sure the form of a method is:
      [V]  seen in the paper or its authors' code    [D]  derived or checked numerically
      [V2] seen in a secondary source                [R]  recalled from the literature
      [X]  this library's reconstruction
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    import inspect

    from rich.padding import Padding
    from rich.text import Text

    from gradwise.cli.output import console, print_json
    from gradwise.registry import lookup
    from gradwise.registry import methods as known

    chosen = [lookup(name)] if name else list(known().values())
    if as_json:
        fields = ("name", "kind", "summary", "paper", "url", "equation", "tag")
        print_json(
            [{**{f: getattr(m, f) for f in fields}, "signature": m.signature()} for m in chosen]
        )
        return
    screen = console()
    if name:
        method = chosen[0]
        screen.print(Text(method.signature(), style="bold"))
        screen.print(Text(f"{method.paper}, {method.url}, {method.equation}, {method.tag}\n"))
        screen.print(Text(inspect.getdoc(method.factory) or method.summary))
        return
    for kind, title in (("transform", "Transforms"), ("optimizer", "Optimizers")):
        of_kind = [method for method in chosen if method.kind == kind]
        if of_kind:
            screen.print(Text(f"{title}\n", style="bold underline"))
        for method in of_kind:
            screen.print(Text(f"{method.name}", style="bold"), Text(f"  {method.summary}"))
            source = f"{method.equation}\n{method.paper}, {method.url}  {method.tag}"
            screen.print(Padding(Text(source, style="dim"), (0, 0, 1, 4)))
    screen.print(
        "Plain torch optimizers (sgd, adamw, ...) are methods as well, and transforms join an "
        "optimizer with +, as adamw+center+clip. One in full: gradwise methods NAME",
        style="dim",
    )

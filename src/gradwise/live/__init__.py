"""The live view of a run: what is shown, how it is drawn, and the terminal screen that shows it.

`tail` and `follow` read a run folder, `model` says what there is to see, `layout`, `top` and
`rows` turn it into lines of text. Only `screen`, `widgets`, `help` and `terminal` need Textual;
`plain` prints the same lines where there is no terminal, `notebook` makes HTML of it.
"""

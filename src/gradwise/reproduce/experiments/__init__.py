"""The experiments of the recipes, one module each.

A module has either `cells(settings)`, which lists its units of work, and `run(settings, arguments,
tell)`, which does one of them; or `comparisons(settings)`, which lists comparisons of methods as
`gradwise compare` runs them. `conclude(settings, results)` says what came of all of them.
"""

"""Experiments of papers, one command each: recipes, their runs, and what came of them.

`recipes` lists them, `reproduce` runs one. From the command line: `gradwise reproduce --list`.
"""

from gradwise.reproduce.claims import Claim, Conclusion
from gradwise.reproduce.planning import plan
from gradwise.reproduce.recipe import SCALES, Recipe, load_recipe, recipes
from gradwise.reproduce.run import reproduce

__all__ = ["SCALES", "Claim", "Conclusion", "Recipe", "load_recipe", "plan", "recipes", "reproduce"]

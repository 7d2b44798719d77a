"""Comparing methods fairly: data, models, trials, the runner and the statistics."""

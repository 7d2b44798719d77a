"""Watching somebody's unchanged script: from the command line into its optimizers."""

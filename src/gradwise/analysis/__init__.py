"""Analyses of training, one module each; nothing here is imported unasked.

`gradwise.analysis.online` holds online learners whose regret follows the gradient variation.
"""

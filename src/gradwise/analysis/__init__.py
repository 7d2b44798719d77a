"""Analyses of training, one module each; nothing here is imported unasked.

- `noise`: of gradients and search directions, critical batch size, gradient noise scale.
- `landscape`: the loss along an update, learning-rate margin, sharpness.
- `trajectory`: map, directionality and length of a run's path; training norm layers alone.
- `sparsity`, `schedules`: sparse features under large steps, and the schedules that make them.
- `implicit_bias`: diagonal linear networks and what SGD's noise does to their solution.
- `stability`: paired runs on neighbouring data sets.
- `online`: learners whose regret follows the gradient variation.
"""

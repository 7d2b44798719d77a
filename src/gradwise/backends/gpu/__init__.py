"""Kernels for many tensors of a GPU in a fixed number of launches; needs the package triton."""

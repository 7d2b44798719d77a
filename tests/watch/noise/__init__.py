"""Tests of the gradient noise scale."""

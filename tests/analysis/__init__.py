"""Tests of `gradwise.analysis`."""

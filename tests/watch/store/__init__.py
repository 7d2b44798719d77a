"""Tests of the run store."""

"""Decisions. Facts in, actions out; no clock, no chance, no I/O."""

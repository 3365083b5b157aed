"""Whole swarms of the real services in one process, on a virtual clock, replayed from one seed."""

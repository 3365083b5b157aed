"""p2pgrid: idle machines as one peer-to-peer inference network."""

__version__ = "0.1.0"

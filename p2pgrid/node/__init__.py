"""A node's life, a client's request, and the one place where settings become adapters."""

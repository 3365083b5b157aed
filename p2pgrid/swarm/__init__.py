"""A swarm on this machine: node processes on loopback, started, watched and ended together."""

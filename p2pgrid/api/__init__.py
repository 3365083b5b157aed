"""p2pgrid from Python: `connect` on trio, `connect_blocking` for everybody else."""

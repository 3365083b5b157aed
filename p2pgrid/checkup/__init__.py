"""Whether this machine and its network are fit for p2pgrid: findings, each with a verdict and a remedy."""

"""The stage side of the pipeline: sessions' lives, the loop that runs their steps, and the prefixes they leave."""

from p2pgrid.services.worker.session import SESSION_IDLE_S_MAX, SUSPENDED_S_MAX
from p2pgrid.services.worker.worker import Worker

__all__ = ["SESSION_IDLE_S_MAX", "SUSPENDED_S_MAX", "Worker"]

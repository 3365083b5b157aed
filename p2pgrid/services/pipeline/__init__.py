"""The client side of the pipeline: sessions that are open on every stage of a route, and move to another one."""

from p2pgrid.services.pipeline.pipeline import Pipeline
from p2pgrid.services.pipeline.session import HandedOver, PipelineSession, Stalled, Terms

__all__ = ["HandedOver", "Pipeline", "PipelineSession", "Stalled", "Terms"]

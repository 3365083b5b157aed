"""`/metrics`: figures for Prometheus. Peers are named by their ids; prompts, answers and keys are in none of them."""

from collections.abc import Iterator

import trio
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from p2pgrid.gateway.activity import Activity, RunningAnswer
from p2pgrid.gateway.models import Models
from p2pgrid.node.peer import Peer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
INTER_TOKEN_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 5)
LINKS_MAX = 64
"""Links whose times are told one by one."""
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/healthz",
    "/readyz",
    "/health",
    "/metrics",
    "/openapi.json",
    "/",
)
"""All others are counted as one."""


class Metrics:
    """The figures of one gateway, in a registry of its own."""

    def __init__(self, peer: Peer, models: Models, activity: Activity) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Now(peer, models, activity))
        labels = ["path", "status"]
        self._requests = Counter("p2pgrid_http_requests", "Replies begun.", labels, registry=self.registry)
        self._ttft = Histogram(
            "p2pgrid_time_to_first_token_seconds",
            "From the request to its first token.",
            buckets=TTFT_S,
            registry=self.registry,
        )
        self._gap = Histogram(
            "p2pgrid_inter_token_seconds",
            "Between two tokens of an answer.",
            buckets=INTER_TOKEN_S,
            registry=self.registry,
        )
        self._prompt = Counter("p2pgrid_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self._completion = Counter("p2pgrid_completion_tokens", "Tokens of answers.", registry=self.registry)
        self._recoveries = Counter(
            "p2pgrid_recoveries", "Answers that went on elsewhere, each time.", registry=self.registry
        )

    def replied(self, path: str, status: int) -> None:
        self._requests.labels(path if path in PATHS else "other", str(status)).inc()

    def prompt_taken(self, tokens: int) -> None:
        self._prompt.inc(tokens)

    def token_came(self, before_s: float | None, answer: RunningAnswer) -> None:
        """One more token; `before_s` is when the one before it came, None for the first."""
        assert answer.last_token_s is not None
        self._completion.inc()
        if before_s is None:
            self._ttft.observe(answer.last_token_s - answer.began_s)
        else:
            self._gap.observe(answer.last_token_s - before_s)

    def recovered(self, times: int) -> None:
        self._recoveries.inc(times)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _Now(Collector):
    """What is so at the moment of asking."""

    def __init__(self, peer: Peer, models: Models, activity: Activity) -> None:
        self._peer = peer
        self._models = models
        self._activity = activity

    def collect(self) -> Iterator[Metric]:
        yield self._running()
        yield from self._swarm()
        yield self._links()
        yield from self._stage()

    def _running(self) -> Metric:
        running = GaugeMetricFamily("p2pgrid_answers_running", "Answers under way.", labels=["state"])
        states = [answer.state for answer in self._activity.answers()]
        for state in ("waiting", "running"):
            running.add_metric([state], states.count(state))
        return running

    def _swarm(self) -> Iterator[Metric]:
        nodes = GaugeMetricFamily("p2pgrid_nodes", "Nodes known, by what they do.", labels=["model", "state"])
        usable = GaugeMetricFamily("p2pgrid_model_usable", "Whether all layers are served.", labels=["model"])
        for survey in self._models.surveys():
            states = [advert.state for advert in survey.adverts]
            for state in ("joining", "serving", "draining"):
                nodes.add_metric([survey.name, state], states.count(state))
            usable.add_metric([survey.name], survey.usable)
        yield nodes
        yield usable

    def _links(self) -> Metric:
        links = GaugeMetricFamily("p2pgrid_link_rtt_seconds", "Round trip to a linked peer.", labels=["peer"])
        for peer in sorted(self._peer.links.peers())[:LINKS_MAX]:
            rtt_s = self._peer.links.rtt_s(peer)
            if rtt_s is not None:
                links.add_metric([peer], rtt_s)
        return links

    def _stage(self) -> Iterator[Metric]:
        """Of the node in this process, where there is one."""
        worker = self._peer.worker
        if worker is None:
            return
        yield GaugeMetricFamily("p2pgrid_sessions_open", "Sessions on the stage here.", value=worker.sessions_open)
        queue_s = worker.load.queue_ms(trio.current_time()) / 1000
        yield GaugeMetricFamily("p2pgrid_queue_seconds", "How long a step waits here before it runs.", value=queue_s)
        yield GaugeMetricFamily(
            "p2pgrid_kv_positions_free",
            "Positions that new sessions can reserve here.",
            value=worker.room.positions_free,
        )
        yield GaugeMetricFamily(
            "p2pgrid_kv_positions_max", "Positions that all sessions here can hold.", value=worker.room.positions_max
        )

"""What `p2pgrid top` shows: tables made of surveys. No network in here."""

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2pgrid.cli.console import printable
from p2pgrid.core.health import Health
from p2pgrid.core.swarm_view import replicas
from p2pgrid.ids import PeerId, Span
from p2pgrid.node.survey import ModelSurvey
from p2pgrid.wire.adverts import Advert

BAR_CELLS_MAX = 30
LINKS_SHOWN_MAX = 3
STATE_STYLES = {"serving": "green", "joining": "yellow", "draining": "yellow"}
HEALTH_STYLES = {"ready": "bold green", "degraded": "bold yellow", "unavailable": "bold red"}


def top_view(surveys: Sequence[ModelSurvey], head: str) -> RenderableType:
    """Everything, for a screen."""
    parts: list[RenderableType] = [Text(head, style="dim")]
    if not surveys:
        parts.append(Text("no node was found; start one with: p2pgrid node --bootstrap ADDR"))
    for survey in surveys:
        parts += ["", *_model(survey)]
    return Group(*parts)


def short(peer: PeerId) -> str:
    """Enough of a peer's id to tell it from others: the ends differ, the beginnings do not."""
    return f"…{peer[-6:]}"


def layer_bar(span: Span | None, layers: int) -> str:
    """The layers of a model from left to right, those in `span` filled in."""
    filled = [span is not None and span.start < stop and start < span.stop for start, stop in _cells(layers)]
    return "".join("█" if full else "·" for full in filled)


def coverage_bar(adverts: Sequence[Advert], layers: int) -> str:
    """How many nodes serve each layer, the least of those that share a cell; `+` = more than 9."""
    counts = replicas([a.span for a in adverts if a.state == "serving" and a.span is not None], layers)
    least = [min(counts[start:stop]) for start, stop in _cells(layers)]
    return "".join(str(count) if count < 10 else "+" for count in least)


def _cells(layers: int) -> list[tuple[int, int]]:
    """The range of layers behind each character of a bar."""
    cells = min(layers, BAR_CELLS_MAX)
    return list(pairwise(layers * cell // cells for cell in range(cells + 1))) if cells else []


def _model(survey: ModelSurvey) -> list[RenderableType]:
    seen = survey.health
    title = Text.assemble((printable(survey.name), "bold"), " is ", (seen.state, HEALTH_STYLES[seen.state]))
    title.append(f"; {survey.tokens_per_s:.0f} tokens/s of {survey.tokens_per_s_bound:.0f} at most; {_canary(seen)}")
    reasons = [Text(f"  {reason}", style="yellow") for reason in seen.reasons]
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for column in ("node", "state", f"layers of {survey.layers}", "span"):
        table.add_column(column, no_wrap=True)
    for column in ("tokens/s", "step ms", "queue ms", "sessions", "KV"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("links: one way, ms")
    for advert in survey.adverts:
        table.add_row(*_node(advert, survey.layers))
    counts = Text(coverage_bar(survey.adverts, survey.layers), style="dim")
    table.add_row(Text("nodes a layer", style="dim"), "", counts, *[""] * 7)
    return [title, *reasons, table]


def _node(advert: Advert, layers: int) -> list[RenderableType]:
    state = Text("away" if advert.away else advert.state, style=STATE_STYLES[advert.state])
    span = "-" if advert.span is None else str(advert.span)
    if advert.moving_to is not None:
        span += f" → {advert.moving_to}"
    near = sorted((ms, peer) for peer, ms in advert.delays_ms.items())
    links = [f"{short(peer)} {ms:.1f}" for ms, peer in near[:LINKS_SHOWN_MAX]]
    if len(near) > LINKS_SHOWN_MAX:
        links.append(f"and {len(near) - LINKS_SHOWN_MAX} more")
    return [
        short(advert.peer),
        state,
        Text(layer_bar(advert.span, layers), style="cyan"),
        span,
        f"{advert.tokens_per_s:.0f}/{advert.tokens_per_s_max:.0f}",
        f"{advert.step_ms:.1f}",
        f"{advert.queue_ms:.1f}",
        f"{advert.sessions_open}, {advert.sessions_free} free",
        _kv_use(advert),
        ", ".join(links) or "-",
    ]


def _kv_use(advert: Advert) -> str:
    if not advert.positions_max:
        return "-"
    return f"{100 * (1 - advert.positions_free / advert.positions_max):.0f} %"


def _canary(seen: Health) -> str:
    if seen.canary_age_s is None:
        return "no token was seen to go through"
    return f"a token went through {seen.canary_age_s:.0f} s ago"

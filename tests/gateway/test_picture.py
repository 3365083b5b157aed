"""Pictures of a swarm: what changed between two of them is all that turns the one into the other."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.gateway.picture import (
    NODES_SHOWN_MAX,
    GatewayShown,
    Picture,
    SessionShown,
    StageShown,
    changes,
    show_node,
    shown,
)
from p2pgrid.ids import PeerId, Span
from tests.swarm_kit import MODEL, serving_advert

PEERS = [PeerId(f"12D3KooW{name}") for name in "ABCDE"]


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    def node(peer: PeerId) -> Any:
        span = draw(st.sampled_from([Span(0, 5), Span(5, 10)]))
        return show_node(serving_advert(peer, span), draw(st.sampled_from([None, 0.012])))

    def session(peer: PeerId) -> SessionShown:
        return SessionShown(MODEL, (StageShown(peer, Span(0, 10)),), draw(st.integers(0, 2)), 0)

    peers = draw(st.sets(st.sampled_from(PEERS)))
    answers = draw(st.sets(st.sampled_from("123")))
    gateway = GatewayShown(PEERS[0], (), "0", 0.0, (), len(peers), draw(st.integers(0, 1)), None, None, 0, 0)
    return Picture(gateway, {}, {peer: node(peer) for peer in peers}, {name: session(PEERS[0]) for name in answers})


@given(pictures(), pictures())
def test_the_changes_turn_one_picture_into_the_other_and_say_nothing_else(before: Picture, after: Picture) -> None:
    told = changes(before, after)
    state = msgspec.structs.asdict(before)
    for part, news in told.items():
        if part == "gateway":
            state[part] = news
            continue
        assert all(state[part].get(key) != value for key, value in news.items())
        state[part] = {key: value for key, value in {**state[part], **news}.items() if value is not None}
    assert Picture(**state) == after
    assert bool(told) == (before != after)


def test_of_a_large_swarm_the_page_gets_a_part() -> None:
    adverts = [serving_advert(PeerId(f"12D3KooW{number:05d}")) for number in range(3 * NODES_SHOWN_MAX)]
    some = shown(adverts)
    assert len(some) == NODES_SHOWN_MAX
    assert shown([*reversed(adverts)]) == some, "the same ones each time"


def test_figures_are_told_as_they_are_read() -> None:
    node = show_node(serving_advert(PEERS[0], step_ms=3.14159, positions_max=400, positions_free=100), 0.0123456)
    assert (node.step_ms, node.rtt_ms, node.kv_used) == (3.1, 12.0, 0.75)
    assert show_node(serving_advert(PEERS[0]), None).kv_used is None
    assert show_node(serving_advert(PEERS[0], state="draining", away=True), None).away

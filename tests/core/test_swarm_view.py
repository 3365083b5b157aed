from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core import swarm_view
from p2pgrid.core.swarm_view import TTL_S_MAX, SwarmView, missing_layers, replicas, runs, worth_telling
from p2pgrid.ids import ModelId, PeerId, Span
from p2pgrid.wire.adverts import KNOWN_TAG_BYTES, Advert, Lost
from p2pgrid.wire.messages import Contact
from tests.core.adverts import MODEL, advert, signed

bounded = settings(max_examples=100, deadline=None)
NOW_S = 100.0
OTHER = ModelId("cd" * 32)
some_adverts = st.lists(
    st.builds(
        advert,
        st.sampled_from("ABC"),
        model=st.sampled_from([MODEL, OTHER]),
        state=st.sampled_from(["joining", "serving", "draining"]),
        sequence=st.integers(0, 5),
        expires_at_s=st.sampled_from([99.0, 100.0, 100.5, 130.0, 160.0, 700.0, 700.5]),
    ),
    max_size=25,
)
LAYERS = 12
some_spans = st.lists(
    st.tuples(st.integers(0, LAYERS - 1), st.integers(1, LAYERS)).filter(lambda s: s[0] < s[1]).map(lambda s: Span(*s)),
    max_size=6,
)


def add(view: SwarmView, of: Advert, now_s: float = NOW_S) -> bool:
    return view.add(of, signed(of), now_s)


@given(some_adverts)
@bounded
def test_the_newest_advert_of_each_peer_and_model_holds(adverts: list[Advert]) -> None:
    view = SwarmView()
    newest: dict[tuple[PeerId, ModelId], Advert] = {}
    for one in adverts:
        key = (one.peer, one.model)
        is_news = NOW_S < one.expires_at_s <= NOW_S + TTL_S_MAX and (
            key not in newest or one.sequence > newest[key].sequence
        )
        assert add(view, one) == is_news
        if is_news:
            newest[key] = one
    assert view.adverts() == [newest[key] for key in sorted(newest)]


@given(some_adverts, st.randoms(use_true_random=False))
@bounded
def test_the_order_in_which_news_comes_does_not_matter(adverts: list[Advert], rng: Random) -> None:
    unlike = {(a.peer, a.model, a.sequence): a for a in adverts}  # a correct peer signs no two of one number
    views = []
    for _ in range(2):
        order = list(unlike.values())
        rng.shuffle(order)
        view = SwarmView()
        for one in order:
            add(view, one)
        views.append(view.adverts())
    assert views[0] == views[1]


@given(some_adverts, st.sampled_from([100.0, 100.5, 129.0, 130.0, 700.0]))
@bounded
def test_what_no_longer_holds_is_dropped(adverts: list[Advert], later_s: float) -> None:
    view = SwarmView()
    for one in adverts:
        add(view, one)
    held = view.adverts()
    view.expire(later_s)
    assert view.adverts() == [a for a in held if a.expires_at_s > later_s]


@given(some_adverts, st.sampled_from("ABC"), st.sampled_from([100.0, 130.0, 700.0]))
@bounded
def test_exactly_the_adverts_in_the_table_are_known(adverts: list[Advert], silent: str, later_s: float) -> None:
    view = SwarmView()

    def check() -> None:
        held = view.adverts()
        assert [view.knows(signed(one)) for one in adverts] == [one in held for one in adverts]

    for one in adverts:
        add(view, one)
        check()
    view.forget(PeerId(silent))
    check()
    view.expire(later_s)
    check()


def test_a_known_advert_with_another_signature_or_key_is_not_known() -> None:
    view = SwarmView()
    one = advert("A")
    add(view, one)
    assert view.knows(signed(one))
    assert not view.knows(msgspec.structs.replace(signed(one), signature=bytes([1]) * 64))
    assert not view.knows(msgspec.structs.replace(signed(one), public_key=bytes([1]) * 32))


def test_an_advert_that_claims_to_hold_for_too_long_is_not_believed() -> None:
    view = SwarmView()
    assert not add(view, advert("A", expires_at_s=NOW_S + TTL_S_MAX + 0.5))
    assert add(view, advert("A", expires_at_s=NOW_S + TTL_S_MAX))


def test_a_silent_peer_comes_back_only_with_a_newer_advert() -> None:
    view = SwarmView()
    add(view, advert("A", sequence=5))
    add(view, advert("B"))
    view.forget(PeerId("A"))
    assert [a.peer for a in view.adverts()] == ["B"]
    assert not add(view, advert("A", sequence=4))
    assert not add(view, advert("A", sequence=5))
    view.forget(PeerId("A"))
    assert not add(view, advert("A", sequence=5))
    assert add(view, advert("A", sequence=6))
    assert add(view, advert("A", sequence=7))


def test_a_silent_peer_is_forgotten_for_all_its_models_and_the_silence_ends_with_the_advert() -> None:
    view = SwarmView()
    add(view, advert("A", sequence=5, expires_at_s=130.0))
    add(view, advert("A", sequence=5, model=OTHER, expires_at_s=140.0))
    view.forget(PeerId("A"))
    assert view.adverts() == []
    view.expire(130.0)
    assert add(view, advert("A", sequence=1), 131.0), "nothing of the silence is kept once its advert has expired"
    assert not add(view, advert("A", sequence=1, model=OTHER), 131.0)


def test_a_peer_that_speaks_itself_is_believed_again_and_one_that_others_speak_of_is_not() -> None:
    view = SwarmView()
    add(view, advert("A", sequence=5))
    assert view.forget(PeerId("A")) == Contact(PeerId("A"), ("/memory/A",))
    assert view.forget(PeerId("A")) is None
    assert not add(view, advert("A", sequence=5))
    view.heard(PeerId("A"))
    assert add(view, advert("A", sequence=5))


def test_what_the_other_side_knows_is_not_sent_again() -> None:
    view, tag = SwarmView(), bytes(KNOWN_TAG_BYTES)
    for peer, signature in (("A", bytes(64)), ("B", bytes([1]) * 64)):
        one = advert(peer)
        view.add(one, msgspec.structs.replace(signed(one), signature=signature), 100.0)
    assert [s.signature for s in view.signed(MODEL, {tag})] == [bytes([1]) * 64]
    assert view.tags(MODEL, 9) == tag + bytes([1]) * KNOWN_TAG_BYTES
    assert view.tags(MODEL, 1) == tag
    assert view.tags(OTHER, 9) == b""


def test_the_view_tells_when_somebody_changed_place_and_not_when_an_advert_was_renewed() -> None:
    view = SwarmView()
    add(view, advert("A"))
    before = view.changes
    add(view, advert("A", sequence=2, step_ms=9.0, expires_at_s=170.0))
    assert view.changes == before
    for change in (advert("A", sequence=3, state="joining"), advert("A", (0, 4), sequence=4), advert("B")):
        add(view, change)
        assert view.changes > before
        before = view.changes
    view.forget(PeerId("A"))
    assert view.changes > before
    before = view.changes
    view.expire(170.0)
    assert view.changes > before


def test_those_who_fell_silent_are_told_of_the_latest_ones_only() -> None:
    view = SwarmView()
    for i in range(5):
        add(view, advert(f"p{i}", sequence=i))
        view.forget(PeerId(f"p{i}"))
    assert view.lost(2) == (Lost(PeerId("p3"), 3), Lost(PeerId("p4"), 4))
    view.heard(PeerId("p4"))
    assert [each.peer for each in view.lost(9)] == ["p0", "p1", "p2", "p3"]


def test_a_peer_that_others_lost_is_doubted_unless_something_newer_is_known_of_it() -> None:
    view = SwarmView()
    add(view, advert("A", sequence=5))
    assert view.doubted(Lost(PeerId("A"), 5)) == Contact(PeerId("A"), ("/memory/A",))
    assert view.doubted(Lost(PeerId("A"), 4)) is None
    assert view.doubted(Lost(PeerId("B"), 9)) is None


def test_a_full_table_takes_no_new_peer_but_news_of_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_view, "ENTRIES_MAX", 2)
    view = SwarmView()
    assert add(view, advert("A", expires_at_s=120.0))
    assert add(view, advert("B"))
    assert not add(view, advert("C"))
    assert add(view, advert("B", sequence=2))
    view.expire(120.0)
    assert add(view, advert("C"), 120.0)


@given(some_adverts, st.sampled_from([None, MODEL, OTHER]))
@bounded
def test_adverts_are_passed_on_longest_lived_first(adverts: list[Advert], model: ModelId | None) -> None:
    view = SwarmView()
    for one in adverts:
        add(view, one)
    held = view.adverts(model)
    passed_on = view.signed(model)
    lives = {signed(a).advert: a.expires_at_s for a in held}
    assert len(passed_on) == len(held)
    assert len({s.advert for s in passed_on}) == len(passed_on)
    assert [lives[s.advert] for s in passed_on] == sorted(lives.values(), reverse=True)


def test_adverts_are_found_by_model_and_state_in_order_of_peer() -> None:
    view = SwarmView()
    add(view, advert("C", state="joining"))
    add(view, advert("B", state="serving", model=OTHER))
    add(view, advert("A", state="draining"))
    add(view, advert("D", state="serving"))
    assert [a.peer for a in view.adverts()] == ["A", "B", "C", "D"]
    assert [a.peer for a in view.adverts(MODEL)] == ["A", "C", "D"]
    assert [a.peer for a in view.adverts(None, "serving")] == ["B", "D"]
    assert [a.peer for a in view.adverts(MODEL, "joining", "serving")] == ["C", "D"]


@given(some_spans)
@bounded
def test_replicas_count_the_spans_over_each_layer(spans: list[Span]) -> None:
    assert replicas(spans, LAYERS) == [sum(layer in span for span in spans) for layer in range(LAYERS)]


@given(some_spans)
@bounded
def test_missing_layers_are_exactly_those_that_nobody_holds(spans: list[Span]) -> None:
    missing = missing_layers(spans, LAYERS)
    layers = [layer for gap in missing for layer in range(gap.start, gap.stop)]
    assert layers == [layer for layer in range(LAYERS) if not any(layer in span for span in spans)]


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(0, 2))
@bounded
def test_runs_are_the_longest_ranges_of_a_value(counts: list[int], value: int) -> None:
    brute = [
        Span(a, b)
        for a in range(len(counts))
        for b in range(a + 1, len(counts) + 1)
        if set(counts[a:b]) == {value}
        and (a == 0 or counts[a - 1] != value)
        and (b == len(counts) or counts[b] != value)
    ]
    assert runs(counts, value) == brute


def test_spans_beyond_the_model_count_for_its_layers_only() -> None:
    assert replicas([Span(1, 9)], 3) == [0, 1, 1]
    assert missing_layers([Span(5, 9)], 3) == [Span(0, 3)]


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        ({"sessions_open": 1}, {"sessions_open": 2}, True),
        ({"tokens_per_s": 0.0}, {"tokens_per_s": 1.5}, True),
        ({"tokens_per_s": 100.0}, {"tokens_per_s": 70.0}, True),
        ({"tokens_per_s": 100.0}, {"tokens_per_s": 80.0}, False),
        ({"queue_ms": 1.0}, {"queue_ms": 4.0}, False),
        ({"sessions_free": 3}, {"sessions_free": 2}, False),
        ({"sessions_free": 1}, {"sessions_free": 0}, True),
    ],
)
def test_what_others_decide_by_or_like_to_see_is_worth_telling_before_it_is_due(
    before: dict[str, float], after: dict[str, float], news: bool
) -> None:
    told = advert("A")
    now = msgspec.structs.replace(told, **after)
    assert worth_telling(msgspec.structs.replace(told, **before), now) is news

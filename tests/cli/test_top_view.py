"""What `p2pgrid top` shows of a swarm."""

import io

from rich.console import Console

from p2pgrid.cli.top_view import coverage_bar, layer_bar, top_view
from p2pgrid.core.health import health
from p2pgrid.ids import PeerId, Span
from p2pgrid.node.survey import ModelSurvey
from p2pgrid.wire.adverts import Advert
from tests.core.adverts import MODEL, advert

A = PeerId("12D3KooWAAAAAAaaaaaa")
B = PeerId("12D3KooWBBBBBBbbbbbb")


def shown(*adverts: Advert, name: str = "toy") -> str:
    survey = ModelSurvey(MODEL, name, 30, health(adverts, 30, 100.0), False, adverts)
    text = io.StringIO()
    Console(file=text, width=200).print(top_view([survey], "now"))
    return text.getvalue()


def test_each_node_is_a_line_with_its_layers_load_and_links() -> None:
    first = advert(
        A,
        (0, 15),
        tokens_per_s=12.4,
        tokens_per_s_max=200.0,
        step_ms=3.25,
        queue_ms=1.5,
        sessions_open=2,
        sessions_free=62,
        positions_free=750,
        positions_max=1000,
        delays_ms={B: 0.42},
        canary_at_s=95.0,
    )
    text = shown(first, advert(B, (15, 30), state="draining", moving_to=Span(0, 10)))
    line_a, line_b = [line.split() for line in text.splitlines() if line.startswith(" …")]
    assert line_a[:4] == ["…aaaaaa", "serving", "█" * 15 + "·" * 15, "0:15"]
    assert " ".join(line_a[4:]) == "12/200 3.2 1.5 2, 62 free 25 % …bbbbbb 0.4"
    assert line_b[:6] == ["…bbbbbb", "draining", "·" * 15 + "█" * 15, "15:30", "→", "0:10"]
    assert " away " in shown(advert(A, None, state="draining", away=True))
    assert "toy is unavailable; 0 tokens/s of 0 at most; a token went through 5 s ago" in text
    assert "layers 15:30 of 0:30 are missing" in text
    assert "1" * 15 + "0" * 15 in text


def test_a_model_with_more_layers_than_cells_is_shown_by_its_worst_ones() -> None:
    assert layer_bar(Span(0, 3), 120) == "█" + "·" * 29
    assert layer_bar(None, 4) == "····"
    assert layer_bar(None, 0) == ""
    assert coverage_bar([advert(A, (0, 3)), advert(B, (4, 120))], 120) == "0" + "1" * 29
    assert coverage_bar([advert(A, (0, 2))] * 12, 2) == "++"


def test_a_name_that_a_stranger_chose_is_no_markup_and_moves_no_cursor() -> None:
    assert "[red]x[2J is" in shown(advert(A), name="[red]x\x1b[2J")


def test_without_any_node_it_says_how_to_start_one() -> None:
    text = io.StringIO()
    Console(file=text, width=200).print(top_view([], "now"))
    assert "p2pgrid node --bootstrap ADDR" in text.getvalue()

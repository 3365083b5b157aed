"""Scenarios that judge stage and pipeline: what they ask, what they make of it, and that real swarms answer."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from p2pgrid.bench.child import Request
from p2pgrid.bench.conditioned_swarm import open_conditioned_swarm
from p2pgrid.bench.document import Document
from p2pgrid.bench.one_process import answer_whole
from p2pgrid.bench.profiles import MBIT, Profile
from p2pgrid.bench.prompts import ORDINARY, QUOTING, prompt_ids
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench
from p2pgrid.bench.scenarios import concurrency, formats, overload, prefix, speculation
from p2pgrid.bench.step_parts import along_the_route, parts_of, read_trace
from p2pgrid.bench.swarm_system import open_swarm_system
from p2pgrid.bench.systems import Timed
from p2pgrid.cli.bench_tables import show_document
from p2pgrid.core.drawing import Drawer
from p2pgrid.core.speculation import Text
from p2pgrid.engine.executor import LaneExecutor
from p2pgrid.engine.tokenizer import Tokenizer
from p2pgrid.errors import Overloaded
from p2pgrid.ids import Span
from p2pgrid.node.wiring import build_stage, describe_model
from p2pgrid.services.local import LocalSession
from p2pgrid.services.pipeline import Terms
from p2pgrid.settings import StageSettings
from p2pgrid.storage.models import ModelStore
from p2pgrid.swarm.local_swarm import LISTEN
from p2pgrid.wire.messages import PREFIX_BLOCK, Sampling
from tests.bench.test_report import EVERYTHING, report_on
from tests.bench.test_runner import run
from tests.real_model import NAME, real_store

MAKER = concurrency.PromptMaker(vocab=1000)


class OneByOne:
    """A system that computes one token after another, for whoever's turn it is: the first asks again and again."""

    def __init__(self, name: str, token_s: float, *, refuses: Sequence[int] = ()) -> None:
        self.name = name
        self._token_s = token_s
        self._turn = trio.StrictFIFOLock()
        self._refuses = refuses
        self._asked = 0

    async def ask(self, prompt_ids: Sequence[int], max_tokens: int) -> Timed:
        number, self._asked = self._asked, self._asked + 1
        if number in self._refuses:
            await trio.sleep(self._token_s)
            raise Overloaded("no room", 1.0)
        began_s = trio.current_time()
        times: list[float] = []
        for _ in range(max_tokens):
            async with self._turn:
                await trio.sleep(self._token_s)
            times.append(trio.current_time() - began_s)
        return Timed(times[0], tuple(times), tuple(range(max_tokens)))

    def pids(self) -> list[int]:
        return []


# ── concurrency ──────────────────────────────────────────────────────────────────────────────────────────


async def asked_together(system: OneByOne, clients: int, rounds: int) -> Document:
    async def scenario(bench: Bench) -> None:
        heard: list[concurrency.Answers] = []
        for pair in range(rounds):
            answers: concurrency.Answers = {}

            async def ask(pair: int = pair, answers: concurrency.Answers = answers) -> Figures:
                return await concurrency._ask_together(bench, system, MAKER, clients, 5, pair, answers)

            await bench.sample(system.name, pair, ask)
            heard.append(answers)
        concurrency._keep_latencies(bench, system.name, clients, heard)

    return await run(scenario)


async def test_every_wait_for_a_token_of_every_client_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    document = await asked_together(OneByOne("swarm", 0.5), clients=3, rounds=2)
    rows = {row.metric: row for row in document.rows}
    assert len(rows["inter_token_latency_s@3"].samples) == 2 * 3 * (5 - 1)
    assert rows["inter_token_latency_s@3"].median == pytest.approx(1.5)
    assert rows["aggregate_tokens_per_s@3"].median == pytest.approx(2.0)
    assert rows["worst_p99_over_median@3"].samples == pytest.approx((1.0,))


async def test_a_client_that_was_refused_is_counted_and_has_no_part_in_the_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    document = await asked_together(OneByOne("swarm", 0.5, refuses=[1]), clients=3, rounds=1)
    rows = {row.metric: row for row in document.rows}
    assert rows["failed_requests@3"].samples == (1.0,)
    assert len(rows["inter_token_latency_s@3"].samples) == 2 * (5 - 1)
    assert "no room" in document.notes[0]


async def test_nobody_served_leaves_no_waits(autojump_clock: trio.testing.MockClock) -> None:
    document = await asked_together(OneByOne("swarm", 0.5, refuses=range(9)), clients=3, rounds=1)
    assert {row.metric for row in document.rows} == {"aggregate_tokens_per_s@3", "failed_requests@3"}


def test_the_client_that_fared_worst_is_looked_for_over_all_rounds() -> None:
    kept: dict[str, list[float]] = {}

    class Keeping:
        def keep(self, system: str, metric: str, unit: str, samples: Sequence[float]) -> None:
            kept[metric] = list(samples)

    even = Timed(0.0, (0.0, 1.0, 2.0, 3.0), (1, 2, 3, 4))
    stalled = Timed(0.0, (0.0, 1.0, 2.0, 9.0), (1, 2, 3, 4))
    rounds = [{0: even, 1: even}, {0: even, 1: stalled}]
    concurrency._keep_latencies(Keeping(), "swarm", 2, rounds)  # type: ignore[arg-type]
    assert kept["worst_p99_over_median@2"] == [7.0]


# ── what scenarios say ───────────────────────────────────────────────────────────────────────────────────


def test_a_ring_over_slow_links_is_bound_by_them_and_by_computing() -> None:
    assert speculation.ring_limit(rtt_s=0.1, stages=3, compute_s=0.01) == pytest.approx(1 / 0.16)
    assert speculation.ring_limit(rtt_s=0.1, stages=1, compute_s=0.01) == pytest.approx(100)


def test_every_kind_of_question_has_its_lengths_and_its_target() -> None:
    for each in (speculation.ANSWER_TOKENS, speculation.QUICK_ANSWER_TOKENS, speculation.AT_LEAST):
        assert each.keys() == speculation.KINDS.keys()
    assert formats.FORMATS[0] == "fp32"


def test_the_tally_of_an_overload_tells_served_from_refused() -> None:
    tally = overload.Tally(completed_s=[1.0, 2.0, 6.0], waited_s=[0.5, 1.0, 5.0], busy=2, failed=1)
    figures = {metric: value for metric, (value, _) in tally.figures().items()}
    assert figures == {
        "served_requests": 3.0,
        "busy_requests": 2.0,
        "failed_requests": 1.0,
        "wait_s_max": 5.0,
        "completion_max_over_median": 3.0,
    }
    assert "wait_s_max" not in overload.Tally(busy=64).figures()


async def test_targets_and_parts_are_shown_on_the_terminal_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    async def scenario(bench: Bench) -> None:
        bench.require("decode_tokens_per_s", "swarm", at_least=50)
        bench.require("decode_tokens_per_s", "swarm", at_most=70)
        bench.keep("swarm", "decode_tokens_per_s", "tokens/s", [60.0, 75.0])
        parts = {"compute_s": 6, "queue_s": 1, "codec_s": 1, "link_s": 1, "wire_s": 0, "left_s": 1, "token_s": 10}
        for metric, value_ms in parts.items():
            bench.keep("swarm", metric, "s", [value_ms / 1000])

    document = msgspec.structs.replace(await run(scenario), scenario="trace", environment=EVERYTHING[0].environment)
    show_document(document)
    shown = capsys.readouterr().out
    page = report_on(tmp_path, document)
    for said in (shown, page):
        assert "a token, as measured" in said
        assert "60%" in said
    assert "NO" in shown
    assert "| decode_tokens_per_s | swarm | ≥ 50 | 60 | yes |" in page
    assert "| decode_tokens_per_s | swarm | ≤ 70 | 75 | no |" in page


# ── on the real model ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.model
def test_quoting_prompts_are_quoted_and_ordinary_ones_are_not() -> None:
    trio.run(_compare_quotes, real_store())


async def _compare_quotes(store: ModelStore) -> None:
    description = await describe_model(store, NAME)
    tokenizer = Tokenizer(description.tokenizer)
    stage = await build_stage(store, description, Span(0, description.manifest.layers), StageSettings())
    guessed: dict[str, float] = {}
    try:
        for question in (*QUOTING, *ORDINARY):
            prompt = prompt_ids(tokenizer, question)
            whole = LocalSession(stage, LaneExecutor(), Drawer(Sampling()))
            tokens = speculation.ANSWER_TOKENS["quoting"]
            answer = await answer_whole(whole, Request(0, prompt, tokens), context_max=512, run_ahead=False)
            guessed[question] = _guessed_share(prompt, answer.token_ids)
    finally:
        stage.close()
    assert min(guessed[question] for question in QUOTING) > 0.8
    assert max(guessed[question] for question in ORDINARY) < 0.4


def _guessed_share(prompt: Sequence[int], answer: Sequence[int]) -> float:
    """The share of the answer that follows from what was said before."""
    text = Text()
    for token in prompt:
        text.append(token)
    right = 0
    for token in answer:
        at = text.lookup()
        right += at is not None and text.tokens[at] == token
        text.append(token)
    return right / len(answer)


class Plain:
    """A `Bench` that keeps notes only."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.e2e
@pytest.mark.model
@pytest.mark.timeout(180)
def test_a_swarm_reuses_prefixes_serves_a_crowd_and_traces_its_steps(tmp_path: Path) -> None:
    real_store()
    trio.run(_ask_swarm, tmp_path)


async def _ask_swarm(folder: Path) -> None:
    files = [folder / "0.jsonl", folder / "1.jsonl"]

    def arguments_of(number: int) -> Sequence[str]:
        return [*LISTEN, "--trace", str(files[number]), "--kv-positions", "4096"]

    bench = Plain()
    async with open_swarm_system(NAME, 2, arguments_of) as swarm:
        maker = concurrency.PromptMaker(swarm.model.manifest.vocab)
        kept = await prefix._ask_all(bench, swarm, maker, 0)  # type: ignore[arg-type]
        crowd = await overload._ask_together(bench, swarm, maker, 6, overload.Length(32, 4), 0)  # type: ignore[arg-type]
        exact = swarm.asked_with("swarm", Terms(exact=True))
        answer = await exact.ask(maker.prompt(16, 1), 8)

    assert bench.notes == []
    computed = {kind: kept[f"computed_positions@{kind}"][0] for kind in ("first", "second", "other_scope", "next_turn")}
    whole = prefix.SHARED_TOKENS + prefix.NEW_TOKENS
    assert computed["first"] == computed["other_scope"] == whole
    assert computed["second"] == whole - prefix.SHARED_TOKENS // PREFIX_BLOCK * PREFIX_BLOCK
    assert computed["next_turn"] < whole / 4
    assert crowd["served_requests"][0] == 6
    assert crowd["failed_requests"][0] == 0
    assert crowd["rss_growth_bytes"][0] >= 0

    route = along_the_route([read_trace(file)[answer.session] for file in files], 16)
    assert len(route) == 2
    for position in range(16, 16 + 8 - 2):
        turn = parts_of(route, position)
        assert [min(parts.values()) >= 0 for parts in turn] == [True, True]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.model
@pytest.mark.timeout(180)
def test_smaller_forms_of_hidden_states_put_fewer_bytes_on_the_links() -> None:
    real_store()
    trio.run(_compare_forms)


async def _compare_forms() -> None:
    profile = Profile("test", rtt_s=0.004, up_bytes_s=100 * MBIT, down_bytes_s=100 * MBIT)
    passed: dict[str, int] = {}
    async with open_conditioned_swarm(NAME, 2, profile) as swarm:
        maker = concurrency.PromptMaker(swarm.system.model.manifest.vocab)
        await swarm.system.ask(maker.prompt(16, 0), 1)
        for form in formats.FORMATS[:3]:
            before = swarm.passed_bytes
            await swarm.system.asked_with(form, Terms(wire=form)).ask(maker.prompt(256, 1), 1)
            passed[form] = swarm.passed_bytes - before
    assert passed["int8"] < 0.7 * passed["fp16"] < 0.7 * 0.7 * passed["fp32"]

"""What a program on trio does with a swarm, and that nothing of it stays there."""

import pytest
import trio

import p2pgrid
from p2pgrid.errors import BadInput, NoRoute
from p2pgrid.node.bare_errors import bare_errors
from tests.api.toy_grid import toy_swarm


async def test_an_answer_comes_in_pieces_and_is_whole_in_the_end(autojump_clock: object) -> None:
    async with toy_swarm() as swarm:
        stream = swarm.grid.generate("hello", max_tokens=12, temperature=0.9, seed=11)
        pieces = [piece async for piece in stream]
        answer = stream.answer
        again = await swarm.grid.generate("hello", max_tokens=12, temperature=0.9, seed=11).read()
        await swarm.all_given_back()
    assert len(pieces) > 1
    assert all(pieces)
    assert "".join(pieces) == answer.text == again.text
    assert (len(answer.token_ids), answer.finish_reason) == (12, "length")
    assert [str(hop.span) for hop in answer.route] == ["0:5", "5:10"]


async def test_tokens_come_with_log_probabilities_and_their_logits_can_be_changed(autojump_clock: object) -> None:
    async with toy_swarm() as swarm:
        stream = swarm.grid.generate("hello", max_tokens=3, logprobs=2)
        answer = await stream.read()
        first = answer.token_ids[0]
        other = await swarm.grid.generate("hello", max_tokens=3, logit_bias={first: -100.0}).read()
        scored = await swarm.grid.score("hello", top=1)
    assert [info.token for info in stream.tokens] == answer.token_ids
    assert all(info.logprob is not None and len(info.top) == 2 for info in stream.tokens)
    assert stream.tokens[0].top[0].token == first
    assert first not in other.token_ids
    assert [tops[0].token for tops in scored.top] == scored.top1


async def test_a_question_is_a_conversation_of_one_turn(autojump_clock: object) -> None:
    async with toy_swarm() as swarm:
        asked = await swarm.grid.generate("hello", max_tokens=4).read()
        said = await swarm.grid.chat([{"role": "user", "content": "hello"}], max_tokens=4).read()
        scored = await swarm.grid.score("hello")
    assert asked.token_ids == said.token_ids
    assert (len(scored.token_ids), len(scored.next_logprobs)) == (5, 4)


async def test_an_answer_that_is_left_with_break_gives_back_every_row(autojump_clock: object) -> None:
    async with toy_swarm(cost_s=0.05) as swarm:
        async for _ in swarm.grid.generate("hello", max_tokens=200):
            assert swarm.rows_taken == 2
            break
        left_at = trio.current_time()
        await swarm.all_given_back()
        assert trio.current_time() - left_at < 0.5


async def test_an_answer_that_is_closed_has_given_back_every_row_when_its_block_is_left(autojump_clock: object) -> None:
    async with toy_swarm(cost_s=0.05) as swarm:
        async with swarm.grid.generate("hello", max_tokens=200) as stream:
            assert await anext(stream)
        with pytest.raises(BadInput, match="not finished"):
            _ = stream.answer
        assert [piece async for piece in stream] == []
        await swarm.all_given_back()


async def test_an_answer_whose_reader_is_cancelled_gives_back_every_row(autojump_clock: object) -> None:
    async with toy_swarm(cost_s=0.05) as swarm:
        with trio.move_on_after(1) as patience:
            async for _ in swarm.grid.generate("hello", max_tokens=200):
                pass
        assert patience.cancelled_caught
        await swarm.all_given_back()


async def test_answers_that_still_run_end_with_the_connection(autojump_clock: object) -> None:
    async with toy_swarm(cost_s=0.05) as swarm:
        stream = swarm.grid.generate("hello", max_tokens=200)
        await anext(stream)
    with pytest.raises(BadInput, match="ended with its connection"):
        await stream.read()


async def test_a_stream_that_is_never_read_asks_nothing(autojump_clock: object) -> None:
    async with toy_swarm() as swarm:
        stream = swarm.grid.generate("hello")
        await trio.sleep(1)
        assert swarm.rows_taken == 0
        await stream.aclose()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"presence_penalty": 3.0}, "presence_penalty=3.0"),
    ],
)
async def test_a_value_out_of_its_range_is_named(options: dict[str, float], told: str, autojump_clock: object) -> None:
    async with toy_swarm() as swarm:
        with pytest.raises(BadInput, match=told):
            swarm.grid.generate("hello", **options)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="no such option: frobs"):
            swarm.grid.generate("hello", frobs=1)  # type: ignore[call-arg]
        with pytest.raises(BadInput, match="role and a content"):
            swarm.grid.chat([{"role": "user"}])


async def test_what_goes_wrong_on_the_swarm_is_raised_where_the_answer_is_read(autojump_clock: object) -> None:
    async with toy_swarm() as swarm:
        for life in swarm.lives:
            life.stop.set()
            await life.ended.wait()
        with pytest.raises(NoRoute):
            await swarm.grid.generate("hello").read()


def test_one_error_comes_out_of_a_group_and_a_bug_before_all_others() -> None:
    for raised, told in (
        ([NoRoute("a"), trio.BrokenResourceError("b")], trio.BrokenResourceError),
        ([NoRoute("a"), KeyboardInterrupt()], KeyboardInterrupt),
        ([ExceptionGroup("inner", [NoRoute("a")])], NoRoute),
    ):
        with pytest.raises(told), bare_errors():
            raise BaseExceptionGroup("outer", raised)


def test_everything_that_is_exported_is_there() -> None:
    assert all(getattr(p2pgrid, name) is not None for name in p2pgrid.__all__)
    assert set(p2pgrid.__all__) <= set(dir(p2pgrid))
    with pytest.raises(AttributeError, match="frob"):
        p2pgrid.frob  # noqa: B018

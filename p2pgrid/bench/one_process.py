"""The system `one_process`: the whole model in one process, through the same engine, without a network."""

import sys
from contextlib import AbstractAsyncContextManager
from functools import partial

import trio

from p2pgrid.bench.child import ChildSystem, Reply, Request, open_child, serve
from p2pgrid.core.drawing import Drawer
from p2pgrid.core.generation import Generation
from p2pgrid.core.text import TextStream
from p2pgrid.engine.executor import LaneExecutor
from p2pgrid.engine.stage import Stage
from p2pgrid.ids import Span
from p2pgrid.node.answer import Answer, Session, generate
from p2pgrid.node.wiring import build_stage, describe_model, model_store
from p2pgrid.services.local import LocalSession
from p2pgrid.settings import PipelineSettings, StageSettings
from p2pgrid.wire.messages import Sampling


def open_one_process(model: str) -> AbstractAsyncContextManager[ChildSystem]:
    """Raises LocalFault."""
    return open_child("one_process", __name__, model)


async def answer_whole(session: Session, request: Request, *, context_max: int, run_ahead: bool) -> Answer:
    """A greedy answer of the full length: the end of the sequence is a token like others, and no text is made."""
    generation = Generation(
        request.prompt_ids,
        max_tokens=request.max_tokens,
        stop_tokens=(),
        context_max=context_max,
        chunk=PipelineSettings().prefill_chunk,
        run_ahead=run_ahead,
    )
    return await generate(session, generation, text=TextStream(), bytes_of=lambda _: b"", show=lambda _: None)


async def _answer(stage: Stage, executor: LaneExecutor, context_max: int, request: Request) -> Reply:
    session = LocalSession(stage, executor, Drawer(Sampling()))
    answer = await answer_whole(session, request, context_max=context_max, run_ahead=False)
    return Reply(request.number, tuple(answer.token_times_s), tuple(answer.token_ids))


async def _main(model: str) -> None:
    store = model_store()
    description = await describe_model(store, model)
    settings = StageSettings(sessions_max=1)
    stage = await build_stage(store, description, Span(0, description.manifest.layers), settings)
    try:
        context_max = min(settings.context_max, description.manifest.context)
        await serve(partial(_answer, stage, LaneExecutor(), context_max))
    finally:
        stage.close()


if __name__ == "__main__":
    trio.run(_main, sys.argv[1])

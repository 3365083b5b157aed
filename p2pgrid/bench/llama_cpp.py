"""The system `llama_cpp`: the same file in llama.cpp, where llama-cpp-python is installed (extra `peers`)."""

import importlib
import sys
import time
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib.util import find_spec
from typing import Any

import trio

from p2pgrid.bench.child import ChildSystem, Reply, Request, open_child, serve
from p2pgrid.bench.environment import usable_cores
from p2pgrid.engine.ort_session import THREADS_MAX
from p2pgrid.node.wiring import describe_model, model_store
from p2pgrid.settings import StageSettings

LIBRARY = "llama_cpp"


def installed() -> bool:
    return find_spec(LIBRARY) is not None


def open_llama_cpp(model: str) -> AbstractAsyncContextManager[ChildSystem]:
    """Raises LocalFault when the library cannot load the model."""
    return open_child("llama_cpp", __name__, model)


async def _answer(llama: Any, request: Request) -> Reply:
    """Computes right here: this process does nothing else."""
    started_s = time.perf_counter()
    llama.reset()  # forget what the last prompt left, so that no part of this one is reused
    times, tokens = [], []
    for token in llama.generate(list(request.prompt_ids), temp=0.0, repeat_penalty=1.0):
        times.append(time.perf_counter() - started_s)
        tokens.append(int(token))
        if len(tokens) == request.max_tokens:
            break
    return Reply(request.number, tuple(times), tuple(tokens))


async def _main(model: str) -> None:
    store = model_store()
    description = await describe_model(store, model)
    threads = min(usable_cores(), THREADS_MAX)
    llama = importlib.import_module(LIBRARY).Llama(
        str(store.checkpoint(description.id)),
        n_ctx=min(StageSettings().context_max, description.manifest.context),
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=0,
        logits_all=False,
        verbose=False,
    )
    await serve(partial(_answer, llama))


if __name__ == "__main__":
    trio.run(_main, sys.argv[1])

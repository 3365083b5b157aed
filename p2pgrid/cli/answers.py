"""What commands that ask a model have in common: the engine in this process, and how an answer is shown."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from p2pgrid.api.models import open_local_engine
from p2pgrid.cli.console import progress_bar
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.node.answer import Answer
from p2pgrid.node.request import Asker
from p2pgrid.storage.models import ModelStore


@asynccontextmanager
async def local_engine(store: ModelStore, model: str) -> AsyncIterator[tuple[Asker, Stage, Executor]]:
    """The whole model in this process. Raises BadInput, LocalFault."""
    async with AsyncExitStack() as stack:
        with progress_bar("loading the model") as advance:
            engine = await stack.enter_async_context(open_local_engine(store, model, advance))
        yield engine


def answer_document(answer: Answer) -> dict[str, Any]:
    """An answer for scripts."""
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "completion_tokens": len(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "ttft_s": round(answer.ttft_s, 6),
        "decode_tokens_per_s": round(answer.decode_tokens_per_s, 3),
        "recoveries": [
            {"after_tokens": one.answers, "lost": list(one.lost), "took_s": round(one.took_s, 6)}
            for one in answer.recoveries
        ],
        "route": [{"peer_id": hop.peer, "layers": [hop.span.start, hop.span.stop]} for hop in answer.route],
    }


def summary(answer: Answer) -> str:
    """An answer's figures in one line for people."""
    where = " → ".join(f"layers {hop.span}" for hop in answer.route) or "this process"
    times = len(answer.recoveries)
    healed = f", after {times} {'recovery' if times == 1 else 'recoveries'}" if times else ""
    return (
        f"[{len(answer.token_ids)} tokens, first after {answer.ttft_s:.2f} s, then"
        f" {answer.decode_tokens_per_s:.1f} tokens/s, by {where}{healed}]"
    )

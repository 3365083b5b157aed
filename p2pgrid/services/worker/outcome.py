"""What a stage says once a step has run, and to whom."""

from collections.abc import Callable

import msgspec

from p2pgrid.core.drawing import Drawn, scores_message, token_message
from p2pgrid.core.sampling import Scored
from p2pgrid.core.stage_session import StageSession
from p2pgrid.engine.run_step import HiddenOut, StepOut
from p2pgrid.ids import PeerId
from p2pgrid.wire.hidden import pack_hidden
from p2pgrid.wire.messages import Replay, SessionMessage, Step, WireFormat
from p2pgrid.wire.tensors import pack_ints


def messages_of(
    machine: StageSession, step: Step, result: StepOut, form: WireFormat, keep: Callable[[Step], None]
) -> list[tuple[PeerId, SessionMessage]]:
    """Hidden states to the next stage, packed as `form`, which `keep` gets too; from the last one tokens to stage 0, as
    far as the client granted, and to the client.
    """
    match result:
        case HiddenOut(hidden=hidden):
            used, packed = pack_hidden(hidden, form)
            onward = Step(
                step.session,
                step.epoch,
                step.position,
                step.tokens,
                hidden=packed,
                want=step.want,
                targets=step.targets,
                until=step.until,
                form=used,
                draft=step.draft,
                through=step.through,
            )
            if not machine.opening.relayed:
                keep(onward)
            return [(machine.downstream, onward)] if machine.hop < step.through else []
        case Drawn(token=token) as drawn:
            position = step.position + len(step.tokens) // 4
            told = (machine.client, token_message(drawn, step.session, step.epoch, position))
            if not machine.feeds_on(position, token, step.until):
                return [told]
            fed = Step(step.session, step.epoch, position, pack_ints([token]), want="token", until=step.until)
            return [(machine.downstream, fed), told]
        case Scored() as scored:
            return [(machine.client, scores_message(scored, step.session, step.epoch, step.position))]
        case None:
            return []


def again(step: Step, asked: Replay) -> Step:
    """A step that was sent before, as it is sent again: only to fill rows, and no further than it is needed."""
    return msgspec.structs.replace(
        step, epoch=asked.epoch, want="nothing", targets=b"", until=0, draft=False, through=asked.through
    )

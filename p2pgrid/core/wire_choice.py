"""In which format a stage sends hidden states on, by what the link to the next one carries.

A chunk of 128 positions of 576 channels is 295 kB in fp32, and a stage computes some 50 ms on it. Sent while the next
chunk is computed it is free as long as it takes no longer than that, so from about 6 MB/s on; but the first chunk, and
each step of a decode, is waited for. At 25 MB/s the whole chunk takes 12 ms, a quarter of its computing, and halving
it would win less than the last bits of fp32 are worth: an answer that does not depend on the link. Below that fp16
halves what is waited for. Below 6 MB/s even fp16 (25 ms at least) begins to be what prefill waits for, and int8 takes
0.27 of fp32's bytes.
"""

from typing import assert_never

from p2pgrid.wire.messages import WireChoice, WireFormat

FP32_BYTES_S_MIN = 25e6
"""200 Mbit/s."""
FP16_BYTES_S_MIN = 6e6
"""About 50 Mbit/s."""


def choose_form(asked: WireChoice, bandwidth_bytes_s: float | None) -> WireFormat:
    """What was asked for; with `auto` by what the link carries; None = not known yet: taken for fast."""
    match asked:
        case "fp32" | "fp16" | "int8":
            return asked
        case "auto":
            if bandwidth_bytes_s is None or bandwidth_bytes_s >= FP32_BYTES_S_MIN:
                return "fp32"
            return "fp16" if bandwidth_bytes_s >= FP16_BYTES_S_MIN else "int8"
        case _:
            assert_never(asked)

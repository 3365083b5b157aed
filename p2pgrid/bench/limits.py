"""What this machine could do at best: reading memory, and multiplying with the runtime's integer kernel.

Both are ceilings to hold a model's speed against: a decode step reads every weight once, and a prefill multiplies
every weight with every position. Each takes about a second and uses all cores that this process may use.
"""

import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import trio
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as native

from p2pgrid.checkpoints.blocks import BLOCK
from p2pgrid.engine.kernels import IR_VERSION, MS, OPSET
from p2pgrid.errors import LocalFault
from p2pgrid.wire.tensors import Floats

BYTES_READ = 512 * 1024 * 1024
"""In one go, by all cores together: many times what caches hold."""
INPUTS = 2048
OUTPUTS = 2048
POSITIONS = 512
MEASURE_S = 0.6
GOES_MIN = 3

_FAILURES = (
    native.EPFail,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.NotImplemented,
    native.RuntimeException,
    RuntimeError,
    MemoryError,
)


async def memory_bandwidth_bytes_s() -> float:
    """Bytes a second that all cores together read from memory, in the best of several goes.

    Each core looks for the largest value of a float32 array of its own. Raises LocalFault when memory is short.
    """
    cores = _cores()
    try:
        shares = [np.ones(BYTES_READ // 4 // cores, np.float32) for _ in range(cores)]
    except MemoryError as error:
        raise LocalFault(f"no room for the {BYTES_READ:,} bytes that measuring memory takes; end something") from error

    async def read_all() -> None:
        async with trio.open_nursery() as tasks:
            for share in shares:
                tasks.start_soon(trio.to_thread.run_sync, _largest, share)

    return sum(share.nbytes for share in shares) / await _best_s(read_all)


async def int8_matmul_flops_s() -> float:
    """Operations a second of the kernel that a prefill spends its time in, in the best of several goes.

    `MatMulNBits` of 4-bit weights with activations rounded to 8 bits: float32 `[512, 2048]` times `[2048, 2048]`;
    a multiplication and an addition are two operations. Raises LocalFault when the runtime fails.
    """
    try:
        run = _open_kernel(_cores())
        best_s = await _best_s(lambda: trio.to_thread.run_sync(run))
    except _FAILURES as error:
        raise LocalFault(f"cannot measure the runtime's kernel: {' '.join(str(error).split())[:300]}") from error
    return 2 * POSITIONS * INPUTS * OUTPUTS / best_s


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _largest(share: Floats) -> float:
    return float(share.max())


async def _best_s(work: Callable[[], Awaitable[None]]) -> float:
    """The shortest of the goes that fit into the time; whatever else ran only ever made one longer."""
    times_s: list[float] = []
    while sum(times_s) < MEASURE_S or len(times_s) < GOES_MIN:
        start = time.perf_counter()
        await work()
        times_s.append(time.perf_counter() - start)
    return min(times_s)


def _open_kernel(threads: int) -> Callable[[], None]:
    """One multiplication, to be run again and again."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # As in a stage: threads that spin on would take the cores from whatever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = _one_matmul().SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x: Floats = np.random.default_rng(0).standard_normal((POSITIONS, INPUTS), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    product = onnxruntime.OrtValue.ortvalue_from_shape_and_type((POSITIONS, OUTPUTS), np.float32)
    binding.bind_ortvalue_output("product", product)
    return partial(session.run_with_iobinding, binding)


def _one_matmul() -> ModelProto:
    """`x` float32 `[512, 2048]` → `product` float32 `[512, 2048]`, in the form that stages use."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (OUTPUTS, INPUTS // BLOCK, BLOCK // 2), np.uint8)
    scales = rng.uniform(0.01, 0.1, (OUTPUTS, INPUTS // BLOCK)).astype(np.float32)
    attributes: dict[str, Any] = {"K": INPUTS, "N": OUTPUTS, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["product"], domain=MS, **attributes)
    graph = helper.make_graph(
        [node],
        "limit",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [POSITIONS, INPUTS])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, [POSITIONS, OUTPUTS])],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

"""Sessions of onnxruntime, set up for stages. With `engine.ort_stage` the only modules of a node that import it."""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

THREADS_MAX = 8
SPIN_US = 50
"""How long a thread spins for the next operator's work. As quick as any on an idle machine, 10 layers on 2 threads in
2.2 ms; with three such stages and other load on 2 cores a token takes 13 ms instead of 20 with the default."""
VERSION: str = onnxruntime.__version__

FAILURES = (  # what the runtime raises, of its own and of its language
    native.EPFail,
    native.EngineError,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NotImplemented,
    native.RuntimeException,
    RuntimeError,
    MemoryError,
)


@cache
def processor() -> str:
    """What the choice of kernels follows from: the instructions that this machine's processor knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    known = {line for line in lines if line.startswith(("flags", "Features"))}
    return " ".join((platform.machine(), platform.processor(), *sorted(known)))


def threads_for(wanted: int) -> int:
    """`wanted`, or one a core that this process may use; at most `THREADS_MAX`."""
    return min(wanted or len(os.sched_getaffinity(0)), THREADS_MAX)


def new_session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    """Raises one of FAILURES when the graph, or what belongs to it, cannot be loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # The graph is written with the fused operators already; what runs is what was written, in every split.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # As fast without, and what a long prefill took goes back to the machine.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    # Threads that spin between steps would take the cores from every other stage on the machine.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # And spinning for long within a step, they would take them from each other.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def trim_heap() -> None:
    """Give freed memory back to the machine, where the C library can."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def one_line(error: BaseException) -> str:
    """What an error says, short enough for a message of ours."""
    return " ".join(str(error).split())[:300] or type(error).__name__

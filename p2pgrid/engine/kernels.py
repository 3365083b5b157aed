"""What the runtime's kernels do on this machine, tried and not assumed."""

from functools import cache

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from p2pgrid.checkpoints.blocks import BLOCK, Blocks
from p2pgrid.wire.tensors import Floats

MS = "com.microsoft"
OPSET = 21
IR_VERSION = 10
_INPUTS, _OUTPUTS, _ROWS = 8 * BLOCK, 128, 6


@cache
def rows_that_agree(bits: int) -> int:
    """The fewest rows (1 or 2) from which on each comes out the same among any others; 0 when it never does.

    For codes of `bits` (4 or 8). The 4-bit kernel for processors with AVX2 and no AVX-512 adds up a row alone in
    another order than among others (onnxruntime 1.32).
    """
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 256, (_OUTPUTS, _INPUTS // BLOCK, 4 * bits), dtype=np.uint8)
    scales = rng.uniform(0.001, 0.01, codes.shape[:2]).astype(np.float32)
    session = _product(Blocks(bits, codes, scales))
    x = rng.standard_normal((_ROWS, _INPUTS), dtype=np.float32)
    together = _run(session, x)

    def agree(rows: int) -> bool:
        starts = range(_ROWS - rows + 1)
        return all(np.array_equal(_run(session, x[i : i + rows]), together[i : i + rows]) for i in starts)

    if not all(agree(rows) for rows in range(2, _ROWS)):
        return 0
    return 1 if agree(1) else 2


def _product(matrix: Blocks) -> onnxruntime.InferenceSession:
    outputs, inputs = matrix.shape
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain=MS,
        K=inputs,
        N=outputs,
        bits=matrix.bits,
        block_size=BLOCK,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(matrix.codes, "codes"), numpy_helper.from_array(matrix.scales, "scales")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, x: Floats) -> Floats:
    found: Floats = session.run(None, {"x": x})[0]
    return found

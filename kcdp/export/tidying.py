"""A graph as torch's exporter leaves it, without what it computes from constants and what does nothing.

The exporter's own clean-up does this too, with one rule among its rewritings whose search grows with the square of the
graph: at the size of Stable Diffusion 1.5 it takes most of a minute and finds nothing.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    OutputFixPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common

#: Rules of onnxscript's, by name: all that its own clean-up applies and that may concern such a network, but for
#: ``slice_split_rule``. Versions differ in which they have.
RULES = (
    "mul_by_1_rule", "add_0_rule", "sub_0_rule", "div_by_1_rule", "dropout_zero_rule", "dropout_inference_rule",
    "two_reshapes_matmul_reshape_rule", "one_reshape_matmul_reshape_rule", "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule", "collapse_slice_rule", "collapse_slice2_rule",
    "materialize_reshape_shape_rule", "successive_relu_rule", "cast_cast_rule", "no_op_cast_rule", "no_op_expand_rule",
    "flatten_to_reshape_rule", "reshape_reshape_rule", "no_op_transpose_rule", "transpose_transpose_rule",
    "unsqueeze_unsqueeze_rule", "squeeze_reshape_1d_rule", "normalize_pad_format_conv_rule", "fuse_pad_into_conv_rule",
    "fuse_batchnorm_into_conv_rule", "remove_optional_bias_from_conv_rule", "remove_optional_bias_from_gemm_rule",
)  # fmt: skip
ROUNDS = 2


def tidy(model: ir.Model) -> None:
    """Clean a graph up, in place; what it computes stays."""
    rewrite = RewritePass([getattr(common, name) for name in RULES if hasattr(common, name)])
    InlinePass()(model)
    for _ in range(ROUNDS):
        fold_constants_ir(model, onnx_shape_inference=True)
        changed = rewrite(model).modified
        for clean in (RemoveUnusedNodesPass(), RemoveUnusedFunctionsPass(), RemoveUnusedOpsetsPass()):
            clean(model)
        if not changed:
            break
    for finish in (
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0), DeduplicateInitializersPass(),
        CommonSubexpressionEliminationPass(), OutputFixPass(), NameFixPass(),
    ):  # fmt: skip
        finish(model)

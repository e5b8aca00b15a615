"""What kind of operation each is: the vocabulary by which rule tables are keyed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

Kind: TypeAlias = Literal[
    "move", "weighted", "sum", "product", "pointwise", "max", "softmax", "norm", "constant", "other"
]

KINDS: tuple[str, ...] = ("move", "weighted", "sum", "product", "pointwise", "max", "softmax", "norm", "other")
"""The kinds by which a table may be keyed."""

FAMILIES: tuple[str, ...] = ("conv", "linear", "activation")
"""The families by which a table may be keyed; they are coarser than operations and finer than kinds."""

NAMES = {
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "native_batch_norm": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "miopen_batch_norm": "batch_norm",
    "_batch_norm_no_update": "batch_norm",
    "max_pool1d_with_indices": "max_pool1d",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "_unsafe_view": "view",
    "reshape": "view",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "_adaptive_avg_pool3d": "adaptive_avg_pool3d",
    "_to_copy": "to",
    "native_dropout": "dropout",
    "linalg_vector_norm": "vector_norm",
    "_prelu_kernel": "prelu",
    "convolution_overrideable": "convolution",
    "unsafe_split": "split",
    "split_with_sizes": "split",
    "unsafe_split_with_sizes": "split",
}
"""Names of operations that are the same to a rule."""

MOVE = frozenset(
    {"view", "permute", "transpose", "t", "expand", "slice", "select", "split", "unbind", "cat", "stack", "squeeze",
     "unsqueeze", "clone", "alias", "to", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d",
     "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "index", "index_select",
     "gather", "roll", "flip", "diagonal", "unfold", "im2col", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
     "slice_scatter", "select_scatter", "masked_fill", "where", "as_strided", "copy", "lift_fresh", "lift_fresh_copy",
     "repeat", "index_put", "scatter", "tril", "triu", "rot90", "upsample_nearest1d", "upsample_nearest2d",
     "_upsample_nearest_exact2d", "index_copy", "index_fill", "as_strided_scatter", "diagonal_scatter", "view_as",
     "detach", "shift", "pad_below", "_reshape_alias", "view_copy", "complex", "real", "fill", "masked_scatter",
     "contiguous"}
)  # fmt: skip
"""Operations that only move values about: every number of the result is one of the input's, or a constant."""

LINEAR = frozenset(
    {"add", "sub", "rsub", "neg", "sum", "mean", "mul", "div", "avg_pool1d", "avg_pool2d", "avg_pool3d",
     "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_linear1d", "upsample_bilinear2d",
     "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "batch_norm",
     "cumsum", "lerp", "index_add", "scatter_add", "col2im", "grid_sampler_2d", "grid_sampler_3d", "trace", "dropout",
     "_fft_r2c", "_fft_c2r", "_fft_c2c", "embedding", "embedding_dense_backward", "addcdiv", "addcmul", "_conj",
     "view_as_real", "view_as_complex"}
)  # fmt: skip
"""Operations that are linear, or affine, in their active operands together."""

WEIGHTED = frozenset({"convolution", "addmm", "mm", "bmm", "baddbmm", "mv", "addmv", "dot", "matmul", "linear"})
"""Operations that are weighted where one operand is active and products where two are."""

PRODUCT = frozenset({"mul", "addcmul", "lerp", "grid_sampler_2d", "grid_sampler_3d"}) | WEIGHTED
"""Operations that multiply active operands where there are two."""

ACTIVATION = frozenset(
    {"relu", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "hardswish", "mish", "softplus", "prelu", "celu", "selu",
     "threshold", "clamp_min", "rrelu", "softshrink", "hardshrink", "log_sigmoid_forward"}
)  # fmt: skip
"""Pointwise operations that are used in the place of a ReLU."""

POINTWISE = ACTIVATION | frozenset(
    {"exp", "log", "log1p", "log2", "log10", "exp2", "expm1", "rsqrt", "sqrt", "reciprocal", "pow", "clamp", "abs",
     "clamp_max", "sigmoid", "hardsigmoid", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "erf",
     "erfc", "square", "floor", "ceil", "round", "trunc", "frac", "sign", "sgn", "logit", "asinh", "acosh", "atanh",
     "lgamma", "digamma", "nan_to_num", "fmod", "remainder", "sinc", "special_xlog1py", "special_entr", "special_i0",
     "special_erfcx", "special_log_ndtr", "special_ndtri", "erfinv"}
)  # fmt: skip
"""Operations on one active operand, number by number."""

MAX = frozenset(
    {"max_pool1d", "max_pool2d", "max_pool3d", "amax", "amin", "max", "min", "maximum", "minimum", "fmax", "fmin",
     "adaptive_max_pool2d", "adaptive_max_pool3d", "topk", "sort", "kthvalue", "median", "aminmax"}
)  # fmt: skip
SOFTMAX = frozenset({"softmax", "log_softmax"})
NORM = frozenset({"layer_norm", "group_norm", "instance_norm", "_fused_rms_norm", "rms_norm"})


def classify(
    op: str, active: Sequence[int], depends: Sequence[int], args: Sequence[object], tensors: int
) -> tuple[str, str]:
    """The kind and the family of an operation.

    Args:
        op: its name.
        active: which of its tensor operands are active, in their order.
        depends: which of them depend on the input at all.
        args: its positional arguments.
        tensors: how many tensor operands it has.
    """
    if not active:
        return "constant", ""
    idle = len(depends) > len(active)  # an operand that varies with the input and carries nothing back
    if op == "batch_norm" and _uses_batch(args):
        return "norm", ""
    if op in WEIGHTED and len(active) == 1 and not idle:
        bias_only = op in ("addmm", "baddbmm", "addmv") and active[0] == 0
        return ("sum", "") if bias_only else ("weighted", "conv" if op == "convolution" else "linear")
    if op in PRODUCT and len(active) > 1:
        return "product", ""
    if op in POINTWISE and len(active) == 1 and not idle:
        return "pointwise", "activation" if op in ACTIVATION else ""
    for kind, ops in (("max", MAX), ("softmax", SOFTMAX), ("norm", NORM)):
        if op in ops:
            return kind, ""
    if op in MOVE:
        return ("other" if idle else "move"), ""
    if op in LINEAR:
        divides = op == "div" and (tuple(active) != (0,) or any(isinstance(one, str) for one in args))
        return ("other" if idle or divides else "sum"), ""
    return "other", ""


def _uses_batch(args: Sequence[object]) -> bool:
    """Whether a BatchNorm takes its statistics from the batch, as one form without running ones always does."""
    return (len(args) > 5 and args[5] is True) or (len(args) == 6 and args[3] is True)


def known(word: str) -> bool:
    """Whether a word can be the key of a rule table."""
    return word in names() or (word.isidentifier() and hasattr(torch.ops.aten, word))


def names() -> frozenset[str]:
    """The words that a rule table may be keyed by, apart from operations that are in no list here."""
    operations = MOVE | LINEAR | WEIGHTED | PRODUCT | POINTWISE | MAX | SOFTMAX | NORM
    return operations | frozenset(KINDS) | frozenset(FAMILIES) | {"first", "last", "*"}

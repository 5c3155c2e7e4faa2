"""What each torch function does to the signal: its kind and its canonical name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from levada.probe.operation import Kind

__all__ = ["canonical_name", "describe"]

_NAMES: Mapping[Kind, str] = {
    "linear": "linear bilinear matmul mm bmm mv addmm addmv baddbmm einsum tensordot inner",
    "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    "recurrent": "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    "embedding": "embedding embedding_bag",
    "attention": "multi_head_attention_forward scaled_dot_product_attention",
    "activation": "relu relu6 sigmoid tanh gelu silu erf leaky_relu elu selu celu softplus softsign mish hardtanh "
    "hardsigmoid hardswish logsigmoid prelu rrelu threshold sin arctan softmax log_softmax softmin glu "
    "tanhshrink softshrink hardshrink",
    "normalisation": "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize",
    "add": "add sub rsub",
    "multiply": "mul div neg",
    "dropout": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout",
    "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "lp_pool1d lp_pool2d lp_pool3d mean amax amin",
    "reshape": "view view_as reshape reshape_as flatten unflatten transpose swapaxes permute movedim contiguous clone "
    "unsqueeze squeeze expand expand_as to type type_as float double half bfloat16 detach chunk split "
    "tensor_split unbind getitem select narrow index_select gather pad roll flip repeat repeat_interleave "
    "t T mT data pixel_shuffle pixel_unshuffle",
    "concatenate": "cat stack hstack vstack",
    "loss": "cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy "
    "binary_cross_entropy_with_logits kl_div ctc_loss gaussian_nll_loss poisson_nll_loss cosine_embedding_loss "
    "hinge_embedding_loss margin_ranking_loss multi_margin_loss multilabel_margin_loss soft_margin_loss "
    "multilabel_soft_margin_loss triplet_margin_loss triplet_margin_with_distance_loss",
}
_KIND: Mapping[str, Kind] = {name: kind for kind, names in _NAMES.items() for name in names.split()}

_ALIASES: Mapping[str, str] = {
    "iadd": "add",
    "radd": "add",
    "isub": "sub",
    "imul": "mul",
    "rmul": "mul",
    "multiply": "mul",
    "truediv": "div",
    "rtruediv": "div",
    "itruediv": "div",
    "true_divide": "div",
    "divide": "div",
    "negative": "neg",
    "subtract": "sub",
    "rmatmul": "matmul",
    "imatmul": "matmul",
    "atan": "arctan",
    "log_sigmoid": "logsigmoid",
    "concat": "cat",
    "concatenate": "cat",
    "clip": "clamp",
    "special_expit": "sigmoid",
    "special_erf": "erf",
    "swapdims": "swapaxes",
    "moveaxis": "movedim",
    "max_pool1d_with_indices": "max_pool1d",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
}

# Name and default of the plain arguments that follow the input, where a prediction needs them.
_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "celu": {"alpha": 1.0},
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "threshold": {"threshold": 0.0, "value": 0.0},
    "clamp": {"min": None, "max": None},
    "dropout": {"p": 0.5, "training": True},
    "softmax": {"dim": None},
    "log_softmax": {"dim": None},
}


def canonical_name(function: Callable[..., Any]) -> str:
    """Return the one name under which a function, a method and an operator in place are known.

    Args:
        function: what a `TorchFunctionMode` was called with.

    Example:
        >>> import torch
        >>> canonical_name(torch.Tensor.__iadd__), canonical_name(torch.Tensor.tanh_), canonical_name(torch.sigmoid)
        ('add', 'tanh', 'sigmoid')
    """
    name = getattr(function, "__name__", None) or type(function).__name__
    if name == "__get__":  # a property such as Tensor.mT
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    name = name.strip("_")
    return _ALIASES.get(name, name)


def describe(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Kind, str, dict[str, Any]]:
    """Return kind, name and plain options of a call.

    `clamp` from zero upwards is a "relu", between two limits a "hardtanh".

    Args:
        name: the function's canonical name.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Example:
        >>> describe("clamp", (None, 0), {})
        ('activation', 'relu', {})
        >>> describe("leaky_relu", (None, 0.2), {})
        ('activation', 'leaky_relu', {'negative_slope': 0.2})
    """
    expected = _ARGUMENTS.get(name, {})
    options = dict(expected)
    options.update(zip(expected, args[1:], strict=False))
    options.update({key: value for key, value in kwargs.items() if isinstance(value, int | float | str)})
    kind = _KIND.get(name, "other")
    if name == "clamp" and options["min"] is not None:
        if options["max"] is None and options["min"] == 0:
            return "activation", "relu", {}
        if isinstance(options["min"], int | float) and isinstance(options["max"], int | float):
            return "activation", "hardtanh", {"min_val": options["min"], "max_val": options["max"]}
    if kind in ("add", "multiply"):
        scalar = next((value for value in args[:2] if isinstance(value, int | float)), None)
        options.update({} if scalar is None else {"scalar": scalar})
    options.pop("inplace", None)
    return kind, name, options

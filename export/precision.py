"""Reduced precisions: a half-precision twin of a network, and int8 by ONNX Runtime's static quantization.

The half network computes in float16 inside and speaks float32 outside. What overflows or loses its meaning in half stays in float32:
the sinusoids of timestep and height (whose arguments reach 1000), every normalisation (whose sums of squares do), what was measured
on the training data, and the sample between the passes of a network that makes several.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from train.networks.spectral import Fourier
from train.networks.unrolled import Unrolled

from .onnx import cleaned

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, Fourier)


def half(network: nn.Module) -> nn.Module:
    """A copy of ``network`` whose weights and matrix products are float16; its inputs stay float32.

    Every product casts its own input, so float32 inputs and sinusoids reach the first one uncut.
    """
    twin = copy.deepcopy(network).half()
    exact = {name for name, _ in network.named_buffers()} & set(network.state_dict())
    exact |= {f"{name}.table" for name, module in network.named_modules() if isinstance(module, Unrolled)}
    for name in exact:
        owner, _, key = name.rpartition(".")
        setattr(twin.get_submodule(owner), key, network.get_buffer(name).clone())
    _replace_norms(twin)
    for module in twin.modules():
        if isinstance(module, _PRODUCTS):
            module.register_forward_pre_hook(_to_half)
    return twin.eval()


class _Norm32(nn.Module):
    """A GroupNorm or LayerNorm in float32 whose result goes back to half."""

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.float()).half()


def _replace_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm | nn.LayerNorm):
            setattr(module, name, _Norm32(child))
        else:
            _replace_norms(child)


def _to_half(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.half() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value for value in inputs)


def int8(model: bytes, inputs: Mapping[str, np.ndarray], batch: int = 32) -> bytes:
    """The ONNX file ``model`` with its spatial convolutions in int8: weights per channel, quantize and dequantize nodes around them.

    The first convolution stays as it is: it reads what the graph is given, whose rounding alone costs as much as all the others together.
    So do the products of one pixel or one Fourier component with itself, a small share of the work that doubles the error. Activations
    are unsigned with a zero point, the pair for which x86 processors have instructions, and keep all but the outermost 0.01 % of the
    values seen, so that a single outlier does not coarsen the rest.

    Args:
        model: the fp32 file.
        inputs: representative arrays (rows, ...) for every input, for a denoiser across its timesteps.
        batch: rows of one calibration call.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, made = (Path(folder) / name for name in ("source.onnx", "prepared.onnx", "made.onnx"))
        source.write_bytes(model)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(made),
            _Reader(inputs, batch),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=_spatial(onnx.load(prepared).graph)[1:],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={"WeightSymmetric": True, "CalibPercentile": 99.99},
        )
        return cleaned(made)


def _spatial(graph: Any) -> list[str]:
    """Names of the convolutions over more than one pixel, in the order they are computed."""
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "Conv" and np.prod(weights.get(node.input[1], [1, 1, 1])[2:]) > 1]


class _Reader:
    """ONNX Runtime's interface for calibration data."""

    def __init__(self, inputs: Mapping[str, np.ndarray], batch: int) -> None:
        rows = len(next(iter(inputs.values())))
        batch = min(batch, rows)
        # Whole batches alone: the histograms are stacked.
        firsts = range(0, rows - batch + 1, batch)
        self._batches = ({key: value[first : first + batch] for key, value in inputs.items()} for first in firsts)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs to the root logger and prints."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)

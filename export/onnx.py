"""PyTorch network -> ONNX bytes: fp32, weights inside, dynamic batch, the same bytes for the same checkpoint."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

EXAMPLE_BATCH = 2  # the exporter specialises a batch of 1


# Whatever the network computes in, its outputs are float32. The wrappers name their arguments, which the exporter needs for its axes.


class _Encoder(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, light: torch.Tensor, height: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        context, embedding = self.network.encode(light, height)
        return context.float(), embedding.float()


class _Denoiser(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return self.network.denoise(sample, timestep, context, embedding).float()


class _Planes(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
        return self.network(sample, timestep, planes).float()


class _Labelled(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.network(sample, timestep, label).float()


class _Alone(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.network(sample, timestep).float()


class _Restorer(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.network(sample).float()


class Part:
    """One ONNX graph to be: a module, named example inputs (batch of 2), the names of its outputs, its count of parameters."""

    def __init__(self, module: nn.Module, inputs: dict[str, torch.Tensor], outputs: tuple[str, ...], parameters: int) -> None:
        self.module, self.inputs, self.outputs, self.parameters = module.eval(), inputs, outputs, parameters

    @torch.no_grad()
    def __call__(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The PyTorch reference for parity and the golden self-test."""
        result = self.module(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, result if isinstance(result, tuple) else (result,), strict=True))

    def flops(self) -> int:
        """Floating-point operations of one row, a multiplication and an addition as two: those of matrix products and convolutions."""
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
        with counter:
            self(self.inputs)
        return int(counter.get_total_flops()) // EXAMPLE_BATCH


def parts(network: nn.Module, sample_shape: tuple[int, ...], condition: dict[str, torch.Tensor]) -> dict[str, Part]:
    """The graphs of a network: ``denoiser``, and ``encoder`` where what depends on the target alone can run by itself.

    Args:
        network: a module of ``train.networks``.
        sample_shape: (channels, height, width).
        condition: example arrays of ``Condition.arrays`` or ``Labels.arrays``, batch of 2.
    """
    sample = {"sample": torch.zeros(EXAMPLE_BATCH, *sample_shape), "timestep": torch.zeros(EXAMPLE_BATCH, dtype=torch.int64)}
    total = sum(p.numel() for p in network.parameters())
    if not hasattr(network, "encode"):
        wrapper = {"planes": _Planes, "label": _Labelled}.get(next(iter(condition), ""), _Alone)
        return {"denoiser": Part(wrapper(network), {**sample, **condition}, ("output",), total)}
    encoding = sum(p.numel() for p in network.get_submodule("encoder").parameters())
    encoder = Part(_Encoder(network), condition, ("context", "embedding"), encoding)
    return {"encoder": encoder, "denoiser": Part(_Denoiser(network), {**sample, **encoder(condition)}, ("output",), total - encoding)}


def restorer_part(network: nn.Module, sample_shape: tuple[int, ...]) -> dict[str, Part]:
    """The graph of a network that denoises in one step."""
    inputs = {"sample": torch.zeros(EXAMPLE_BATCH, *sample_shape)}
    return {"denoiser": Part(_Restorer(network), inputs, ("output",), sum(p.numel() for p in network.parameters()))}


def surrogate_part(network: nn.Module, size: int) -> dict[str, Part]:
    """The graph of a surrogate for patterns of ``size`` pixels a side."""
    inputs = {"pattern": torch.zeros(EXAMPLE_BATCH, 1, size, size), "height_nm": torch.full((EXAMPLE_BATCH, 1), 100.0)}
    return {"surrogate": Part(network, inputs, ("R", "T"), sum(p.numel() for p in network.parameters()))}


def to_onnx(part: Part) -> bytes:
    """The ONNX file of a part; see :func:`cleaned`."""
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "part.onnx"
        torch.onnx.export(
            part.module,
            tuple(part.inputs.values()),
            str(path),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamo=True,
            external_data=False,
            optimize=True,
            verbose=False,
            dynamic_shapes=tuple({0: batch} for _ in part.inputs),
        )
        return cleaned(path)


def cleaned(path: Path) -> bytes:
    """An ONNX file checked by ``onnx.checker`` with shape inference, free of local paths and of external data."""
    import onnx

    model = onnx.load(path)
    # Node metadata carries stack traces with this machine's paths.
    for graph in [model.graph, *model.functions]:
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in [*getattr(graph, "value_info", ()), *getattr(graph, "initializer", ())]:
            _strip(value)
    for value in [*model.graph.input, *model.graph.output]:
        _strip(value)
    for holder in (model, model.graph):
        del holder.metadata_props[:]
        holder.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    here = os.getcwd().encode()
    if here in content:
        raise RuntimeError(f"the exported graph still names {os.getcwd()}")
    return content


def _strip(value: Any) -> None:
    value.doc_string = ""
    if hasattr(value, "metadata_props"):
        del value.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter talks on stdout and through warnings about its own internals."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)

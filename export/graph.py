"""A small builder of ONNX graphs: nodes in order, constants once, and other models laid in under a prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Graph:
    """Nodes and constants of a graph to be. Every method returns names of values.

    Args:
        prefix: of all names made here, so that a body's names differ from those of the graph around it.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        # A body keeps its own: ONNX Runtime prepares the weights of a convolution only where they stand in the same graph.
        self.constants: dict[str, onnx.TensorProto] = {}
        self.count = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, name: str | None = None, **attributes: Any) -> Any:
        """Add a node; the name of its output, or the names of several."""
        self.count += 1
        label = f"{self.prefix}{kind}_{self.count}"
        made = [name or label] if outputs == 1 else [f"{label}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=label, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant; the same value is kept once."""
        array = np.asarray(value, dtype)
        key = f"{array.dtype.name}{list(array.shape)}{array.tobytes().hex() if array.size < 32 else hash_of(array)}"
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"{self.prefix}constant_{len(self.constants)}")
        return self.constants[key].name

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(values, np.int64)

    def lay_in(
        self, model: onnx.ModelProto, prefix: str, inputs: Mapping[str, str], outer: Graph | None = None, fixed: Sequence[str] = ()
    ) -> list[str]:
        """Put another model's nodes here, its inputs bound to values of this graph, its weights among the constants.

        Args:
            outer: the graph around this one, a loop's body: there goes what depends on the inputs ``fixed`` alone, computed once.

        Returns:
            The names of its outputs.
        """
        names = dict(inputs)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        names |= {name: f"{prefix}{name}" for name in weights}
        steady = set(fixed) | set(weights)
        for i, node in enumerate(model.graph.node):
            once = outer is not None and steady.issuperset(name for name in node.input if name)
            where = outer if once and outer is not None else self
            if once:
                steady.update(node.output)
            names |= {name: f"{prefix}{name}" if name else "" for name in node.output}
            for name in set(node.input) & set(weights):
                tensor = onnx.TensorProto()
                tensor.CopyFrom(weights[name])
                # A body may not use a name of the graph around it anew.
                tensor.name = names[name] if where is self else f"once/{names[name]}"
                where.constants[tensor.name] = tensor
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = f"{prefix}{node.name or i}"
            copied.input[:] = [
                f"once/{names[name]}" if where is not self and name in weights else names.get(name, "") for name in node.input
            ]
            copied.output[:] = [names[name] for name in node.output]
            where.nodes.append(copied)
        return [names[value.name] for value in model.graph.output]

    def graph(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> onnx.GraphProto:
        """The finished graph."""
        return helper.make_graph(self.nodes, name, inputs, outputs, list(self.constants.values()))


def hash_of(array: np.ndarray) -> str:
    """A short name for an array's content."""
    import hashlib

    return hashlib.sha256(array.tobytes()).hexdigest()


def value(name: str, shape: Sequence[int | str] | None, kind: int = onnx.TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A graph's input or output."""
    return helper.make_tensor_value_info(name, kind, shape)

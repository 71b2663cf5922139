"""ONNX models with a tensor wherever one can stand, and protobuf's own reading of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def inside(name: str = "w") -> Any:
    return numpy_helper.from_array(np.arange(4, dtype=np.float32), name)


def outside(name: str = "w") -> Any:
    tensor = inside(name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../weights.bin")
    return tensor


def sparse(values: Any, indices: Any) -> Any:
    return helper.make_sparse_tensor(values, indices, [9])


def indices() -> Any:
    return numpy_helper.from_array(np.arange(4, dtype=np.int64), "i")


def holding(**attribute: Any) -> Any:
    """A node with one attribute of any kind."""
    node = helper.make_node("Constant", [], ["c"])
    added = node.attribute.add(name="value")
    for field, value in attribute.items():
        if isinstance(value, list):
            getattr(added, field).extend(value)
        else:
            getattr(added, field).CopyFrom(value)
    return node


def graph(*nodes: Any, initializers: tuple[Any, ...] = (), sparses: tuple[Any, ...] = ()) -> Any:
    made = helper.make_graph(list(nodes), "g", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])], list(initializers))
    made.sparse_initializer.extend(sparses)
    return made


def model(*nodes: Any, **more: Any) -> Any:
    return helper.make_model(graph(*nodes, **more))


def loop(body: Any) -> Any:
    return holding(g=body)


def in_function(node: Any = None, attribute: Any = None) -> Any:
    function = onnx.FunctionProto(name="f", domain="d")
    function.node.extend([node] if node is not None else [])
    function.attribute_proto.extend([attribute] if attribute is not None else [])
    made = model()
    made.functions.append(function)
    return made


def in_training(**graphs: Any) -> Any:
    made = model()
    training = made.training_info.add()
    for field, value in graphs.items():
        getattr(training, field).CopyFrom(value)
    return made


# Every place of a model in which a tensor can stand.
PLACES: dict[str, Callable[[Any], Any]] = {
    "initializer": lambda t: model(initializers=(inside("a"), t, inside("b"))),
    "values of a sparse initializer": lambda t: model(sparses=(sparse(t, indices()),)),
    "indices of a sparse initializer": lambda t: model(sparses=(sparse(inside(), t),)),
    "tensor of a Constant": lambda t: model(holding(t=t)),
    "tensors of a node": lambda t: model(holding(tensors=[inside(), t])),
    "sparse tensor of a Constant": lambda t: model(holding(sparse_tensor=sparse(t, indices()))),
    "sparse tensors of a node": lambda t: model(holding(sparse_tensors=[sparse(inside(), indices()), sparse(inside(), t)])),
    "initializer of a Loop's body": lambda t: model(loop(graph(initializers=(t,)))),
    "Constant in a Loop's body": lambda t: model(loop(graph(holding(t=inside()), holding(t=t)))),
    "If in a Loop in an If": lambda t: model(loop(graph(loop(graph(loop(graph(initializers=(t,)))))))),
    "graphs of a node": lambda t: model(holding(graphs=[graph(), graph(initializers=(t,))])),
    "Constant in a function": lambda t: in_function(holding(t=t)),
    "Loop in a function": lambda t: in_function(loop(graph(initializers=(t,)))),
    "default of a function's attribute": lambda t: in_function(attribute=holding(t=t).attribute[0]),
    "initialization of training": lambda t: in_training(initialization=graph(initializers=(t,))),
    "algorithm of training": lambda t: in_training(algorithm=graph(holding(t=t))),
}


def rich() -> Any:
    """A small model with something at every level."""
    made = model(
        holding(t=inside()),
        loop(graph(holding(t=inside()), initializers=(inside(),))),
        initializers=(inside(),),
        sparses=(sparse(inside(), indices()),),
    )
    made.functions.extend(in_function(holding(t=inside())).functions)
    made.doc_string = "x" * 200
    return made


def parses(content: bytes) -> Any:
    try:
        return onnx.ModelProto.FromString(content)
    except Exception:  # protobuf's own error has no public name
        return None


def tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a parsed message, found by its own description and not by a list of places."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if not hasattr(value, "DESCRIPTOR") else [value]:
                yield from tensors(inner)


def record(field: int, content: bytes) -> bytes:
    """A length-delimited record."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def around(tensor: bytes) -> bytes:
    """A model with one initializer of these bytes."""
    return record(7, record(5, tensor))

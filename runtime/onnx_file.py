"""Whether an ONNX file holds all of its data itself, told from its bytes alone: a laboratory has no ``onnx`` package.

ONNX may keep a tensor's data in another file, named by a path inside the model. A bundle's hashes do not reach such a file, and
the path may lead anywhere, so a model that names one is refused before an engine sees it.

The file is a protobuf message: records of a tag (field number and wire type) and a value, nested where the value is a message of its
own (https://protobuf.dev/programming-guides/encoding). Only the nesting that can hold tensors is followed; every other value is
skipped by its stated length, so the time taken goes with the number of records and not with the size of the weights.
"""

from __future__ import annotations

from .errors import BundleError

# Field numbers of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3): the fields that lead to tensors.
FIELDS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
GRAPH = 7  # ModelProto.graph
OP_TYPE = 4  # NodeProto.op_type
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # TensorProto.external_data, .data_location; DEFAULT is 0 and EXTERNAL 1

# A node that stands for an engine compiled elsewhere, in a file it names or inside the model
# (https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html).
_COMPILED = b"EPContext"
# ONNX Runtime takes bytes that are marked so for a format of its own, whatever protobuf makes of them.
_ORT_FORMAT = b"ORTM"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4, groups, occur nowhere in ONNX
_DEEPEST = 100  # protobuf's own parsers stop there too
_MOST = 1 << 22  # records; the shipped denoiser has 11549


def check_self_contained(content: bytes, where: str) -> None:
    """Refuse an ONNX model that keeps data outside itself, or that is none.

    Looked at are initializers, sparse initializers, attributes of nodes, subgraphs to any depth, functions and training graphs.

    Args:
        content: the file's bytes; nothing of them is copied.
        where: what the error calls the file.

    Raises:
        BundleError: a tensor's data lie in another file, a node stands for an engine compiled elsewhere, or the bytes are no
            protobuf message with a graph in it, as far as they are followed.
    """
    if content[4:8] == _ORT_FORMAT:
        raise BundleError(f"{where} is in ONNX Runtime's own format; expected an ONNX model, export the bundle again")
    at, end, kind = 0, len(content), "ModelProto"
    open_messages: list[tuple[int, str]] = []
    has_graph = False
    for _ in range(_MOST):
        while at == end:
            if not open_messages:
                if not has_graph:
                    raise BundleError(f"{where} is no ONNX model: it holds no graph; export the bundle again")
                return
            end, kind = open_messages.pop()
        tag, at = _varint(content, at, end, where)
        field, wire = tag >> 3, tag & 7
        # Parsers differ in what they make of longer tags: some drop the upper bits.
        if field == 0 or tag >> 32:
            raise _malformed(where, at, "a record has no valid field number")
        if wire == _VARINT:
            size, (value, at) = 0, _varint(content, at, end, where)
        elif wire == _BYTES:
            size, at = _varint(content, at, end, where)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _malformed(where, at, f"a record has the wire type {wire}")
        if size > end - at:
            raise _malformed(where, at, f"a record of {size} bytes stands where {end - at} are left")
        inner = FIELDS[kind].get(field)
        if inner is not None:
            if wire != _BYTES:
                raise _malformed(where, at, f"field {field} of {kind} has the wire type {wire}")
            if len(open_messages) == _DEEPEST:
                raise _malformed(where, at, f"its messages are nested more than {_DEEPEST} deep")
            has_graph |= kind == "ModelProto" and field == GRAPH
            open_messages.append((end, kind))
            end, kind = at + size, inner
            continue
        if kind == "TensorProto" and (field == EXTERNAL_DATA or (field == DATA_LOCATION and (wire != _VARINT or value != 0))):
            raise BundleError(f"{where} keeps the data of a tensor in another file; export the bundle again, with the weights inside")
        if kind == "NodeProto" and field == OP_TYPE and size == len(_COMPILED) and content.startswith(_COMPILED, at):
            raise BundleError(f"{where} holds an engine compiled elsewhere (a node {_COMPILED.decode()}); export the bundle again")
        at += size
    raise BundleError(f"{where} has more than {_MOST} protobuf records, more than any network; do not use this bundle")


def _varint(content: bytes, at: int, end: int, where: str) -> tuple[int, int]:
    """The whole number at ``at``, seven bits a byte with the lowest first, and the position behind it."""
    value = shift = 0
    while at < end and shift < 70:  # ten bytes hold 64 bits
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _malformed(where, at, "a number is cut off or has more than 64 bits")


def _malformed(where: str, at: int, what: str) -> BundleError:
    return BundleError(f"{where} is no ONNX model: {what} (byte {at}); copy or export the bundle again")

"""ONNX files that keep data outside themselves, or are none, are refused from their bytes alone; the ``onnx`` package is the judge."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime import onnx_file as room
from runtime.errors import BundleError
from runtime.onnx_file import check_self_contained
from tests.runtime.onnx_models import (
    PLACES,
    around,
    graph,
    holding,
    in_function,
    inside,
    loop,
    model,
    outside,
    parses,
    record,
    rich,
    tensors,
)

ROOT = Path(__file__).parents[2]


def location_alone() -> Any:
    tensor = inside()
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def entry_alone() -> Any:
    tensor = inside()
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def test_field_numbers_are_those_of_the_onnx_package() -> None:
    """Every field of every message that can hold a tensor, however deep, is followed, and no other."""
    messages: dict[str, Any] = {}
    pending = [onnx.ModelProto.DESCRIPTOR]
    while pending:
        message = pending.pop()
        if message.name not in messages:
            messages[message.name] = message
            pending += [field.message_type for field in message.fields if field.message_type is not None]
    holders = {"TensorProto"}
    for _ in messages:
        holders |= {n for n, m in messages.items() if any(f.message_type is not None and f.message_type.name in holders for f in m.fields)}
    expected = {
        name: {
            f.number: f.message_type.name for f in messages[name].fields if f.message_type is not None and f.message_type.name in holders
        }
        for name in holders
    }
    assert expected == room.FIELDS
    number = {(name, field.name): field.number for name, message in messages.items() for field in message.fields}
    assert number["ModelProto", "graph"] == room.GRAPH
    assert number["NodeProto", "op_type"] == room.OP_TYPE
    assert number["TensorProto", "external_data"] == room.EXTERNAL_DATA
    assert number["TensorProto", "data_location"] == room.DATA_LOCATION
    assert (TensorProto.DEFAULT, TensorProto.EXTERNAL) == (0, 1)


@pytest.mark.parametrize("place", PLACES)
def test_data_outside_are_found_wherever_a_tensor_stands(place: str) -> None:
    check_self_contained(PLACES[place](inside()).SerializeToString(), "a.onnx")
    for tensor in (outside(), location_alone(), entry_alone()):
        with pytest.raises(BundleError, match=r"^a\.onnx keeps the data of a tensor in another file; export"):
            check_self_contained(PLACES[place](tensor).SerializeToString(), "a.onnx")


def test_a_tensor_that_says_in_so_many_words_that_its_data_are_inside() -> None:
    tensor = inside()
    tensor.data_location = TensorProto.DEFAULT
    check_self_contained(model(initializers=(tensor,)).SerializeToString(), "a.onnx")


def test_what_the_onnx_package_saves_beside_a_model_is_refused(tmp_path: Path) -> None:
    onnx.save_model(model(holding(t=inside())), tmp_path / "whole.onnx")
    onnx.save_model(
        model(initializers=(inside(),)), tmp_path / "parts.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    check_self_contained((tmp_path / "whole.onnx").read_bytes(), "whole.onnx")
    with pytest.raises(BundleError, match="in another file"):
        check_self_contained((tmp_path / "parts.onnx").read_bytes(), "parts.onnx")


@pytest.mark.parametrize("path", sorted((ROOT / "bundles").glob("*/*.onnx")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_shipped_networks_are_whole(path: Path) -> None:
    check_self_contained(path.read_bytes(), path.name)


def test_exported_networks_are_whole(small_bundle: Path) -> None:
    for path in small_bundle.glob("*.onnx"):
        check_self_contained(path.read_bytes(), path.name)


def whole(content: bytes) -> bool:
    try:
        check_self_contained(content, "a.onnx")
    except BundleError as error:
        text = str(error)
    else:
        return True
    assert text.startswith("a.onnx ")
    assert text.isprintable()
    return False


def nothing_outside(content: bytes) -> bool:
    """As protobuf reads it. What it does not read, because a message that holds no tensors is spoiled, no engine takes either."""
    found = parses(content)
    return found is None or (found.HasField("graph") and not any(t.data_location or t.external_data for t in tensors(found)))


def test_a_model_cut_anywhere_is_judged_as_protobuf_judges_it() -> None:
    content = rich().SerializeToString()
    kept = []
    for length in range(len(content) + 1):
        found = parses(content[:length])
        assert whole(content[:length]) == (found is not None and found.HasField("graph")), length
        kept.append(found is not None and found.HasField("graph"))
    assert kept[-1]
    assert 1 < sum(kept) < 10  # between the fields of the model itself


@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=st.binary(max_size=200) | st.binary(max_size=60).map(lambda more: b"\x3a" + bytes([len(more)]) + more))
def test_random_bytes_are_refused_unless_protobuf_finds_nothing_outside_in_them(content: bytes) -> None:
    if whole(content):
        assert nothing_outside(content)


@settings(max_examples=700, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_mutation_hides_data_outside(data: st.DataObject) -> None:
    """Whatever is done to the bytes: protobuf finds nothing outside in what is let through."""
    content = bytearray(MUTATED[data.draw(st.sampled_from(sorted(MUTATED)))])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["set", "flip", "insert", "delete", "copy"])):
            case "set":
                content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x0B, 0x0C, 0x70, 0x6A, 0x2A, 0x32]))
            case "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case "delete" if len(content) > 1:
                del content[at]
            case "copy":
                content[at:at] = content[at : at + data.draw(st.integers(1, 60))]
    if whole(bytes(content)):
        assert nothing_outside(bytes(content))


MUTATED = {"rich": rich().SerializeToString()} | {place: make(outside()).SerializeToString() for place, make in PLACES.items()}


@pytest.mark.parametrize(
    "tensor",
    [
        b"\x70\x01",
        b"\x70\x02",
        b"\x70\x81\x00",  # one, in more bytes than it needs
        b"\x70\x81\x80\x80\x80\x10",  # one and 2^32, which protobuf cuts to 32 bits
        b"\xf0\x00\x01",  # the tag in more bytes than it needs
        b"\x70\x01\x70\x00",  # and back again
        b"\x6a\x00",  # an empty entry
        b"\x4a\x04\x70\x01\x70\x01\x70\x01",  # behind raw data that look like it
    ],
    ids=lambda tensor: tensor.hex(),
)
def test_ways_of_writing_it_that_protobuf_understands(tensor: bytes) -> None:
    assert parses(around(tensor)) is not None
    with pytest.raises(BundleError, match="in another file"):
        check_self_contained(around(tensor), "a.onnx")


def test_what_looks_like_it_and_is_not() -> None:
    """Weights, names and fields of other messages with the same numbers."""
    for tensor in (record(9, b"\x70\x01\x6a\x02aa"), record(8, b"\x70\x01"), b"\x70\x00", record(12, outside().SerializeToString())):
        assert whole(around(tensor))
    assert whole(record(7, b"\x70\x01"))  # field 14 of a graph
    assert whole(record(7, b"") + record(6, outside().SerializeToString()))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no graph"),
        (b"\x08\x0a", "holds no graph"),
        (record(25, b""), "holds no graph"),
        (b"\x3a", "a number is cut off"),
        (b"\x3a\x05", "a record of 5 bytes stands where 0 are left"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "stands where 0 are left"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "more than 64 bits"),
        (b"\x3a\x01\x2a", "a number is cut off"),
        (record(7, b"\x2a\x05") + bytes(9), "a record of 5 bytes stands where 0 are left"),
        (b"\x09\x00", "a record of 8 bytes"),
        (b"\x0d\x00", "a record of 4 bytes"),
        (b"\x02\x00", "no valid field number"),
        (b"\xba\x80\x80\x80\x80\x01\x00", "no valid field number"),
        (b"\x3b\x3c", "wire type 3"),
        (b"\x3e\x00", "wire type 6"),
        (b"\x38\x00", "field 7 of ModelProto has the wire type 0"),
        (b"\x89PNG\r\n\x1a\n", "a record of 8 bytes"),
    ],
)
def test_bytes_that_are_no_model_are_refused_by_name(content: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=rf"^a\.onnx is no ONNX model: .*{words}.*; (copy or )?export the bundle again$"):
        check_self_contained(content, "a.onnx")


def test_onnx_runtimes_own_format_is_refused(small_bundle: Path) -> None:
    """It may keep weights elsewhere too, and ONNX Runtime goes by these four bytes, whatever protobuf makes of the rest."""
    content = record(7, b"")
    polyglot = record(2, b"xxORTM") + content
    assert polyglot[4:8] == b"ORTM"
    assert parses(polyglot).HasField("graph")
    with pytest.raises(BundleError, match="ONNX Runtime's own format"):
        check_self_contained(polyglot, "a.onnx")
    assert whole(record(2, b"xxORTN") + content)


def test_engines_compiled_elsewhere_are_refused() -> None:
    compiled = helper.make_node("EPContext", [], ["c"], domain="com.microsoft", ep_cache_context="../engine.bin", embed_mode=0)
    for made in (model(compiled), model(loop(graph(compiled))), in_function(compiled)):
        with pytest.raises(BundleError, match="an engine compiled elsewhere"):
            check_self_contained(made.SerializeToString(), "a.onnx")
    assert whole(model(helper.make_node("EPContexts", [], ["c"], name="EPContext")).SerializeToString())


def nested(depth: int) -> bytes:
    """Subgraphs within subgraphs; each is three messages (graph, node, attribute)."""
    content = b""
    for _ in range(depth):
        content = record(1, record(5, record(6, content)))
    return record(7, content)


def test_nesting_ends_where_protobufs_own_does() -> None:
    assert whole(nested(33))
    assert parses(nested(33)) is not None
    assert parses(nested(34)) is None
    with pytest.raises(BundleError, match="nested more than 100 deep"):
        check_self_contained(nested(34), "a.onnx")
    assert not whole(nested(5000))


def test_more_records_than_any_network_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOST", 1000)
    assert whole(record(7, b"") * 999)
    with pytest.raises(BundleError, match="more than 1000 protobuf records"):
        check_self_contained(record(7, b"") * 1001, "a.onnx")


def test_weights_are_passed_over_and_never_copied() -> None:
    content = model(initializers=(numpy_helper.from_array(np.zeros(1 << 22, np.float32), "w"),)).SerializeToString()
    tracemalloc.start()
    try:
        check_self_contained(content, "a.onnx")
        assert tracemalloc.get_traced_memory()[1] < 1 << 14 < len(content)
    finally:
        tracemalloc.stop()

"""What every engine owes the rest of the runtime, asked in the same words of each engine, device and precision that answers here.

An engine that does not answer is skipped, once, with the reason a user would be given.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import selftest
from runtime.backends import BACKENDS, PRECISIONS, Choice, Load, Network, candidates, engine, file_precision, open_networks
from runtime.bundle import Bundle
from runtime.engine import models
from runtime.errors import BackendError

FILES = ("fp32",)  # the precisions that the bundles of these tests hold
REFERENCE = Choice("onnxruntime", "cpu", "fp32")
SIZES = (1, 7, 64, 65, 300)
# Largest difference of two evaluations of the same rows, over the root mean square of the outputs. Measured against ONNX Runtime over
# all noise levels: 7e-6 in fp32; 0.06 in bf16, whose mantissa has 8 bits.
LARGEST = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 2e-1, "int8": 1.0}
# The root mean square of such differences. Measured: 2e-6 in fp32, 2.3e-2 in bf16.
TYPICAL = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2, "int8": 3e-1}

Arrays = dict[str, np.ndarray]
Opener = Callable[..., Network]


def offers() -> tuple[list[Any], list[Any]]:
    """What the engines compute in here, and for each device that does not answer the reason to skip it."""
    answering, absent = [], []
    for backend, described in BACKENDS.items():
        for device in described.devices:
            marks = [pytest.mark.gpu] if device == "cuda" else []
            asked = [candidates(backend, device, precision, FILES) for precision in PRECISIONS[1:]]
            found = [choice for choices, _ in asked for choice in choices]
            answering += [pytest.param(choice, marks=marks, id=f"{backend}-{device}-{choice.precision}") for choice in found]
            if not found:
                marks.append(pytest.mark.skip(reason=asked[0][1][0]))
                absent.append(pytest.param(None, marks=marks, id=f"{backend}-{device}"))
    return answering, absent


ANSWERING, ABSENT = offers()


@pytest.fixture(scope="module", params=ANSWERING)
def choice(request: pytest.FixtureRequest) -> Choice:
    return request.param


def opened(bundle: Path, name: str, choice: Choice, load: Load = Load(threads=1)) -> Network:  # noqa: B008
    found = open_networks({name: models(Bundle.open(bundle))[name]}, *choice, load)
    assert found.choice == choice
    return found.networks[name]


@pytest.fixture(scope="module")
def network(choice: Choice, small_bundle: Path) -> Iterator[Network]:
    """The small bundle's denoiser."""
    made = opened(small_bundle, "denoiser", choice)
    yield made
    made.close()


@pytest.fixture(scope="module")
def batch_of() -> Callable[..., Arrays]:
    """Random inputs for any network, the same for the same seed."""

    def batch_of(network: Network, count: int, seed: int = 0) -> Arrays:
        rng = np.random.default_rng(seed)
        arrays: Arrays = {}
        for name, (shape, dtype) in network.inputs.items():
            size = (count, *shape)
            arrays[name] = rng.integers(0, 1000, size) if dtype == "int64" else rng.standard_normal(size, np.float32)
        return arrays

    return batch_of


def assert_close(found: np.ndarray, expected: np.ndarray, precision: str, message: str = "") -> None:
    """Equal to what the precision allows, relative to the size of the outputs (at least 0.1, where they are near nothing)."""
    assert found.shape == expected.shape, message
    assert found.dtype == expected.dtype == np.float32, message
    scale = max(0.1, float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))))
    apart = np.abs(found.astype(np.float64) - expected) / scale
    assert apart.max() <= LARGEST[precision], message
    assert np.sqrt(np.mean(apart**2)) <= TYPICAL[precision], message


def rows(arrays: Arrays, which: slice | np.ndarray) -> Arrays:
    return {key: value[which] for key, value in arrays.items()}


# --- What it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [*ANSWERING, *ABSENT], indirect=True)
def test_it_says_what_answers_and_what_the_manifest_describes(network: Network, choice: Choice, small_bundle: Path) -> None:
    described = Bundle.open(small_bundle).manifest["networks"]["denoiser"]
    assert (network.backend, network.device, network.precision) == choice
    for found, wanted in ((network.inputs, described["inputs"]), (network.outputs, described["outputs"])):
        assert {key: (list(shape), dtype) for key, (shape, dtype) in found.items()} == {
            key: (entry["shape"][1:], entry["dtype"]) for key, entry in wanted.items()
        }
    assert list(network.buckets) == sorted(set(network.buckets))
    assert network.batch_size >= 1
    assert not network.buckets or network.batch_size in network.buckets


# --- Batches --------------------------------------------------------------------------------------------------------


def test_a_row_depends_on_nobody_who_shares_its_batch(network: Network, batch_of: Callable[..., Arrays]) -> None:
    arrays = batch_of(network, max(SIZES))
    whole = network(arrays)
    assert {key: value.shape for key, value in whole.items()} == {key: (max(SIZES), *shape) for key, (shape, _) in network.outputs.items()}
    assert whole["output"].std(axis=0).min() > 0, "the rows differ from one another"
    for size in SIZES:
        found = network(rows(arrays, slice(size)))["output"]
        assert_close(found, whole["output"][:size], network.precision, f"the first {size}")
    for i in (0, 63, 64, 255, 256, 299):
        alone = network(rows(arrays, slice(i, i + 1)))["output"]
        assert_close(alone, whole["output"][i : i + 1], network.precision, f"row {i}")


@pytest.mark.parametrize("size", SIZES[1:])
def test_one_spoiled_row_spoils_no_other(network: Network, batch_of: Callable[..., Arrays], size: int) -> None:
    """The last row stands for those an engine is padded with; neither it nor what an earlier batch left behind reaches the others."""
    arrays = batch_of(network, size)
    clean = network(arrays)["output"]
    spoiled = {key: value.copy() for key, value in arrays.items()}
    spoiled["sample"][-1] = np.nan
    found = network(spoiled)["output"]
    assert np.isnan(found[-1]).any()
    np.testing.assert_array_equal(found[:-1], clean[:-1])
    np.testing.assert_array_equal(network(arrays)["output"], clean)


def test_same_input_same_output_bit_for_bit(network: Network, batch_of: Callable[..., Arrays]) -> None:
    arrays = batch_of(network, 9)
    first = network(arrays)["output"]
    network(batch_of(network, 9, seed=1))
    np.testing.assert_array_equal(network(arrays)["output"], first)
    with network.bind({}, 9):  # holds the context used so far, so that the next call has another one made
        np.testing.assert_array_equal(network(arrays)["output"], first)


def test_arrays_of_any_layout(network: Network, batch_of: Callable[..., Arrays]) -> None:
    """Views, columns first and read-only arrays are arrays too, and none of them is written to."""
    arrays = batch_of(network, 6)
    kept = {key: value.copy() for key, value in arrays.items()}
    expected = network({key: np.ascontiguousarray(value[::2]) for key, value in arrays.items()})["output"]
    for value in arrays.values():
        value.setflags(write=False)
    np.testing.assert_array_equal(network(rows(arrays, slice(None, None, 2)))["output"], expected)
    np.testing.assert_array_equal(network({k: np.asfortranarray(v[::2]) for k, v in arrays.items()})["output"], expected)
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, kept[key])


def test_results_are_the_callers_to_keep(network: Network, batch_of: Callable[..., Arrays]) -> None:
    first = network(batch_of(network, 5))["output"]
    kept = first.copy()
    network(batch_of(network, 5, seed=1))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # and to write to


# --- Parity ---------------------------------------------------------------------------------------------------------


def test_the_small_bundle_agrees_with_pytorch(choice: Choice, small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    networks = {name: opened(small_bundle, name, choice) for name in bundle.manifest["networks"]}
    result = selftest.compare(bundle, networks)
    for made in networks.values():
        made.close()
    assert result["ok"], result
    assert all(entry["relative_difference"] <= TYPICAL[choice.precision] for entry in result["networks"].values()), result


@pytest.fixture(scope="module")
def shipped() -> tuple[Bundle, Arrays, Arrays]:
    """The shipped bundle, inputs of its denoiser over all noise levels for its golden conditions, and what ONNX Runtime makes of them."""
    bundle = Bundle.open()
    golden = bundle.arrays("golden.npz")
    timesteps = np.array([0, 1, 20, 100, 400, 700, 900, 999])
    rng = np.random.default_rng(0)
    arrays = {key: golden[f"denoiser.in.{key}"][np.arange(len(timesteps)) % 4] for key in ("context", "embedding")}
    arrays |= {"sample": rng.standard_normal((len(timesteps), 1, 10, 10), np.float32), "timestep": timesteps}
    reference = opened(bundle.path, "denoiser", REFERENCE)
    expected = reference(arrays)
    reference.close()
    return bundle, arrays, expected


def test_the_shipped_bundle_agrees_with_pytorch_and_with_onnxruntime(choice: Choice, shipped: tuple[Bundle, Arrays, Arrays]) -> None:
    bundle, arrays, expected = shipped
    networks = {name: opened(bundle.path, name, choice) for name in bundle.manifest["networks"]}
    result = selftest.compare(bundle, networks)
    found = networks["denoiser"](arrays)["output"]
    for made in networks.values():
        made.close()
    assert result["ok"], result
    assert all(entry["relative_difference"] <= TYPICAL[choice.precision] for entry in result["networks"].values()), result
    for i, timestep in enumerate(arrays["timestep"]):
        assert_close(found[i], expected["output"][i], choice.precision, f"timestep {timestep}")


# --- Bindings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_what_is_bound_is_given_once(network: Network, batch_of: Callable[..., Arrays], size: int) -> None:
    arrays = batch_of(network, size)
    fixed = {key: arrays.pop(key) for key in ("context", "embedding")}
    others = {key: batch_of(network, size, seed=1)[key] for key in arrays}
    expected = [network({**fixed, **varying})["output"] for varying in (arrays, others)]
    with network.bind(fixed, size) as call:
        for value in fixed.values():
            value[:] = np.nan  # the binding has taken them over
        for varying, wanted in ((arrays, expected[0]), (others, expected[1]), (arrays, expected[0])):
            np.testing.assert_array_equal(call(varying)["output"], wanted)


@pytest.mark.parametrize("size", SIZES)
def test_one_bound_row_stands_for_all(network: Network, batch_of: Callable[..., Arrays], size: int) -> None:
    arrays = batch_of(network, size)
    one = {key: arrays.pop(key)[:1] for key in ("context", "embedding")}
    all_of_them = {key: np.repeat(value, size, axis=0) for key, value in one.items()}
    with network.bind(one, size) as call:
        np.testing.assert_array_equal(call(arrays)["output"], network({**arrays, **all_of_them})["output"])


def test_two_bindings_at_once_do_not_disturb_each_other(network: Network, batch_of: Callable[..., Arrays]) -> None:
    first, second = batch_of(network, 7), batch_of(network, 7, seed=1)
    expected = [network(arrays)["output"] for arrays in (first, second)]
    varying = [{key: arrays.pop(key) for key in ("sample", "timestep")} for arrays in (first, second)]
    with network.bind(first, 7) as one, network.bind(second, 7) as two:
        for _ in range(2):
            np.testing.assert_array_equal(one(varying[0])["output"], expected[0])
            np.testing.assert_array_equal(two(varying[1])["output"], expected[1])
    with network.bind(second, 7) as again:  # a context that others have used
        np.testing.assert_array_equal(again(varying[1])["output"], expected[1])


# --- Mistakes -------------------------------------------------------------------------------------------------------


def test_wrong_inputs_are_named(network: Network, batch_of: Callable[..., Arrays]) -> None:
    good = batch_of(network, 4)
    expected = network(good)["output"]
    cases = [
        ({**good, "extra": good["sample"]}, r"denoiser\.onnx has no input 'extra'; its inputs are sample, timestep"),
        ({k: v for k, v in good.items() if k != "timestep"}, r"denoiser\.onnx lacks its input 'timestep'"),
        ({}, r"denoiser\.onnx lacks its input 'sample'"),
        ({**good, "sample": good["sample"][:, :, :4]}, r"'sample' has shape \(4, 1, 4, 5\); expected \(batch, 1, 5, 5\)"),
        ({**good, "sample": good["sample"][0]}, r"'sample' has shape \(1, 5, 5\); expected \(batch, 1, 5, 5\)"),
        ({k: v[:0] for k, v in good.items()}, r"'sample' has shape \(0, 1, 5, 5\); expected \(batch, 1, 5, 5\)"),
        ({**good, "timestep": np.int64(3)}, r"'timestep' is a int64; expected a NumPy array of int64"),
        ({**good, "timestep": [1, 2, 3, 4]}, r"'timestep' is a list; expected a NumPy array of int64"),
        ({**good, "sample": good["sample"].astype(np.float64)}, "'sample' has dtype float64; expected float32"),
        ({**good, "timestep": good["timestep"].astype(np.int32)}, "'timestep' has dtype int32; expected int64"),
        ({**good, "sample": good["sample"].astype(np.complex64)}, "'sample' has dtype complex64; expected float32"),
        ({**good, "timestep": good["timestep"][:3]}, r"inputs have batches of \[3, 4\]; expected one batch size"),
        ({**good, "timestep": good["timestep"][:1]}, r"inputs have batches of \[1, 4\]; expected one batch size"),
    ]
    for inputs, sentence in cases:
        with pytest.raises(BackendError, match=sentence):
            network(inputs)
    np.testing.assert_array_equal(network(good)["output"], expected, "and none of that hurts it")


def test_wrong_bindings_are_named(network: Network, batch_of: Callable[..., Arrays]) -> None:
    arrays = batch_of(network, 4)
    fixed = {key: arrays.pop(key) for key in ("context", "embedding")}
    for given, batch, sentence in [
        (fixed, 0, r"denoiser\.onnx: the batch is 0; it must be at least 1"),
        (fixed, 5, r"inputs have batches of \[4\]; expected 5"),
        ({"contxt": fixed["context"]}, 4, r"has no input 'contxt'; its inputs are sample"),
        ({"context": fixed["context"].astype(np.float64)}, 4, "'context' has dtype float64; expected float32"),
    ]:
        with pytest.raises(BackendError, match=sentence), network.bind(given, batch):
            pass
    with network.bind(fixed, 4) as call:
        expected = call(arrays)["output"].copy()
        for varying, sentence in [
            ({"sample": arrays["sample"]}, "lacks its input 'timestep'"),
            ({**arrays, "context": arrays["sample"]}, "has no input 'context'; its inputs are sample, timestep"),
            (rows(arrays, slice(3)), r"inputs have batches of \[3\]; expected 4"),
        ]:
            with pytest.raises(BackendError, match=sentence):
                call(varying)
        np.testing.assert_array_equal(call(arrays)["output"], expected)


@pytest.mark.parametrize("content", [b"", b"not ONNX", b"\x08\x07" + b"\xff" * 100, None], ids=["empty", "text", "noise", "half"])
def test_a_model_that_cannot_be_read(choice: Choice, small_bundle: Path, content: bytes | None) -> None:
    if content is None:
        whole = Bundle.open(small_bundle).read("denoiser.onnx")
        content = whole[: len(whole) // 2]
    with pytest.raises(BackendError, match=r"x\.onnx") as caught:
        engine(choice.backend).open_network(content, "x.onnx", choice, Load(threads=1))
    assert "\n" not in str(caught.value)
    assert choice.device in str(caught.value)


# --- Closing --------------------------------------------------------------------------------------------------------


def test_closed_networks_say_so(choice: Choice, small_bundle: Path, batch_of: Callable[..., Arrays]) -> None:
    """Closed idle, closed while bound and closed again: what is bound still finishes, what comes after is refused."""
    network = opened(small_bundle, "denoiser", choice)
    arrays = batch_of(network, 3)
    expected = network(arrays)["output"]
    with network.bind({}, 3) as call:
        network.close()
        np.testing.assert_array_equal(call(arrays)["output"], expected)
        with pytest.raises(BackendError, match=r"denoiser\.onnx is closed; load the bundle again"):
            network(arrays)
    network.close()
    with pytest.raises(BackendError, match=r"denoiser\.onnx is closed"):
        network(arrays)
    with pytest.raises(BackendError, match=r"denoiser\.onnx is closed"), network.bind({}, 3):
        pass


def test_closing_under_a_running_thread(choice: Choice, small_bundle: Path, batch_of: Callable[..., Arrays]) -> None:
    network = opened(small_bundle, "denoiser", choice)
    arrays = batch_of(network, 8)
    expected = network(arrays)["output"]
    running = threading.Event()

    def calls() -> str:
        while True:
            try:
                found = network(arrays)["output"]
            except BackendError as error:
                return str(error)
            np.testing.assert_array_equal(found, expected)
            running.set()

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(calls)
        assert running.wait(60)
        network.close()
        assert "denoiser.onnx is closed" in ended.result(60)


# --- Threads, memory and noise --------------------------------------------------------------------------------------


def test_threads_share_a_network(choice: Choice, small_bundle: Path, batch_of: Callable[..., Arrays]) -> None:
    network = opened(small_bundle, "denoiser", choice, Load(threads=1, concurrency=2))
    sizes = [16, 3, 16, 3, 70, 16]
    inputs = [batch_of(network, size, seed) for seed, size in enumerate(sizes)]
    ready = threading.Barrier(2)

    def mine(start: int) -> list[np.ndarray]:
        ready.wait(60)  # so that both begin with contexts, and compiled batches, that do not exist yet
        return [network(arrays)["output"] for arrays in inputs[start::2]]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(mine, (0, 1)))
    for start, results in enumerate(together):
        for found, arrays in zip(results, inputs[start::2], strict=True):
            np.testing.assert_array_equal(found, network(arrays)["output"])
    network.close()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system has no /proc to read the memory from")
def test_repeated_calls_keep_nothing(network: Network, batch_of: Callable[..., Arrays]) -> None:
    arrays = batch_of(network, 64)
    kept = sum(value.nbytes for value in network(arrays).values())
    calls = 1000
    for _ in range(100):
        network(arrays)
    before = resident()
    for _ in range(calls):
        network(arrays)
    assert resident() - before < calls * kept / 2, "less than half of what they returned"


def test_nothing_is_printed(choice: Choice, small_bundle: Path, batch_of: Callable[..., Arrays], capfd: pytest.CaptureFixture[str]) -> None:
    network = opened(small_bundle, "denoiser", choice)
    network(batch_of(network, 2))
    network.close()
    with pytest.raises(BackendError):
        engine(choice.backend).open_network(b"not ONNX", "x.onnx", choice, Load())
    assert capfd.readouterr() == ("", "")


def test_reduced_precision_is_reduced_and_full_precision_is_not(choice: Choice, shipped: tuple[Bundle, Arrays, Arrays]) -> None:
    """What is called fp32 has no rounding to bf16 in it, and the other way round: the engine computes in what it says."""
    bundle, arrays, expected = shipped
    network = opened(bundle.path, "denoiser", choice)
    apart = float(np.abs(network(arrays)["output"] - expected["output"]).max())
    network.close()
    assert apart < 1e-4 if choice.precision == "fp32" else apart > 1e-4
    assert file_precision(choice.precision, FILES) == "fp32"

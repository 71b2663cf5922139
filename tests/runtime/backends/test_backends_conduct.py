"""How every engine that answers here behaves beyond its results: under mistakes, when closed, among threads, over a long time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from runtime.backends import Choice, Load, Network, engine, file_precision
from runtime.bundle import Bundle
from runtime.errors import BackendError
from tests.runtime.engines import FILES, Arrays, opened, rows

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

"""What every engine owes the rest of the runtime, asked in the same words of each engine, device and precision that answers here.

An engine that does not answer is skipped, once, with the reason a user would be given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import selftest
from runtime.backends import Choice, Network
from runtime.bundle import Bundle
from tests.runtime.engines import ABSENT, ANSWERING, SIZES, TYPICAL, Arrays, assert_close, opened, rows

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

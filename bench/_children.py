"""The processes that bench/runtime.py starts: ``python -m bench._children ROLE JSON`` in the checkout. Each answers in lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import MetascatterError
from runtime.sampler import load
from runtime.target import Target

N = 64
SEED_STEPS = 4  # steps of the seed's thousand that are timed


def condition(bundle: Bundle, path: str) -> dict[str, np.ndarray]:
    """Network inputs (batch of 1) for a target's file."""
    target = Target.load(path).resized(bundle.condition.orders)
    maps = (target.R[None], target.T[None], np.array([target.height_nm]), target.mask_R[None], target.mask_T[None])
    return bundle.condition.arrays(*maps)


def patterns(bundle: Bundle, samples: np.ndarray) -> np.ndarray:
    """Binary patterns (n, N, N) uint8 of samples (n, *sample_shape), as :meth:`runtime.sampler.Sampler.patterns` makes them."""
    size, (row, column) = bundle.manifest["pattern_size"], bundle.manifest["window"]
    return (samples[:, 0, row : row + size, column : column + size] > 0).astype(np.uint8)


def probe(spec: dict[str, Any]) -> dict[str, Any]:
    """Which (backend, device, precision) open with the bundle, and the sentence of each that does not."""
    from runtime import backends

    opened: list[list[str]] = []
    refused: dict[str, str] = {}
    for backend, engine in backends.BACKENDS.items():
        for device in engine.devices:
            reasons: dict[str, list[str]] = {}
            for precision in backends.PRECISIONS:
                if precision == "auto":
                    continue
                try:
                    load(spec["bundle"], backend=backend, device=device, precision=precision).close()
                    opened.append([backend, device, precision])
                except MetascatterError as error:
                    reasons.setdefault(str(error).removeprefix(f"{backend} on {device}: "), []).append(precision)
            refused |= {f"{backend} {device} {', '.join(words)}": reason for reason, words in reasons.items()}
    return {"opened": opened, "refused": refused}


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Put the bundle's weights back into PyTorch, compare one call with the runtime, and save them for the other processes."""
    import torch
    from safetensors.torch import save_file

    from bench import _twin

    bundle = Bundle.open(spec["bundle"])
    network = _twin.from_bundle(bundle)
    with load(spec["bundle"], backend="onnxruntime", device="cpu", precision="fp32") as sampler:
        differences = _twin.differences(network, sampler, condition(bundle, spec["targets"][0]))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, spec["weights"])
    settings = {key: bundle.manifest["sampling"][key] for key in ("scheduler", "steps", "guidance_scale")}
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {"differences": differences, "settings": settings, "devices": devices, "modes": _twin.MODES}


def infer(spec: dict[str, Any]) -> dict[str, Any]:
    """The command ``infer`` in this process; seconds spent in writing files, in all and in those that need the most."""
    import runtime.design
    import runtime.physics.gds
    import runtime.pictures
    from runtime.commands import group

    spent: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **values: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **values)
            spent[name] = time.perf_counter() - start
            return result

        return wrapped

    for name, module, door in (
        ("files", runtime.design, "save"),
        ("png", runtime.pictures, "design_picture"),
        ("gds", runtime.physics.gds, "write_gds"),
    ):
        setattr(module, door, timed(name, getattr(module, door)))
    group(spec["arguments"], standalone_mode=False)
    return spent


def design(spec: dict[str, Any]) -> dict[str, Any]:
    """What ``infer`` does, with another contender's samples: solve all of them, keep the best 4, write their files."""
    from runtime.design import Design, save
    from runtime.physics.verify import verify

    sample, _ = contender(spec)
    bundle, target = Bundle.open(spec["bundle"]), Target.load(spec["targets"][0])
    candidates = enumerate(patterns(bundle, sample(0, 0)))
    designs = [Design(pattern, target.height_nm, None, None, None, False, 0, i, bundle.geometry) for i, pattern in candidates]
    save(verify(designs, target)[:4], target, spec["out"])
    return {}


def contender(spec: dict[str, Any]) -> tuple[Callable[[int, int], np.ndarray], Callable[[], Any]]:
    """What a spec describes, as a function (target's number, seed) -> samples, and one that measures the runtime's loop."""
    if spec["kind"] == "seed":
        from bench._twin import SeedContender

        seed = SeedContender(SEED_STEPS)
        return lambda target, number: seed.sample(N, number), lambda: None
    bundle = Bundle.open(spec["bundle"])
    conditions = [condition(bundle, path) for path in spec["targets"]]
    if spec["kind"] == "diffusers":
        from safetensors.torch import load_file

        from bench._twin import Contender

        other = Contender(bundle, load_file(spec["weights"]), spec["mode"], spec["device"])
        return lambda target, number: other.sample(conditions[target], N, number), lambda: None
    sampler = load(spec["bundle"], backend=spec["backend"], device=spec["device"], precision=spec["precision"])

    def loop() -> Any:
        from runtime import bench

        return bench.measure(sampler, spec["repeats"])

    return lambda target, number: sampler.sample(conditions[target], N, seed=number), loop


def serve(spec: dict[str, Any]) -> None:
    """Open a contender, sample once, and then answer the words that come: ``time``, ``patterns``, ``loop``."""
    start = time.perf_counter()
    sample, loop = contender(spec)
    opened = time.perf_counter()
    sample(0, 0)
    answer({"open_s": opened - start, "first_s": time.perf_counter() - opened})
    for number, word in enumerate(map(str.strip, sys.stdin)):
        if word == "time":
            start = time.perf_counter()
            sample(0, number)
            answer({"seconds": time.perf_counter() - start})
        elif word == "patterns":
            samples = np.concatenate([sample(target, 0) for target in range(len(spec["targets"]))])
            answer({"patterns": np.packbits(patterns(Bundle.open(spec["bundle"]), samples)).tobytes().hex()})
        elif word == "loop":
            answer({"loop": loop()})


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    role, spec = sys.argv[1], json.loads(sys.argv[2])
    try:
        if role == "serve":
            serve(spec)
        else:
            answer({"probe": probe, "prepare": prepare, "infer": infer, "design": design}[role](spec))
    except Exception as error:  # torch.compile, engines and PyTorch each raise their own
        lines = str(error).strip().splitlines()
        answer({"error": lines[0] if lines else type(error).__name__})


if __name__ == "__main__":
    main()

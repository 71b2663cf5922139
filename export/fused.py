"""The whole sampler as one ONNX graph: what a program in any language calls once to have designs for a target.

The conditioning arithmetic of ``runtime.condition``, the encoder, the steps of a ``runtime.schedulers.Plan`` as an ONNX ``Loop`` over its
table of coefficients with classifier-free guidance inside, the cut to a pattern, and the surrogate's verdict, where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from runtime.condition import Condition
from runtime.errors import BundleError
from runtime.schedulers import Plan

from .graph import Graph, value


def fuse(
    plan: Plan,
    condition: Condition,
    graphs: Mapping[str, bytes],
    *,
    sample_shape: Sequence[int],
    window: Sequence[int],
    pattern_size: int,
    guidance_interval: tuple[float, float] = (0.0, math.inf),
) -> bytes:
    """One ONNX file that samples as ``plan`` says.

    Inputs, float32 but for the mask; the axis ``targets`` is 1, for one target of all candidates, or as long as the batch:

    - ``noise`` (batch, *sample_shape), standard normal; for a plan that draws noise (K+1, batch, *sample_shape): the start, then what
      each step adds.
    - ``Rm``, ``Tm`` and each further map of the condition by its name (targets, 2M+1, 2M+1), ``mask`` (targets, 2+k, 2M+1, 2M+1) bool of
      orders asked for in these in this order, ``height_nm`` (targets,) and ``guidance_scale`` (targets,); the layout ``planes`` has
      neither ``mask`` nor ``guidance_scale``.

    Outputs: ``sample`` (batch, *sample_shape), ``pattern`` (batch, n, n) uint8, and with a surrogate ``R``, ``T`` (batch, 2M+1, 2M+1) and
    ``score`` (batch,), its misrouted power.

    Args:
        plan: the sampler's table.
        condition: constants of the conditioning.
        graphs: ONNX files by name: ``denoiser``, and ``encoder`` and ``surrogate`` where there are any.
        sample_shape, window, pattern_size: as in the bundle's manifest.
        guidance_interval: noise levels between which guidance acts.

    Raises:
        BundleError: the graphs were written for different versions of ONNX.
    """
    models = {name: onnx.load_from_string(content) for name, content in graphs.items()}
    opsets = {tuple(sorted((entry.domain, entry.version) for entry in model.opset_import)) for model in models.values()}
    if len(opsets) != 1:
        raise BundleError(f"the networks use different versions of ONNX's operators ({sorted(opsets)}); export them together")
    shape, side = tuple(sample_shape), 2 * condition.orders + 1
    stochastic = bool(plan.needs_noise.any())
    guided = condition.layout == "orders"
    g = Graph()
    given = [value("noise", [plan.num_steps + 1, "batch", *shape] if stochastic else ["batch", *shape])]
    given += [value(name, ["targets", side, side]) for name in ("Rm", "Tm", *condition.channels)]
    if guided:
        given.append(value("mask", ["targets", 2 + len(condition.channels), side, side], TensorProto.BOOL))
    given.append(value("height_nm", ["targets"]))
    if guided:
        given.append(value("guidance_scale", ["targets"]))

    start = g.op("Gather", "noise", g.constant(0, np.int64), axis=0) if stochastic else "noise"
    batch = g.op("Slice", g.op("Shape", start), g.ints(0), g.ints(1))
    arrays = _light(g, condition) if guided else _planes(g, condition)
    fixed = _expanded(g, models, arrays, batch)
    if plan.init_noise_sigma != 1.0:
        start = g.op("Mul", start, g.constant(plan.init_noise_sigma))
    samples = _loop(g, plan, models["denoiser"], fixed, start, batch, shape, guided, guidance_interval)
    g.op("Identity", samples, name="sample")
    given_out = [value("sample", ["batch", *shape]), value("pattern", ["batch", pattern_size, pattern_size], TensorProto.UINT8)]
    row, column = window
    cut = g.op("Slice", samples, g.ints(0, row, column), g.ints(1, row + pattern_size, column + pattern_size), g.ints(1, 2, 3))
    pillars = g.op("Greater", cut, g.constant(0.0))
    g.op("Cast", g.op("Squeeze", pillars, g.ints(1)), name="pattern", to=TensorProto.UINT8)
    if "surrogate" in models:
        mask = g.op("Slice", "mask", g.ints(0), g.ints(2), g.ints(1)) if condition.channels else "mask"
        _verdict(g, models["surrogate"], pillars, batch, mask if guided else None)
        given_out += [value("R", ["batch", side, side]), value("T", ["batch", side, side]), value("score", ["batch"])]

    model = helper.make_model(
        g.graph("sampler", given, given_out),
        producer_name="metascatter",
        opset_imports=models["denoiser"].opset_import,
        ir_version=models["denoiser"].ir_version,
    )
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def drawn(plan: Plan, shape: Sequence[int], seed: int, count: int) -> np.ndarray:
    """The input ``noise`` with which candidates 0 to ``count`` come out as they do from the sampler in Python with this seed."""
    noise = np.zeros((plan.num_steps + 1, count, *shape), np.float32)
    rows = (0, *(1 + np.flatnonzero(plan.needs_noise)))
    for candidate in range(count):
        generator = np.random.Generator(np.random.Philox(key=[seed, candidate]))
        for row in rows:
            noise[row, candidate] = generator.standard_normal(tuple(shape), dtype=np.float32)
    return noise if len(rows) > 1 else noise[0]


def _height(g: Graph, condition: Condition) -> str:
    """``height_nm`` (targets,) from -1 to 1 over the training range."""
    low, high = condition.height_range_nm
    scaled = g.op("Mul", g.op("Sub", "height_nm", g.constant(low)), g.constant(2.0))
    return g.op("Sub", g.op("Div", scaled, g.constant(max(high - low, 1e-6))), g.constant(1.0))


def _light(g: Graph, condition: Condition) -> dict[str, str]:
    """``light`` and ``height`` of the layout ``orders``; where any guidance is asked for, the unconditional rows before the others."""
    means = np.stack([condition.mean_R, condition.mean_T, *condition.mean_channels])[None]
    maps = g.op("Concat", *(g.op("Unsqueeze", name, g.ints(1)) for name in ("Rm", "Tm", *condition.channels)), axis=1)
    amplitude = g.op("Sqrt", g.op("Div", g.op("Max", maps, g.constant(0.0)), g.constant(np.where(means > 0, means, 1))))
    known = g.op("And", "mask", g.constant(means > 0, np.bool_))
    asked = g.op("Cast", "mask", to=TensorProto.FLOAT)
    light = g.op("Concat", g.op("Where", known, amplitude, g.constant(0.0)), asked, axis=1)
    height = g.op("Unsqueeze", _height(g, condition), g.ints(1))
    apart = g.op("ReduceMax", g.op("Abs", g.op("Sub", "guidance_scale", g.constant(1.0))), keepdims=0)
    both, alone = Graph("guided/"), Graph("plain/")
    doubled = [
        both.op("Concat", both.op("Mul", light, both.constant(0.0)), light, axis=0),
        both.op("Concat", height, height, axis=0),
    ]
    same = [alone.op("Identity", light), alone.op("Identity", height)]
    found = g.op(
        "If",
        g.op("Greater", apart, g.constant(0.0)),
        outputs=2,
        then_branch=both.graph("guided", [], [value(name, None) for name in doubled]),
        else_branch=alone.graph("plain", [], [value(name, None) for name in same]),
    )
    return dict(zip(("light", "height"), found, strict=True))


def _planes(g: Graph, condition: Condition) -> dict[str, str]:
    """``planes`` of the seed's layout: standardised maps and a plane of height in the middle of the canvas."""
    mean_R, std_R, mean_T, std_T = condition.scale
    side = 2 * condition.orders + 1
    maps = [
        g.op("Unsqueeze", g.op("Div", g.op("Sub", name, g.constant(mean)), g.constant(std)), g.ints(1))
        for name, mean, std in (("Rm", mean_R, std_R), ("Tm", mean_T, std_T))
    ]
    lowest, highest = condition.height_plane
    height = g.op("Unsqueeze", _height(g, condition), g.ints(1, 2, 3))
    height = g.op("Add", g.op("Mul", height, g.constant((highest - lowest) / 2)), g.constant((lowest + highest) / 2))
    plane = g.op("Add", g.op("Mul", maps[0], g.constant(0.0)), height)
    before = (condition.canvas - side) // 2
    after = condition.canvas - side - before
    pads = g.ints(0, 0, before, before, 0, 0, after, after)
    return {"planes": g.op("Pad", g.op("Concat", *maps, plane, axis=1), pads)}


def _expanded(g: Graph, models: Mapping[str, onnx.ModelProto], arrays: Mapping[str, str], batch: str) -> dict[str, str]:
    """What the denoiser is told beside sample and timestep, a row for every candidate (twice with guidance), encoded once a target."""
    if "encoder" in models:
        outputs = [output.name for output in models["encoder"].graph.output]
        inputs = {entry.name: arrays[entry.name] for entry in models["encoder"].graph.input}
        arrays = dict(zip(outputs, g.lay_in(models["encoder"], "encoder/", inputs), strict=True))
    targets = g.op("Slice", g.op("Shape", "Rm"), g.ints(0), g.ints(1))
    shapes = {entry.name: [side.dim_value for side in entry.type.tensor_type.shape.dim][1:] for entry in models["denoiser"].graph.input}
    expanded = {}
    for name, array in arrays.items():
        rest = shapes[name]
        by_target = g.op("Concat", g.ints(-1), targets, g.ints(*rest), axis=0)
        by_row = g.op("Concat", g.ints(1), batch, g.ints(*[1] * len(rest)), axis=0)
        rows = g.op("Expand", g.op("Reshape", array, by_target), by_row)
        expanded[name] = g.op("Reshape", rows, g.ints(-1, *rest))
    return expanded


def _loop(
    g: Graph,
    plan: Plan,
    denoiser: onnx.ModelProto,
    fixed: Mapping[str, str],
    start: str,
    batch: str,
    shape: tuple[int, ...],
    guided: bool,
    interval: tuple[float, float],
) -> str:
    """The denoising loop; the samples after its last step."""
    body = Graph("loop/")
    column = {name: plan.table[name].astype(np.float32) for name in plan.table.dtype.names or ()}
    step, sample, past = "loop/step", "loop/sample", [f"loop/past_{age}" for age in range(1, plan.memory)]

    def coefficient(name: str) -> str:
        return body.op("Gather", body.constant(column[name]), step, axis=0)

    def weighted(name: str, term: str) -> str | None:
        """A column times a term; None where the method never uses it."""
        if not column[name].any():
            return None
        return term if (column[name] == 1).all() else body.op("Mul", term, coefficient(name))

    def total(*terms: str | None) -> str:
        used = [term for term in terms if term is not None]
        result = used[0]
        for term in used[1:]:
            result = body.op("Add", result, term)
        return result

    # Rows of the denoiser: every candidate once, or twice with guidance.
    rows = g.op("Slice", g.op("Shape", next(iter(fixed.values()))), g.ints(0), g.ints(1))
    repeats = g.op("Div", rows, batch)
    by_repeat = g.op("Concat", repeats, batch, g.ints(*shape), axis=0)
    seen = body.op("Reshape", body.op("Expand", body.op("Unsqueeze", sample, body.ints(0)), by_repeat), body.ints(-1, *shape))
    timestep = body.op("Expand", body.op("Gather", body.constant(plan.timesteps, np.int64), step, axis=0), rows)
    bound = {"sample": seen, "timestep": timestep, **fixed}
    inputs = {entry.name: bound[entry.name] for entry in denoiser.graph.input}
    (output,) = body.lay_in(denoiser, "denoiser/", inputs, g, list(fixed))
    if guided:
        apart = body.op("Reshape", output, by_repeat)
        free = body.op("Gather", apart, body.constant(0, np.int64), axis=0)
        told = body.op("Gather", apart, body.constant(-1, np.int64), axis=0)
        acts = (interval[0] <= plan.sigmas) & (plan.sigmas <= interval[1])
        scale = g.op("Unsqueeze", "guidance_scale", g.ints(*range(1, 1 + len(shape))))
        if not acts.all():
            scale = body.op("Where", body.op("Gather", body.constant(acts, np.bool_), step, axis=0), scale, body.constant(1.0))
        output = body.op("Add", free, body.op("Mul", body.op("Sub", told, free), scale))

    estimate = total(weighted("from_output", output), weighted("from_sample", sample))
    if not (column["gain"] == 1).all():
        estimate = body.op("Mul", estimate, coefficient("gain"))
    if plan.threshold is not None:
        estimate = _thresholded(body, estimate, *plan.threshold, shape)
    elif plan.clip is not None:
        estimate = body.op("Clip", estimate, body.constant(-plan.clip), body.constant(plan.clip))
    fresh = None
    if plan.needs_noise.any():
        fresh = weighted("noise", body.op("Gather", "noise", body.op("Add", step, body.constant(1, np.int64)), axis=0))
    history = [weighted(name, array) for name, array in zip(("previous", "earlier"), past, strict=False)]
    after = total(weighted("sample", sample), weighted("output", output), weighted("estimate", estimate), *history, fresh)
    after = body.op("Identity", after)
    kept = [body.op("Identity", array) for array in [estimate, *past][: plan.memory - 1]]
    going = body.op("Identity", "loop/going")
    carried = [sample, *past]
    looped = body.graph(
        "step",
        [
            value(step, [], TensorProto.INT64),
            value("loop/going", [], TensorProto.BOOL),
            *(value(name, ["batch", *shape]) for name in carried),
        ],
        [value(going, [], TensorProto.BOOL), *(value(name, ["batch", *shape]) for name in (after, *kept))],
    )
    nothing = [g.op("Mul", start, g.constant(0.0)) for _ in past]
    trips, always = g.constant(plan.num_steps, np.int64), g.constant(True, np.bool_)
    found = g.op("Loop", trips, always, start, *nothing, outputs=len(carried), body=looped)
    return found if len(carried) == 1 else found[0]


def _thresholded(body: Graph, estimate: str, ratio: float, largest: float, shape: tuple[int, ...]) -> str:
    """Dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3), each sample by itself, the quantile between its two neighbours."""
    count = math.prod(shape)
    position = ratio * (count - 1)
    below = math.floor(position)
    magnitude = body.op("Reshape", body.op("Abs", estimate), body.ints(-1, count))
    values, _ = body.op("TopK", magnitude, body.ints(count - below), outputs=2, axis=1)
    low = body.op("Slice", values, body.ints(count - below - 1), body.ints(count - below), body.ints(1))
    if below + 1 < count:
        high = body.op("Slice", values, body.ints(count - below - 2), body.ints(count - below - 1), body.ints(1))
        low = body.op("Add", low, body.op("Mul", body.op("Sub", high, low), body.constant(position - below)))
    limit = body.op("Min", body.op("Max", low, body.constant(1.0)), body.constant(largest))
    limit = body.op("Reshape", limit, body.ints(-1, *[1] * len(shape)))
    return body.op("Div", body.op("Min", body.op("Max", estimate, body.op("Neg", limit)), limit), limit)


def _verdict(g: Graph, surrogate: onnx.ModelProto, pillars: str, batch: str, mask: str | None) -> None:
    """``R``, ``T`` by the surrogate, and ``score`` as ``runtime.score.misrouted_power`` defines it; ``mask`` is that of R and T."""
    height = g.op("Expand", g.op("Unsqueeze", "height_nm", g.ints(1)), g.op("Concat", batch, g.ints(1), axis=0))
    cells = g.op("Cast", pillars, to=TensorProto.FLOAT)
    for name, found in zip(("R", "T"), g.lay_in(surrogate, "surrogate/", {"pattern": cells, "height_nm": height}), strict=True):
        g.op("Identity", found, name=name)
    differences = g.op("Concat", *(g.op("Unsqueeze", g.op("Sub", a, w), g.ints(1)) for a, w in (("R", "Rm"), ("T", "Tm"))), axis=1)
    if mask is not None:
        differences = g.op("Where", mask, differences, g.constant(0.0))
    axes = g.ints(1, 2, 3)
    astray = g.op("ReduceSum", g.op("Abs", differences), axes, keepdims=0)
    unasked = g.op("Abs", g.op("ReduceSum", differences, axes, keepdims=0))
    g.op("Mul", g.op("Add", astray, unasked), g.constant(0.5), name="score")

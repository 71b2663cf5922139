// Metasurface patterns for a target from the one file that `cli.py export --fused K` writes, without Python.
//
//     npm install --ignore-scripts
//     node design.mjs sampler.onnx target.json designs.json [--count 64] [--seed 0] [--guidance-scale 1] [--noise noise.f32]
//
// The target is metascatter's JSON, {"height_nm": 310, "orders": {"T(1,0)": 0.12, ...}, "others": "any" or 0}. --noise names the raw
// little-endian float32 of the graph's input `noise`, in place of --seed and --count.
//
// The sampler does not say which wavelength, period and materials it was trained for: the manifest.json beside it does.

import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import ort from "onnxruntime-node";

class Mistake extends Error {}

// Standard normal numbers from a seed: mulberry32 and Box and Muller's transform.
function* normals(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return (((mixed ^ (mixed >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
  for (;;) {
    const radius = Math.sqrt(-2 * Math.log(uniform()));
    const angle = 2 * Math.PI * uniform();
    yield radius * Math.cos(angle);
    yield radius * Math.sin(angle);
  }
}

function number(text, name, accepts) {
  const value = Number(text);
  if (!accepts(value)) throw new Mistake(`${name} is '${text}'; give a number in range`);
  return value;
}

// The graph's inputs for a target; maps are (2M+1) x (2M+1) with order (m, n) at [m + M][n + M].
function conditioning(target, side) {
  const M = (side - 1) / 2;
  if (typeof target.height_nm !== "number" || typeof target.orders !== "object") {
    throw new Mistake("the target lacks height_nm or orders; see examples/targets/splitter.json");
  }
  const maps = { R: new Float32Array(side * side), T: new Float32Array(side * side) };
  const mask = new Uint8Array(2 * side * side).fill(target.others === 0 ? 1 : 0); // R, then T
  for (const [name, efficiency] of Object.entries(target.orders)) {
    const found = /^\s*([RT])\s*\(\s*([+-]?\d+)\s*,\s*([+-]?\d+)\s*\)\s*$/.exec(name);
    if (!found) throw new Mistake(`the target names '${name}'; write an order as T(m,n) or R(m,n)`);
    const [m, n] = [Number(found[2]), Number(found[3])];
    if (Math.max(Math.abs(m), Math.abs(n)) > M) throw new Mistake(`the target names ${name}; this sampler knows orders up to ${M}`);
    const at = (m + M) * side + (n + M);
    maps[found[1]][at] = efficiency;
    mask[(found[1] === "R" ? 0 : side * side) + at] = 1;
  }
  return {
    Rm: new ort.Tensor("float32", maps.R, [1, side, side]),
    Tm: new ort.Tensor("float32", maps.T, [1, side, side]),
    mask: new ort.Tensor("bool", mask, [1, 2, side, side]),
    height_nm: new ort.Tensor("float32", [target.height_nm], [1]),
  };
}

// (batch, 1, n, n), or (K + 1, batch, 1, n, n) for a sampler that adds noise at every step.
function noise(shape, options) {
  const batch = shape.indexOf("batch");
  const others = shape.reduce((product, length, axis) => (axis === batch ? product : product * length), 1);
  let values;
  if (options.noise) {
    const bytes = readFileSync(options.noise);
    values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length - (bytes.length % 4)));
    if (bytes.length === 0 || bytes.length % (4 * others)) {
      throw new Mistake(`${options.noise} has ${bytes.length} bytes; the sampler takes a multiple of ${4 * others}`);
    }
  } else {
    const count = number(options.count, "--count", (value) => Number.isInteger(value) && value > 0);
    const source = normals(number(options.seed, "--seed", Number.isInteger));
    values = Float32Array.from({ length: count * others }, () => source.next().value);
  }
  return new ort.Tensor("float32", values, shape.with(batch, values.length / others));
}

function unflatten(values, shape) {
  if (shape.length === 1) return Array.from(values);
  const length = values.length / shape[0];
  return Array.from({ length: shape[0] }, (_, i) => unflatten(values.subarray(i * length, (i + 1) * length), shape.slice(1)));
}

async function main() {
  const { values: options, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      count: { type: "string", default: "64" },
      seed: { type: "string", default: "0" },
      "guidance-scale": { type: "string", default: "1" },
      noise: { type: "string" },
    },
  });
  if (positionals.length !== 3) throw new Mistake("usage: node design.mjs sampler.onnx target.json designs.json");
  const [model, from, to] = positionals;

  const session = await ort.InferenceSession.create(model);
  const shapes = Object.fromEntries(session.inputMetadata.map((input) => [input.name, input.shape]));
  const target = JSON.parse(readFileSync(from, "utf8"));
  const given = { ...conditioning(target, shapes.Rm[1]), noise: noise(shapes.noise, options) };
  if (shapes.guidance_scale) {
    const scale = number(options["guidance-scale"], "--guidance-scale", Number.isFinite);
    given.guidance_scale = new ort.Tensor("float32", [scale], [1]);
  }
  if (!shapes.mask && target.others !== 0) throw new Mistake("this sampler has no mask: name every order's efficiency, with \"others\": 0");
  const feeds = Object.fromEntries(session.inputNames.map((name) => [name, given[name]])); // not every sampler has a mask
  const found = await session.run(feeds);

  const patterns = unflatten(found.pattern.data, found.pattern.dims);
  const scores = found.score ? Array.from(found.score.data) : null; // null: the sampler has no surrogate
  const best = scores ? scores.indexOf(Math.min(...scores)) : 0;
  writeFileSync(to, JSON.stringify({ height_nm: target.height_nm, best, scores, patterns }));
  for (const row of patterns[best]) console.log(row.map((pillar) => ".#"[pillar]).join(""));
  console.log(scores ? `misrouted power, predicted: ${scores[best].toFixed(3)}` : "no score: the sampler has no surrogate");
}

try {
  await main();
} catch (error) {
  console.error(`Error: ${error.message}`);
  process.exitCode = error instanceof Mistake ? 2 : 1;
}

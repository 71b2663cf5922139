"""The result of ``evaluate`` for people in a terminal, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .evaluate_measures import ORACLES, RANDOM, RANDOM_NAME, UNDER, summary

# What a column of ``per_target`` and ``by_height_nm`` is called: in a row of its own, and at the head of a column.
_NAMES = {
    "ranked": ("ranked", "ranked"),
    "refined": ("refined", "refined"),
    **{f"best_of_{k}": (f"all solved, best of {k}", f"first {k}") for k in ORACLES},
    RANDOM_NAME: (f"best of {RANDOM} random patterns", "random"),
    "nearest_training": ("nearest training sample", "training"),
    "bundle": ("baseline bundle", "baseline"),
}


def table(result: Mapping[str, Any]) -> str:
    """The result for people in a terminal."""
    parts = (_scores, _heights, _comparison, _candidates, _surrogate, _noise, _lab, _protocol, _time)
    return "\n\n".join("\n".join(lines) for lines in (list(part(result)) for part in parts) if lines)


def wins(result: Mapping[str, Any], baseline: str) -> int:
    """On how many targets the ranked design is better than a baseline, a name in the result's ``baselines``."""
    scores = result["per_target"]
    return sum(ours < theirs for ours, theirs in zip(scores["ranked"], scores.get(baseline, []), strict=False))


def compared(result: Mapping[str, Any], baseline: str) -> int:
    """On how many targets there are both a ranked design and a baseline: a baseline may cover the first ones only."""
    scores = result["per_target"]
    return min(len(scores["ranked"]), len(scores.get(baseline, [])))


def _scores(result: Mapping[str, Any]) -> Iterator[str]:
    found = {"ranked": result["ranked"], "refined": result["refined"], **result["oracle"], **result["baselines"]}
    yield f"Misrouted power on {result['targets']} targets, {result['n']} candidates each: the share of the light that goes astray."
    yield "0 is exact, 1 the worst; lower is better. Every score is solved, with the data's own settings."
    yield ""
    yield f"{'':26}{_summary_head()}{'solves':>9}{'targets':>9}"
    for name, (label, _) in _NAMES.items():
        part = found.get(name)
        if part is not None:
            yield _row(label, part)
            first = result["oracle"]["targets"]
            if name == "ranked" and first < result["targets"]:
                # Beside the rows below, which cover these alone.
                yield _row("ranked, the first", summary(result["per_target"]["ranked"][:first], part["solves"]))


def _heights(result: Mapping[str, Any]) -> Iterator[str]:
    bands, surrogate = result["by_height_nm"], result["surrogate"]
    shown = {name: head for name, (_, head) in _NAMES.items() if any(band.get(name) is not None for band in bands)}
    judged = "" if surrogate is None else f"{'surrogate':>11}"
    yield "Medians by height" + (
        "" if surrogate is None else "; surrogate: what it predicts for the stored patterns, against the stored light"
    )
    yield f"{'height, nm':11}{'targets':>8}" + "".join(f"{head:>9}" for head in shown.values()) + judged
    for k, band in enumerate(bands):
        row = "".join(f"{_number(band[name]):>9}" for name in shown)
        error = "" if surrogate is None else f"{_number(surrogate['by_height_nm'][k]['median']):>11}"
        yield f"{_band(band):11}{band['count']:>8}{row}{error}"
    few = {name: len(result["per_target"].get(name, [])) for name in shown}
    for count in sorted({count for count in few.values() if count < result["targets"]}):
        yield f"Of the first {count} targets alone: {', '.join(head for name, head in shown.items() if few[name] == count)}."


def _comparison(result: Mapping[str, Any]) -> Iterator[str]:
    for name, part in result["baselines"].items():
        if part is not None:
            yield f"Ranked beats the {_NAMES[name][0]} on {wins(result, name)} of {compared(result, name)} targets."
    bundle = result["baselines"].get("bundle")
    if bundle is not None:
        settings = bundle["sampler"]
        steps = f"{settings.get('scheduler')}, {settings.get('steps')} steps"
        yield f"The baseline bundle is {bundle['name']}, recipe {bundle['recipe']}: {steps}."
        yield f"What ranked its candidates: {bundle['ranked_by']}."


def _candidates(result: Mapping[str, Any]) -> Iterator[str]:
    diversity = result["diversity"]
    yield "Candidates of one target, modulo cyclic shift"
    apart, coins = diversity["mean_pixels_apart"], diversity["random_pixels_apart"]
    words = "" if apart is None else f" Two of them differ in {apart:.1f} pixels on average, two random patterns in {coins:.1f}."
    yield f"{100 * diversity['distinct']:.0f} % are distinct.{words}"


def _surrogate(result: Mapping[str, Any]) -> Iterator[str]:
    error, calibration = result["surrogate"], result["calibration"]
    if error is None and calibration is None:
        return
    yield "The surrogate, which picks the candidates that are solved"
    if error is not None:
        yield (
            f"Misrouted power between predicted and stored light of the stored patterns: mean {error['mean']:.3f}, "
            f"median {error['median']:.3f}."
        )
    if calibration is not None:
        spearman = calibration["spearman"]
        if spearman is not None:
            yield (
                f"Rank correlation (Spearman) with RCWA over a target's candidates: median {spearman['median']:.2f} "
                f"({spearman['q25']:.2f} to {spearman['q75']:.2f})."
            )
        yield (
            f"Ranking loses {calibration['loss']:.4f} in the median and {calibration['largest_loss']:.4f} at most against solving all "
            f"({calibration['targets']} targets)."
        )


def _noise(result: Mapping[str, Any]) -> Iterator[str]:
    rows = result["noise_robustness"]
    if rows is None:
        return
    yield f"Targets with noise, {rows[0]['targets']} of them: ranked for the target with noise, scored against the clean one"
    yield "(target: how far noise alone moves the target)"
    yield f"{'noise':18}{_summary_head()}{'target':>9}"
    for row in rows:
        yield f"{100 * row['level']:>4.0f} %{'':12}{_summary(row)}{row['noise']:>9.3f}"


def _lab(result: Mapping[str, Any]) -> Iterator[str]:
    scores = result["lab_scores"]
    if scores is None:
        return
    kinds = (("plain", "as it stands"), ("modulo_shift", "modulo shift"))
    yield "The lab's scores, best-ranked pattern against the stored one (unequal pixels: lower is better)"
    yield f"{'':18}{_LAB_HEAD}"
    for name, label in kinds:
        yield f"{label:18}{_lab_row(scores[name])}"
    bands = result["by_height_nm"]
    yield f"{'unequal, by height':18}" + "".join(f"{_band(band):>13}" for band in bands)
    for name, label in kinds:
        pixels = (None if band["lab_scores"] is None else band["lab_scores"][name]["unequal_pixels"] for band in bands)
        yield f"{label:18}" + "".join(f"{'-' if value is None else format(value, '.1f'):>13}" for value in pixels)


def _protocol(result: Mapping[str, Any]) -> Iterator[str]:
    protocol = result["seed_protocol"]
    if protocol is None:
        return
    yield "The seed's protocol STARTS FROM THE ANSWER, the stored pattern under noise, and judges no design"
    yield f"(scores as they stand, of {protocol['targets']} targets, a candidate each)"
    yield f"{'noise level':18}{_LAB_HEAD}{'steps':>8}"
    for row in protocol["levels"]:
        scores = "no step is that low" if row["timestep"] is None else f"{_lab_row(row)}{row['steps']:>8}"
        yield f"{row['level']:<18.1f}{scores}"


def _time(result: Mapping[str, Any]) -> Iterator[str]:
    parts = [f"{name.replace('_', ' ')} {value:.0f} s" for name, value in result["seconds"].items() if value >= 0.5]
    if parts:
        yield "Time: " + ", ".join(parts) + "."


_LAB_HEAD = f"{'accuracy':>10}{'precision':>11}{'recall':>9}{'unequal pixels':>16}"


def _lab_row(scores: Mapping[str, Any]) -> str:
    pixels = scores["unequal_pixels"]
    return f"{100 * scores['image_accuracy']:>8.1f} %{scores['precision']:>11.4f}{scores['recall']:>9.4f}{pixels:>16.2f}"


def _row(label: str, part: Mapping[str, Any]) -> str:
    return f"{label:26}{_summary(part)}{part['solves']:>9.4g}{part['targets']:>9}"


def _summary_head() -> str:
    return f"{'median':>8}{'q25':>8}{'q75':>8}" + "".join(f"{'< ' + format(u, '.2f'):>9}" for u in UNDER)


def _summary(part: Mapping[str, Any]) -> str:
    shares = "".join(f"{100 * part['under'][f'{u:.2f}']:>7.0f} %" for u in UNDER)
    return f"{part['median']:>8.3f}{part['q25']:>8.3f}{part['q75']:>8.3f}{shares}"


def _band(band: Mapping[str, Any]) -> str:
    return f"{band['lo']:.0f} to {band['hi']:.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

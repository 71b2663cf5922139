"""Measured maps with masks, noise and a geometry: .mat of MATLAB 5 and 7.3, and .npz, in both index conventions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from runtime.errors import TargetError
from runtime.geometry import Geometry
from runtime.target import Target

M = 11


def measured(lab: bool) -> dict[str, np.ndarray]:
    """Maps of a measurement in which only T(2,1), R(0,-1) and T(0,0) were seen, each with a noise of its own."""
    arrays = {key: np.zeros((23, 23)) for key in ("Rm", "Tm", "mask_R", "mask_T", "sigma_R", "sigma_T")}
    for side, m, n, value, sigma in (("T", 2, 1, 0.2, 0.01), ("T", 0, 0, 0.1, 0.02), ("R", 0, -1, 0.3, 0.0)):
        place = (M - n, M - m) if lab else (M + m, M + n)
        for key, entry in ((f"{side}m", value), (f"mask_{side}", 1), (f"sigma_{side}", sigma)):
            arrays[key][place] = entry
    return arrays


def write_mat(path: Path, content: dict[str, Any], form: str) -> None:
    """A MATLAB file of form "5" or "7.3", the latter as MATLAB lays it out: HDF5, axes reversed, text as numbers."""
    if form == "5":
        savemat(path, content)
        return
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, value in content.items():
            text = isinstance(value, str)
            data = file.create_dataset(key, data=np.array([[ord(c)] for c in value], np.uint16) if text else np.atleast_2d(value).T)
            data.attrs["MATLAB_class"] = np.bytes_("char" if text else "double")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM")


@pytest.mark.parametrize("form", ["5", "7.3", "npz"])
@pytest.mark.parametrize("lab", [True, False])
class TestMeasuredMaps:
    def save(self, folder: Path, form: str, **content: Any) -> Path:
        path = folder / ("a.npz" if form == "npz" else "a.mat")
        if form == "npz":
            np.savez(path, **content)
        else:
            write_mat(path, content, form)
        return path

    def test_masks_noise_and_geometry(self, tmp_path: Path, form: str, lab: bool) -> None:
        convention, geometry = "lab" if lab else "metascatter", Geometry(polarisation="y")
        target = Target.load(self.save(tmp_path, form, h=300.0, convention=convention, geometry=geometry.to_json(), **measured(lab)))
        assert target.strongest(9) == [("R", 0, -1), ("T", 2, 1), ("T", 0, 0)]
        assert target.range_of("T", 2, 1) == pytest.approx((0.18, 0.22))
        assert target.range_of("T", 0, 0) == pytest.approx((0.06, 0.14))
        assert target.range_of("R", 0, -1) == (0.3, 0.3)
        assert target.geometry == geometry

    def test_one_noise_for_all_but_those_with_their_own(self, tmp_path: Path, form: str, lab: bool) -> None:
        content = {key: value for key, value in measured(lab).items() if key != "sigma_R"}
        path = self.save(tmp_path, form, h=300.0, noise=0.05, **content)
        target = Target.load(path, "lab" if lab else "metascatter")
        assert target.range_of("R", 0, -1) == pytest.approx((0.2, 0.4))
        assert target.range_of("T", 2, 1) == pytest.approx((0.18, 0.22))

    def test_refusals(self, tmp_path: Path, form: str, lab: bool, plain: Callable[[str], bool]) -> None:
        convention = "lab" if lab else "metascatter"
        for change, words in (
            ({"noise": -0.1}, "'sigma_R' holds -0.1"),
            ({"noise": np.array([0.1, 0.2])}, "'noise' has 2 values"),
            ({"sigma_T": np.full((23, 23), np.nan)}, "'sigma_T' holds nan"),
            ({"sigma_T": np.zeros((21, 21))}, "'sigma_T' has shape (21, 21)"),
            ({"geometry": "{"}, "geometry is not JSON"),
        ):
            content = {key: value for key, value in measured(lab).items() if not key.startswith("sigma")}
            path = self.save(tmp_path, form, h=300.0, **{**content, **change})
            with pytest.raises(TargetError) as caught:
                Target.load(path, convention)
            assert words in str(caught.value)
            assert str(caught.value).startswith(str(path))
            assert plain(str(caught.value))

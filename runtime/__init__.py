"""metascatter: from a wanted light scattering to metasurface patterns that produce it, without PyTorch.

    with metascatter.load() as sampler:
        designs = sampler.design(metascatter.Target.load("target.json"), n=64, top=4)

Importing this package needs NumPy alone; engines, SciPy, gdstk and matplotlib load where they are used.
"""

from __future__ import annotations

import logging

from .denoise import Denoiser
from .design import Design
from .errors import BackendError, BundleError, Cancelled, DataError, GeometryError, MetascatterError, TargetError
from .geometry import Geometry
from .sampler import Sampler, load
from .target import Target
from .version import __version__

__all__ = [
    "BackendError",
    "BundleError",
    "Cancelled",
    "DataError",
    "Denoiser",
    "Design",
    "Geometry",
    "GeometryError",
    "MetascatterError",
    "Sampler",
    "Target",
    "TargetError",
    "__version__",
    "load",
]

# Messages go to whoever listens, and not to stderr where nobody does.
logging.getLogger(__name__).addHandler(logging.NullHandler())

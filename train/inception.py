"""FID and Inception Score of images by torchmetrics, with the weights of a local file.

    Fréchet distance   Heusel et al. 2017, arXiv 1706.08500: between Gaussians fitted to a network's features of real images and samples
    inception score    Salimans et al. 2016, arXiv 1606.03498: exp of the mean KL divergence of p(class | image) from p(class)

They carry these names where the network is the Inception of 2015 that they are defined by, known by its 2048 features and 1008 classes; of
any other network they are called what they are. The file is one of

    .onnx   data, run by ONNX Runtime: in (N, 3, H, W) of 0 to 255, uint8 or float32; out features (N, d) and, if any, classes (N, K)
    .pt     TorchScript, such as NVIDIA's inception-2015-12-05.pt: called with uint8 (N, 3, H, W), gives the same. It is a PROGRAM, which
            may do on this computer whatever you may: take it only from whom you trust
    .pth    the weights of torch-fidelity's Inception, pt_inception-2015-12-05-6726825d.pth, for torchmetrics' own, which needs that
            package; never run by us
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance

from runtime.errors import BackendError, BundleError, DataError
from runtime.onnx_file import check_self_contained

SPLITS = 10  # parts whose Inception Scores are averaged
INCEPTION = 2048, 1008  # features and classes of the network of 2015
_BATCH = 64

# Images (N, 3, H, W) uint8 to features (N, d) and class scores (N, K), None where the network knows no classes.
Extractor = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


class _Given(nn.Module):
    """What torchmetrics takes for the network: its features, which are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


class StreamedInceptionScore(Metric):
    """torchmetrics' ``InceptionScore`` in the memory of one batch: that one keeps every image's classes until the end, this one their sums.

    Image i belongs to part i modulo ``splits``; with one part both agree, with more they divide the images differently.
    """

    higher_is_better = True
    full_state_update = False
    sums: torch.Tensor
    logs: torch.Tensor
    counts: torch.Tensor

    def __init__(self, classes: int, splits: int = SPLITS) -> None:
        super().__init__()
        self.splits = splits
        self.add_state("sums", torch.zeros(splits, classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("logs", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(splits, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: torch.Tensor) -> None:
        """Take in p(class | image) (N, K)."""
        p = probabilities.double()
        part = (torch.arange(len(p), device=p.device) + self.counts.sum()) % self.splits
        self.sums.index_add_(0, part, p)
        self.logs.index_add_(0, part, torch.special.xlogy(p, p).sum(1))
        self.counts.index_add_(0, part, torch.ones_like(part))

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation over the parts that have images."""
        there = self.counts > 0
        count = self.counts[there].double()
        mean = self.sums[there] / count[:, None]
        scores = (self.logs[there] / count - torch.special.xlogy(mean, mean).sum(1)).exp()
        return scores.mean(), scores.std() if len(scores) > 1 else torch.zeros(())


class NetworkScores:
    """Scores by a network's features of images; a ``runtime.frechet.FeatureScores``.

    Args:
        extract: the network.
        facts: what it is, as JSON values.
    """

    def __init__(self, extract: Extractor, facts: dict[str, Any]) -> None:
        self.extract = extract
        features, classes = extract(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        if features.ndim != 2 or not features.is_floating_point():
            raise DataError(f"the feature network gives {tuple(features.shape)} for two images; expected (2, number of features)")
        self.distance = FrechetInceptionDistance(_Given(features.shape[1]), reset_real_features=False)
        self.score = None if classes is None else StreamedInceptionScore(classes.shape[1])
        # Probabilities are known by their sum; anything else is taken for logits.
        self.normalised = classes is not None and bool((classes >= 0).all() and (classes.sum(1) - 1).abs().max() < 1e-3)
        self.size = features.shape[1], None if classes is None else classes.shape[1]
        self.file = str(facts.get("file", "the network"))
        self._facts = facts

    def facts(self) -> dict[str, Any]:
        return {**self._facts, "features": self.size[0], "classes": self.size[1], "inception": self.size == INCEPTION}

    @property
    def words(self) -> dict[str, str]:
        if self.size == INCEPTION:
            return {"fid": "FID", "inception_score": "Inception Score"}
        classes = {} if self.score is None else {"class_score": f"class score by {self.file}"}
        return {"feature_frechet": f"Fréchet distance of {self.file}", **classes}

    def real(self, images: np.ndarray) -> None:
        """Take in real images (N, C, H, W) uint8."""
        self._take(images, True)

    def samples(self, images: np.ndarray) -> None:
        """Take in samples (N, C, H, W) uint8."""
        self._take(images, False)

    @torch.no_grad()
    def _take(self, images: np.ndarray, real: bool) -> None:
        for start in range(0, len(images), _BATCH):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH]))
            features, classes = self.extract(part.expand(-1, 3, -1, -1) if part.shape[1] == 1 else part)
            self.distance.update(features.double(), real=real)
            if self.score is not None and classes is not None and not real:
                self.score.update(classes if self.normalised else classes.double().softmax(1))

    def scores(self) -> dict[str, float]:
        """The scores of the samples since the last call; the real images stay."""
        names = list(self.words)
        found = {names[0]: max(float(self.distance.compute()), 0.0)}
        self.distance.reset()
        if self.score is not None:
            mean, spread = self.score.compute()
            found |= {names[1]: float(mean), f"{names[1]}_std": float(spread)}
            self.score.reset()
        return found


def load(path: Path) -> NetworkScores:
    """The scores by the network in a file; see the module.

    Raises:
        DataError: there is no such file, or it is no such network.
        BackendError: what runs it is not installed.
    """
    kinds = {".onnx": _onnx, ".pt": _torchscript, ".pth": _torch_fidelity}
    if path.suffix not in kinds:
        raise DataError(f"{path} is no feature network; name an .onnx, a TorchScript .pt, or torch-fidelity's .pth")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the feature network {path} cannot be read ({error.strerror})") from None
    facts = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    try:
        return NetworkScores(kinds[path.suffix](path, content), facts)
    except (DataError, BackendError, BundleError):
        raise
    except Exception as error:  # of any library, at a file that is not what its name says
        raise DataError(f"the feature network {path} cannot be run ({str(error).strip().splitlines()[0][:200]})") from None


def _pair(found: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    parts = list(found) if isinstance(found, list | tuple) else [found]
    features, *classes = (torch.as_tensor(part).flatten(1).float() for part in parts[:2])
    return features, classes[0] if classes else None


def _onnx(path: Path, content: bytes) -> Extractor:
    import onnxruntime

    check_self_contained(content, str(path))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    if len(given.shape) != 4 or given.type not in ("tensor(uint8)", "tensor(float)"):
        raise DataError(f"{path} takes {given.type} of shape {given.shape}; expected images (N, 3, H, W), uint8 or float32 from 0 to 255")
    fixed = [side for side in given.shape[2:] if isinstance(side, int)]

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if len(fixed) == 2 and list(images.shape[2:]) != fixed:
            images = functional.interpolate(images.float(), fixed, mode="bilinear", antialias=True).clamp(0, 255)
        values = images.round().to(torch.uint8) if given.type == "tensor(uint8)" else images.float()
        return _pair(session.run(None, {given.name: np.ascontiguousarray(values.numpy())}))

    return run


def _torchscript(path: Path, content: bytes) -> Extractor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch favours other formats, in which these networks do not come
        module = torch.jit.load(str(path), map_location="cpu").eval()
    taken = {argument.name for argument in module.forward.schema.arguments}
    if not {"return_features", "no_output_bias"} <= taken:
        return lambda images: _pair(module(images))
    # NVIDIA's gives one thing at a time; the classes without the bias of the last layer are those of the Inception Score.
    return lambda images: (module(images, return_features=True), module(images, no_output_bias=True))


def _torch_fidelity(path: Path, content: bytes) -> Extractor:
    from torchmetrics.image import fid

    try:
        module = fid.NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION[0]), "logits_unbiased"], str(path))
    except ModuleNotFoundError as error:
        raise BackendError(
            f"{path.name} holds weights for torch-fidelity's Inception, which is not importable here ({error}); "
            "pip install torch-fidelity, or name a TorchScript or ONNX file"
        ) from None
    return lambda images: _pair(module._torch_fidelity_forward(images))

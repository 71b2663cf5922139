"""What moves the weights: Adam, AdamW, and Muon, which orthogonalises the step of every matrix.

The learning rate means the same in all three: Muon's steps are scaled to the size of AdamW's, so one warm-up and one schedule serve the
matrices and the rest alike, and a recipe changes its optimiser in one word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from runtime.errors import DataError

from .recipes import Recipe

# Quintic Newton-Schulz with the largest slope at 0 (Jordan et al., "Muon", 2024): 5 rounds bring all singular values to about 1.
ROUNDS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
SMALLEST = 16  # matrices with a shorter side stay with AdamW: the ends of a network, and vectors of any rank


class Muon(torch.optim.AdamW):
    """Momentum orthogonalised for matrices and convolution kernels (out, in * rows * columns), AdamW for everything else.

    The step of a matrix A x B is lr * 0.2 * sqrt(max(A, B)) * U V^T, where U S V^T = g + momentum * m, m = momentum * m + g (Nesterov's
    form; Jordan et al., "Muon: an optimizer for hidden layers", 2024). The factor, with which the root mean square is that of AdamW's
    steps, is Liu et al., arXiv 2502.16982, equation 4. Weight decay is decoupled. A matrix keeps one copy of itself, ``momentum_buffer``.

    Args:
        network: every parameter is taken; those of rank 2 and more whose sides are both at least ``SMALLEST`` are matrices.
        lr: of matrices and the rest.
        momentum: of the matrices.
    """

    def __init__(self, network: nn.Module, lr: float, momentum: float = 0.95) -> None:
        parameters = [p for p in network.parameters() if p.requires_grad]
        matrices = [p for p in parameters if p.ndim >= 2 and min(len(p), p[0].numel()) >= SMALLEST]
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        groups = [{"params": rest, "momentum": 0.0}, {"params": matrices, "momentum": momentum}]
        super().__init__([group for group in groups if group["params"]], lr=lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = []
        for group in self.param_groups:
            if group["momentum"] > 0:
                parameters = [p for p in group["params"] if p.grad is not None]
                self._orthogonal(parameters, group)
                moved += [(p, p.grad) for p in parameters]
        # AdamW leaves alone what has no gradient.
        for parameter, _ in moved:
            parameter.grad = None
        super().step()
        for parameter, gradient in moved:
            parameter.grad = gradient
        return loss

    def _orthogonal(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[torch.Tensor]] = {}
        for parameter in parameters:
            alike.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
        for (rows, columns), same in alike.items():
            stacked = []
            for parameter in same:
                state, gradient = self.state[parameter], parameter.grad
                assert gradient is not None
                if not state:
                    # The count is AdamW's, which refuses to load a state without one.
                    state |= {"step": torch.tensor(0.0), "momentum_buffer": torch.zeros_like(gradient)}
                state["step"] += 1
                state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                stacked.append(gradient.add(state["momentum_buffer"], alpha=group["momentum"]).reshape(rows, columns))
            # Matrices of one shape, as the blocks of a network have them, are orthogonalised together.
            steps = orthogonalised(torch.stack(stacked))
            size = group["lr"] * 0.2 * max(rows, columns) ** 0.5
            for parameter, change in zip(same, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(change.reshape(parameter.shape).to(parameter.dtype), alpha=-size)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """U V^T, nearly, of each matrix U S V^T of a stack (count, A, B): singular values end between about 0.7 and 1.2.

    In bfloat16 on a GPU, where that is exact enough and fast; elsewhere in float32.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / torch.linalg.matrix_norm(x.float(), keepdim=True).clamp(min=1e-7).to(x.dtype)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "adam": lambda network, lr: torch.optim.Adam(network.parameters(), lr=lr),
    "adamw": lambda network, lr: torch.optim.AdamW(network.parameters(), lr=lr),
    "muon": Muon,
}


def build(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser a recipe names, for all parameters of a network.

    Raises:
        DataError: there is none of that name.
    """
    if recipe.optimizer not in OPTIMIZERS:
        raise DataError(f"there is no optimizer '{recipe.optimizer}'; choose {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[recipe.optimizer](network, recipe.lr)

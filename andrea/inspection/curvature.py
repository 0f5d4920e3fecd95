"""How sharply the loss curves: the largest eigenvalue of its Hessian.

The Hessian is never formed: ``torch.func`` gives its product with a vector, as it is its own transpose, and Lanczos
finds the largest eigenvalue from a dozen or two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vjp

from andrea.inspection.terrain import Loss, Parameters


@dataclass(frozen=True)
class Eigenvalue:
    """The largest eigenvalue found.

    Attributes:
        value: the estimate; Lanczos comes from below.
        error: some eigenvalue lies within this of ``value``.
        num_products: with the matrix, which is what the search costs.
    """

    value: float
    error: float
    num_products: int


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], size: int, *, tolerance: float = 0.01, max_products: int = 60, seed: int = 0
) -> Eigenvalue:
    """Find the largest (not: largest in size) eigenvalue of a symmetric matrix by Lanczos.

    Every new vector is made orthogonal to all earlier ones, twice, as rounding undoes it: at ``n`` products the search
    holds ``n`` vectors. (SciPy's ``eigsh`` does the same in host memory; it is what the tests compare with.)

    Args:
        product: float32 or float64 [size] to the matrix times that.
        size: rows of the matrix.
        tolerance: stop once the error is below this share of the value.
        max_products: stop then in any case.
        seed: of the random vector to start from.
    """
    image = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    basis: Tensor | None = None
    diagonal: list[float] = []
    beside: list[float] = [float(image.norm())]
    value, error = 0.0, float("inf")
    for i in range(min(max_products, size)):
        vector = image / beside[-1]
        image = product(vector)
        if basis is None:  # the first product says what type and device the matrix works in
            basis = image.new_empty(min(max_products, size), size)
        basis[i] = vector
        diagonal.append(float(image @ basis[i]))
        for _ in range(2):
            image = image - basis[: i + 1].T @ (basis[: i + 1] @ image)
        off = torch.tensor(beside[1:], dtype=torch.float64)
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(small)
        beside.append(float(image.norm()))
        value, error = float(values[-1]), abs(beside[-1] * float(vectors[-1, -1]))
        if error <= tolerance * abs(value):
            break
    return Eigenvalue(value, error, len(diagonal))


def hessian_product(loss: Loss, parameters: Parameters) -> Callable[[Tensor], Tensor]:
    """Return the function that multiplies the Hessian of a loss by a vector [P], all parameters one after the other."""
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    sizes = [parameter.numel() for parameter in parameters.values()]
    gradient: dict[str, Tensor]
    # once: a product then costs only the way back
    gradient, transposed = vjp(grad(loss), dict(parameters))  # type: ignore[misc]  # three only with has_aux
    like = next(iter(gradient.values()))

    def product(vector: Tensor) -> Tensor:
        pieces = torch.split(vector.to(like), sizes)
        direction = {name: piece.view(shapes[name]) for name, piece in zip(shapes, pieces, strict=True)}
        (image,) = transposed(direction)
        return torch.cat([image[name].reshape(-1) for name in shapes])

    return product


def sharpness(
    loss: Loss, parameters: Parameters, *, tolerance: float = 0.02, max_products: int = 40, seed: int = 0
) -> Eigenvalue:
    """The largest eigenvalue of the Hessian of a loss at a point, in nats per squared unit of the parameters.

    Plain gradient descent is stable where it is below ``2 / learning rate`` (Cohen et al., 2021).
    """
    size = sum(parameter.numel() for parameter in parameters.values())
    return largest_eigenvalue(
        hessian_product(loss, parameters), size, tolerance=tolerance, max_products=max_products, seed=seed
    )

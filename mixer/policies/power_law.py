"""A scaling law ``loss = eps + beta n^-alpha`` through noisy losses, robust to outliers, without an optimiser library.

The objective is ADO's: the sum of Huber losses (delta 1e-3) of ``ln loss - ln(eps + beta n^-alpha)``, alpha in
[0, 0.8], ln eps >= 0.5. It has flat valleys and several minima, so a grid of 512 starts is looked at first and the best
of them are refined by damped Gauss-Newton steps on the reweighted squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixer.types import Array

DELTA = 1e-3  # of the Huber loss, in ln nats
MAX_ALPHA, MIN_LOG_EPS = 0.8, 0.5  # as released
NUM_REFINED, NUM_ROUNDS = 4, 40


@dataclass(frozen=True)
class PowerLaw:
    """The law's parameters and the objective reached."""

    alpha: float
    log_beta: float
    log_eps: float
    objective: float

    @property
    def eps(self) -> float:
        """The loss that no amount of text takes away, nats."""
        return float(np.exp(self.log_eps))

    def loss(self, n: Array) -> Array:
        """Return the law's loss at ``n``."""
        return np.asarray(self.eps + np.exp(self.log_beta - self.alpha * np.log(n)))


def fit_power_law(n: Array, losses: Array) -> PowerLaw:
    """Return the best law found through ``losses`` > 0 at ``n`` > 0, both [points]."""
    x, y = np.log(n), np.log(losses)
    starts = _grid(x, losses)
    falling = starts[:, 1:2] - starts[:, :1] * x
    residual = np.abs(y - np.logaddexp(starts[:, 2:], falling))  # [512, points]: all starts at once
    values = np.where(residual <= DELTA, 0.5 * residual**2, DELTA * (residual - 0.5 * DELTA)).sum(axis=1)
    order = np.argsort(values, kind="stable")[:NUM_REFINED]
    found = [_refined(starts[i], x, y) for i in order]
    best = min(found, key=lambda theta: _objective(theta, x, y))
    return PowerLaw(float(best[0]), float(best[1]), float(best[2]), _objective(best, x, y))


def _grid(x: Array, losses: Array) -> Array:
    """Starts (alpha, ln beta, ln eps), [512, 3]: 16 exponents, 32 floors, and the beta through the curve's middle."""
    low = max(float(losses.min()), np.exp(MIN_LOG_EPS) * 1.001)
    floors = np.linspace(MIN_LOG_EPS, np.log(low), 32)
    middle, level = float(np.median(x)), float(np.median(losses))
    starts = [
        (alpha, np.log(max(level - np.exp(floor), 1e-4 * level)) + alpha * middle, floor)
        for alpha in np.linspace(0.0, MAX_ALPHA, 16)
        for floor in floors
    ]
    return np.array(starts)


def _model(theta: Array, x: Array) -> tuple[Array, Array]:
    """Return ln of the law at x and the share that its falling part has in it, [points]."""
    falling = theta[1] - theta[0] * x
    log_loss = np.logaddexp(theta[2], falling)
    return log_loss, np.exp(falling - log_loss)


def _objective(theta: Array, x: Array, y: Array) -> float:
    residual = np.abs(y - _model(theta, x)[0])
    return float(np.where(residual <= DELTA, 0.5 * residual**2, DELTA * (residual - 0.5 * DELTA)).sum())


def _refined(theta: Array, x: Array, y: Array) -> Array:
    """Levenberg-Marquardt on Huber's reweighted squares, each step clipped to the bounds."""
    damping, value = 1e-3, _objective(theta, x, y)
    for _ in range(NUM_ROUNDS):
        log_loss, share = _model(theta, x)
        residual = y - log_loss
        weight = DELTA / np.maximum(np.abs(residual), DELTA)
        slopes = np.stack([-x * share, share, 1.0 - share], axis=1)
        held = ((theta[0] <= 0.0) | (theta[0] >= MAX_ALPHA), False, theta[2] <= MIN_LOG_EPS)
        gradient = slopes.T @ (weight * residual)
        outward = (theta[0] <= 0.0 and gradient[0] < 0) or (theta[0] >= MAX_ALPHA and gradient[0] > 0)
        free = np.array([not (held[0] and outward), True, not (held[2] and gradient[2] < 0)])
        curvature = (slopes * weight[:, None]).T @ slopes
        step = np.zeros(3)
        block = curvature[np.ix_(free, free)]
        block = block + damping * np.diag(np.diag(block) + 1e-12)
        step[free] = np.linalg.solve(block, gradient[free])
        moved = theta + step
        moved[0] = min(max(moved[0], 0.0), MAX_ALPHA)
        moved[2] = max(moved[2], MIN_LOG_EPS)
        better = _objective(moved, x, y)
        if better < value:
            is_done = value - better <= 1e-7 * value
            theta, value, damping = moved, better, max(damping / 5.0, 1e-9)
            if is_done:
                break
        else:
            damping *= 5.0
            if damping > 1e9:
                break
    return theta

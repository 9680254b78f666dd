"""Rewards on point clouds, (B, N, 3) -> (B,); none needs a gradient.

z points up (``parametric``). Lengths are in the clouds' unit. `between` and `weighted_sum` are
those of `rgdm_lib.rewards`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rgdm_lib.payoff import Reward
from rgdm_lib.rewards import between, threshold, weighted_sum

__all__ = [
    "between",
    "class_log_probability",
    "class_logit",
    "connected",
    "proportion",
    "standing_margin",
    "stands",
    "symmetry",
    "weighted_sum",
]


def _check(clouds: Tensor) -> None:
    if clouds.ndim != 3 or clouds.shape[2] != 3:
        raise ValueError(f"clouds of shape {tuple(clouds.shape)}, a reward takes (B, N, 3)")


def standing_margin(clouds: Tensor, sole: float = 0.12, directions: int = 120) -> Tensor:
    """How far the centre of mass lies inside the support polygon, (B,); below 0 the shape falls.

    The support polygon is the convex hull of the points at most ``sole`` above the lowest one. A
    hull is where its support function is: the distance of a point inside to its edge is the least,
    over directions u, of max_i u . p_i - u . c. (Outside it is negative, and minus the distance
    wherever an edge and no corner is nearest.)

    Args:
        clouds: (B, N, 3); every point weighs the same.
        sole: height of the layer that touches the ground.
        directions: over the full turn.

    Raises:
        ValueError: not (B, N, 3).
    """
    _check(clouds)
    angle = 2 * math.pi / directions * torch.arange(directions, dtype=clouds.dtype)
    turn = torch.stack([angle.cos(), angle.sin()])  # (2, directions)
    height = clouds[..., 2]
    ground = height <= height.amin(1, keepdim=True) + sole
    support = (clouds[..., :2] @ turn).masked_fill(~ground[..., None], -math.inf).amax(1)
    return (support - clouds[..., :2].mean(1) @ turn).amin(1)


def stands(clouds: Tensor) -> Tensor:
    """1 for a shape that stands, 0 for one that falls, (B,); NaN for a cloud that is not finite."""
    return threshold(standing_margin, 0.0)(clouds)


def _nearest(a: Tensor, b: Tensor) -> Tensor:
    """Distance from each point of a to the nearest of b, (B, N)."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").amin(2)


def symmetry(clouds: Tensor) -> Tensor:
    """Minus the mean distance of a cloud, mirrored at x = 0, to itself, (B,); 0 at best.

    A finite sample of a symmetric surface is not symmetric: compare with ``parametric`` shapes.
    """
    _check(clouds)
    return -_nearest(clouds * clouds.new_tensor([-1.0, 1.0, 1.0]), clouds).mean(1)


def class_logit(classifier: Callable[[Tensor], Tensor], index: int) -> Reward:
    """The logit log p / (1 - p) of a class under a classifier, in nats (Zhang & Xu 2023).

    Args:
        classifier: clouds (B, N, 3) -> (B, classes) logits of a softmax.
        index: of the class.

    Raises:
        ValueError: when called, an index that the classifier does not have.
    """

    @torch.no_grad()
    def reward(clouds: Tensor) -> Tensor:
        _check(clouds)
        logits = classifier(clouds)
        if not 0 <= index < logits.shape[1]:
            raise ValueError(f"no class {index}: the classifier knows 0 to {logits.shape[1] - 1}")
        others = torch.cat([logits[:, :index], logits[:, index + 1 :]], 1)
        return logits[:, index] - others.logsumexp(1)

    return reward


def class_log_probability(classifier: Callable[[Tensor], Tensor], index: int) -> Reward:
    """Log p of a class under a classifier, in nats; at most 0.

    The payoff distribution at tau = 1 is p_ref(x) p(class | x) / p(class), the law of the class
    alone: once a sample is clearly of the class nothing more is paid, where the logit pays on.
    """
    logit = class_logit(classifier, index)
    return lambda clouds: torch.nn.functional.logsigmoid(logit(clouds))


def proportion(clouds: Tensor) -> Tensor:
    """Width over height, (B,): extent along x over extent along z."""
    _check(clouds)
    extent = clouds.amax(1) - clouds.amin(1)
    return extent[:, 0] / extent[:, 2]


def connected(clouds: Tensor, reach: float = 0.25) -> Tensor:
    """Share of the points in the largest piece, (B,), where points nearer than ``reach`` connect.

    NaN for a cloud that is not finite. The pieces are found by spreading the smallest label over
    neighbours until nothing changes.
    """
    _check(clouds)
    n = clouds.shape[1]
    near = (torch.cdist(clouds, clouds) < reach) | torch.eye(n, dtype=bool, device=clouds.device)
    label = torch.arange(n, device=clouds.device).expand(len(clouds), n)
    while True:
        spread = label[:, None].expand(-1, n, -1).masked_fill(~near, n).amin(2)
        spread = torch.gather(spread, 1, spread)  # jump ahead: the label of one's label
        if bool((spread == label).all()):
            break
        label = spread
    count = torch.zeros(len(clouds), n, dtype=clouds.dtype, device=clouds.device)
    count.scatter_add_(1, label, torch.ones_like(clouds[..., 0]))
    finite = clouds.isfinite().flatten(1).all(1)
    return (count.amax(1) / n).masked_fill(~finite, math.nan)

"""What a model of parametric shapes should produce, exactly: payoff over parameters, class shares.

The law of the parameters is known, so shapes drawn from it, weighted by exp(reward / tau), are the
payoff distribution. A sampled cloud has no parameters; simple estimators read some off its points,
and the same estimators on the parametric clouds make the two comparable: their own bias cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rgdm_lib.payoff import Weighted

SEAT = 0.15  # a little above the thickest seat (0.14)


def _extent(values: Tensor, inside: Tensor | None = None) -> Tensor:
    """(n, N) -> (n,) from the lowest to the highest value, of those inside if that is given."""
    inside = torch.ones_like(values, dtype=torch.bool) if inside is None else inside
    far = torch.where(inside, values, -torch.inf).amax(1)
    return far - torch.where(inside, values, torch.inf).amin(1)


def estimate_parameters(kind: str, clouds: Tensor) -> dict[str, Tensor]:
    """Parameters of ``parametric`` shapes, and lengths they make up, from points alone, (n,) each.

    Args:
        kind: "chair": ``width``, ``height`` of the seat, ``leg_length`` up to it; "table":
            ``width``, ``depth``, ``height``; "plane": ``span``.
        clouds: (n, N, 3).

    Extents fall short of the truth by about the spacing of points at the edge. The seat is the
    layer of ``SEAT`` with the most points: its top and its underside are the largest level faces.

    Raises:
        ValueError: another class.
    """
    x, y, z = clouds.unbind(2)
    if kind == "table":
        upper = z > z.mean(1, keepdim=True)  # the foot of a column may be wider than the top
        return {"width": _extent(x, upper), "depth": _extent(y, upper), "height": _extent(z)}
    if kind == "plane":
        return {"span": _extent(x)}
    if kind != "chair":
        raise ValueError(f"no estimators for class {kind!r}: choose chair, plane or table")
    low = z.amin(1)
    ordered = z.sort(1).values
    above = torch.searchsorted(ordered, ordered + SEAT, right=True)
    first = (above - torch.arange(z.shape[1])).argmax(1)  # where a layer holds the most points
    bottom = ordered.gather(1, first[:, None])
    seat = (z >= bottom) & (z <= bottom + SEAT)
    middle = torch.where(seat, z, 0.0).sum(1) / seat.sum(1)
    spread = torch.where(seat, (z - middle[:, None]).square(), 0.0).sum(1) / seat.sum(1)
    half = spread.sqrt()  # most points lie on the two faces, half a thickness from the middle
    return {
        "width": _extent(x, seat),
        "height": middle + half - low,
        "leg_length": middle - half - low,
    }


def ks_distance(values: Tensor, exact: Tensor, log_weight: Tensor) -> float:
    """Largest distance between the distribution functions of values (n,) and weighted exact (m,).

    Args:
        values: a sample, equal weights.
        exact: another, of ``log_weight`` (m,), normalised.
    """
    joined = torch.cat([values.double(), exact.double()])
    step = torch.cat([torch.full((len(values),), 1 / len(values)).double(), -log_weight.exp()])
    order = joined.argsort()
    last = torch.cat([joined[order].diff() > 0, torch.ones(1, dtype=torch.bool)])  # ties as one
    return float(step[order].cumsum(0)[last].abs().max())


def ks_floor(exact: Tensor, log_weight: Tensor, n: int, draws: int = 50) -> float:
    """Mean ``ks_distance`` of n independent exact draws: what a perfect model would show."""
    share = log_weight.exp()
    picks = (torch.multinomial(share, n, replacement=True) for _ in range(draws))
    return sum(ks_distance(exact[i], exact, log_weight) for i in picks) / draws


def class_shares(label: Tensor, classes: int, log_weight: Tensor | None = None) -> Tensor:
    """(classes,) float64 share of each class among labels (n,), weighted if weights are given."""
    weight = torch.full((len(label),), 1 / len(label)) if log_weight is None else log_weight.exp()
    return torch.zeros(classes, dtype=torch.float64).index_add(0, label, weight.double())


def class_share_l1(label: Tensor, weighted: Weighted, exact_label: Tensor, classes: int) -> float:
    """Sum of absolute differences of a sample's class shares and the payoff's, 0 to 2.

    Args:
        label: (n,) of the sample, as a classifier sees it.
        weighted: the payoff distribution on m exact shapes.
        exact_label: (m,) of these.
        classes: how many there are.
    """
    exact = class_shares(exact_label, classes, weighted.log_weight)
    return float((class_shares(label, classes) - exact).abs().sum())

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
GROUND = 0.2  # where feet are looked for: a layer that still holds them when points are noisy
ABOVE = 0.12  # free height between the seat and the back's points: noisy points of the seat
STRIP = 0.3  # of the seat's width on either side of the middle: the back without arms


def _extent(values: Tensor, inside: Tensor | None = None) -> Tensor:
    """(n, N) -> (n,) from the lowest to the highest value, of those inside if that is given."""
    inside = torch.ones_like(values, dtype=torch.bool) if inside is None else inside
    far = torch.where(inside, values, -torch.inf).amax(1)
    return far - torch.where(inside, values, torch.inf).amin(1)


def _quantile(values: Tensor, inside: Tensor, q: float) -> Tensor:
    """(n, N) -> (n, 1) quantile of the values inside; NaN where there are none."""
    return values.where(inside, torch.nan).nanquantile(q, 1, keepdim=True)


def _uniform_range(values: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """(n, N) -> two (n, 1): ends of an even spread, from its 5 % and 95 % quantiles.

    A stray point does not move them as it moves the lowest and the highest value.
    """
    low, high = (_quantile(values, inside, q) for q in (0.05, 0.95))
    outside = (high - low) / 18  # 5 % of the whole, which is 90 % / 0.9
    return low - outside, high + outside


def _slope(values: Tensor, along: Tensor, inside: Tensor) -> Tensor:
    """(n, N) -> (n,) slope of a line of ``values`` over ``along``; 0 without points inside.

    Least absolute deviations by reweighted least squares: a weight is 1 over the last residual,
    which is taken for no smaller than a point's noise.
    """
    weight = inside.to(values)
    for _ in range(20):
        share = weight / weight.sum(1, keepdim=True).clamp(min=1e-9)
        x = along - (share * along).sum(1, keepdim=True)
        y = values - (share * values).sum(1, keepdim=True)
        slope = (share * x * y).sum(1) / (share * x.square()).sum(1).clamp(min=1e-9)
        weight = inside / (y - slope[:, None] * x).abs().clamp(min=0.02)
    return slope


def estimate_parameters(kind: str, clouds: Tensor) -> dict[str, Tensor]:
    """Parameters of ``parametric`` shapes, and lengths they make up, from points alone, (n,) each.

    Args:
        kind: "chair": ``width``, ``height`` of the seat, ``leg_length`` up to it, ``inset`` of the
            rear feet (share of the seat's depth; below 0 behind it), ``tilt`` of the back (rad;
            above 0 to the rear); "table": ``width``, ``depth``, ``height``; "plane": ``span``.
        clouds: (n, N, 3).

    Extents fall short of the truth by about the spacing of points at the edge. The seat is the
    layer of ``SEAT`` with the most points: its top and its underside are the largest level faces.
    The inset is that of the rear edge of what touches the ground, whatever the base: splayed legs
    end further back than their parameter says, a star's feet not as far. The tilt is that of a
    robust line through the points above the middle of the seat, 0 where there are none.

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
    top = (middle + half)[:, None]
    rear, front = _uniform_range(y, seat & (z <= top))  # above it the back begins
    feet = _quantile(y, z <= low[:, None] + GROUND, 0.05)
    left, right = _uniform_range(x, seat)
    central = (x - (left + right) / 2).abs() < STRIP * (right - left)
    return {
        "width": _extent(x, seat),
        "height": middle + half - low,
        "leg_length": middle - half - low,
        "inset": ((feet - rear) / (front - rear).clamp(min=1e-6))[:, 0],
        "tilt": -_slope(y, z, central & (z > top + ABOVE)).atan(),
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

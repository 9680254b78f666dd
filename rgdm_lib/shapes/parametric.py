"""Chairs, planes and tables with known parameters, drawn from simple laws.

Axes: z points up, y to the front, x to the right. Furniture stands on z = 0. Lengths are in units
of about half a metre for furniture, and half a wing's span or so for planes, so that all three
classes have about one size. As the law of the parameters is known, so is every payoff distribution
over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rgdm_lib.shapes.mesh import box, hexahedron, surface_points, tube

CLASSES = ("chair", "plane", "table")

Parameters = dict[str, Tensor]

# (low, high) of a uniform law; a tuple of three or more: that many kinds, with these probabilities
LAWS: dict[str, dict[str, tuple[float, ...]]] = {
    "chair": {
        "width": (0.8, 1.25),
        "depth": (0.8, 1.15),
        "height": (0.75, 1.15),  # of the seat
        "thickness": (0.04, 0.14),
        "back": (0.6, 1.35),  # length of the back
        "tilt": (0.0, 0.7),  # of the back, rad
        "inset": (0.0, 0.62),  # of the rear feet, share of the depth
        "leg": (0.035, 0.075),  # half thickness
        "splay": (0.0, 0.12),
        "base": (0.5, 0.25, 0.25),  # four legs, a star on a column, runners
        "style": (0.4, 0.3, 0.3),  # of the back: solid, upright slats, rungs
        "arms": (0.65, 0.35, 0.0),  # without, with
    },
    "plane": {
        "length": (1.6, 2.2),
        "girth": (0.08, 0.15),
        "span": (1.5, 2.3),
        "chord": (0.28, 0.5),
        "sweep": (0.0, 0.7),  # rad
        "taper": (0.25, 0.8),
        "dihedral": (-0.05, 0.15),  # rad
        "wing": (-0.7, 0.9),  # height of the wing, in radii of the fuselage
        "place": (-0.15, 0.15),  # of the wing along the fuselage
        "fin": (0.3, 0.5),
        "tail": (0.5, 0.9),
        "engines": (0.3, 0.45, 0.25),  # none, two, four
        "high_tail": (0.7, 0.3, 0.0),  # at the fuselage, on top of the fin
    },
    "table": {
        "width": (1.2, 2.1),
        "depth": (0.8, 1.3),
        "height": (0.7, 1.2),
        "thickness": (0.04, 0.12),
        "inset": (0.0, 0.25),  # of the feet, share of width and depth
        "leg": (0.03, 0.06),
        "shelf": (0.6, 0.4, 0.0),  # without, with
        "top": (0.65, 0.35, 0.0),  # rectangular, oval
        "base": (0.6, 0.25, 0.15),  # four legs, a column with a foot, two panels
    },
}


def draw_parameters(kind: str, n: int, seed: int) -> Parameters:
    """n shapes' parameters, (n,) float64 each, independent of each other; kinds are 0, 1, 2.

    The first shapes of a seed do not depend on n.

    Raises:
        ValueError: a class that does not exist.
    """
    if kind not in LAWS:
        raise ValueError(f"no class {kind!r}; there are {', '.join(CLASSES)}")
    laws = LAWS[kind]
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n, len(laws), generator=generator, dtype=torch.float64)
    drawn = {}
    for (name, law), u in zip(laws.items(), uniform.T.contiguous(), strict=True):
        if len(law) == 2:
            drawn[name] = law[0] + (law[1] - law[0]) * u
        else:
            edges = torch.tensor(law, dtype=torch.float64).cumsum(0)[:-1]
            drawn[name] = torch.bucketize(u, edges, right=True).double()
    return drawn


def _vector(x: Tensor | float, y: Tensor | float, z: Tensor | float, like: Tensor) -> Tensor:
    return torch.stack([torch.as_tensor(v).to(like).expand_as(like) for v in (x, y, z)], 1)


def _upright(x: Tensor, y: Tensor, low: Tensor, high: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Boxes with half widths a along x and b along y, between two heights."""
    return box(
        _vector(x, y, (low + high) / 2, x),
        _vector(a, 0, 0, x),
        _vector(0, b, 0, x),
        _vector(0, 0, (high - low) / 2, x),
    )


def _strut(foot: Tensor, head: Tensor, thick: Tensor) -> Tensor:
    """Boxes from foot to head (n, 3), level at both ends, with half thickness (n,)."""
    return box(
        (foot + head) / 2,
        _vector(thick, 0, 0, thick),
        _vector(0, thick, 0, thick),
        (head - foot) / 2,
    )


def _chair(p: Parameters) -> Tensor:
    w, d, h, leg = p["width"], p["depth"], p["height"], p["leg"]
    zero, under, half = torch.zeros_like(w), h - p["thickness"], p["thickness"] / 2
    parts = [_upright(zero, zero, under, h, w / 2, d / 2)]

    up = _vector(0, -p["tilt"].sin(), p["tilt"].cos(), w)
    normal = _vector(0, p["tilt"].cos(), p["tilt"].sin(), w)
    start = _vector(0, -d / 2 + half, h, w)

    def plank(x: Tensor, low: Tensor, high: Tensor, wide: Tensor, thick: Tensor) -> Tensor:
        """A board in the plane of the back, from low to high as shares of its length."""
        middle = start + up * ((low + high) / 2 * p["back"])[:, None] + _vector(x, 0, 0, w)
        long = up * ((high - low) / 2 * p["back"])[:, None]
        return box(middle, _vector(wide, 0, 0, w), long, normal * thick[:, None])

    solid, slats, rungs = ((p["style"] == k).to(w) for k in range(3))
    one = torch.ones_like(w)
    parts.append(plank(zero, zero, solid, solid * w / 2, half))
    for side in (-1.0, 0.0, 1.0):  # three slats, or two posts
        there = (slats + rungs) if side else slats
        parts.append(plank(side * (w / 2 - 0.06), zero, there, there * 0.06, there * half))
    for low in (0.3, 0.58, 0.86):  # three rungs, or a rail on top
        there = (slats + rungs) if low > 0.8 else rungs
        parts.append(plank(zero, low * one, low + 0.14 * there, there * w / 2, there * half))

    four, star, runners = ((p["base"] == k).to(w) for k in range(3))
    rear, front = -d / 2 + p["inset"] * d + leg, d / 2 - leg
    for x in (-1.0, 1.0):
        for y, slope in ((rear, -p["splay"]), (front, p["splay"])):
            thick, out = four * leg, x * (w / 2 - leg)
            foot = _vector(four * (out + x * p["splay"]), four * (y + slope), 0, w)
            parts.append(_strut(foot, _vector(four * out, four * y, four * under, w), thick))
    reach = 0.5 * d * (1 - 1.25 * p["inset"])
    parts.append(_strut(zero[:, None].expand(-1, 3), _vector(0, 0, star * under, w), star * 0.06))
    for turn in (math.pi / 4, -math.pi / 4):
        along = _vector(math.cos(turn), math.sin(turn), 0, w) * (star * reach * 1.25)[:, None]
        across = _vector(-math.sin(turn), math.cos(turn), 0, w) * (star * 0.04)[:, None]
        middle = _vector(0, 0, star * 0.03, w)
        parts.append(box(middle, along, across, _vector(0, 0, star * 0.03, w)))
    for x in (-1.0, 1.0):
        out = runners * x * (w / 2 - leg)
        post = _vector(out, runners * front, 0, w)
        parts.append(_strut(post, post + _vector(0, 0, runners * under, w), runners * leg))
        parts.append(
            box(
                _vector(out, runners * (rear + front) / 2, runners * leg, w),
                _vector(runners * leg, 0, 0, w),
                _vector(0, runners * ((front - rear) / 2 + leg), 0, w),
                _vector(0, 0, runners * leg, w),
            )
        )
    arms = p["arms"]
    for x in (-1.0, 1.0):
        out, top = arms * x * (w / 2 - 0.04), h + 0.35
        parts.append(_upright(out, zero, top - 0.05 * arms, top, arms * 0.05, arms * d / 2.2))
        parts.append(_upright(out, arms * d / 4, h, h + 0.3 * arms, arms * 0.04, arms * 0.04))
    return torch.cat(parts, 1)


def _blade(
    root: Tensor, tip: Tensor, chord: Tensor, tip_chord: Tensor, thick: Tensor, normal: Tensor
) -> Tensor:
    """A wing: root and tip are the middles (n, 3) of its ends, the chord runs along y."""
    corners = []
    for end, length in ((root, chord), (tip, tip_chord)):
        for along in (-0.5, 0.5):
            for side in (-1.0, 1.0):
                edge = end + _vector(0, along * length, 0, chord)
                corners.append(edge + side * normal * thick[:, None])
    return hexahedron(torch.stack(corners, 1))


def _plane(p: Parameters) -> Tensor:
    length, r = p["length"], p["girth"]
    nose = length / 2
    stations = ((0.0, 0.05), (0.04, 0.55), (0.14, 1.0), (0.62, 1.0), (0.85, 0.6), (1.0, 0.12))
    axes = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]], dtype=torch.float64)
    parts = [
        tube(
            # the tail rises, as the underside does
            [_vector(0, nose - s * length, r * max(0.0, s - 0.62), length) for s, _ in stations],
            [(r * k, r * k) for _, k in stations],
            axes,
        )
    ]
    half, level = p["span"] / 2, _vector(0, 0, 1, length)
    wing = _vector(0, p["place"] + 0.05, p["wing"] * r * 0.8, length)
    for side in (-1.0, 1.0):
        tip = wing + _vector(
            side * half, -half * p["sweep"].tan(), half * p["dihedral"].tan(), length
        )
        parts.append(_blade(wing, tip, p["chord"], p["chord"] * p["taper"], r * 0.13, level))
    aft = -nose + 0.16 * length
    high = p["high_tail"]
    fin_root, rise = _vector(0, aft, 0.3 * r, length), p["fin"] + 0.3 * r
    fin_tip = fin_root + _vector(0, -0.25 * length * 0.5, rise, length)
    parts.append(
        _blade(fin_root, fin_tip, 0.17 * length, 0.1 * length, r * 0.12, _vector(1, 0, 0, length))
    )
    middle = fin_root * (1 - high[:, None]) + fin_tip * high[:, None]
    for side in (-1.0, 1.0):
        tip = middle + _vector(side * p["tail"] / 2, -0.1 * length, 0, length)
        parts.append(_blade(middle, tip, 0.13 * length, 0.08 * length, r * 0.1, level))
    for share, least in ((0.33, 1), (0.62, 2)):
        there = (p["engines"] >= least).to(length)
        for side in (-1.0, 1.0):
            at = wing + _vector(
                side * share * half,
                -share * half * p["sweep"].tan() + 0.35 * p["chord"],
                share * half * p["dihedral"].tan() - 0.07,
                length,
            )
            at, size = at * there[:, None], there * 0.055
            ends = [at + _vector(0, s * there * 0.14, 0, length) for s in (1.0, -1.0)]
            parts.append(tube(ends, [(size, size), (0.75 * size, 0.75 * size)], axes))
    return torch.cat(parts, 1)


def _table(p: Parameters) -> Tensor:
    w, d, h, leg = p["width"], p["depth"], p["height"], p["leg"]
    zero, under = torch.zeros_like(w), h - p["thickness"]
    oval, box_top = p["top"], 1 - p["top"]
    level = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    top = (oval * w / 2, oval * d / 2)
    parts = [
        _upright(zero, zero, h - box_top * p["thickness"], h, box_top * w / 2, box_top * d / 2),
        tube([_vector(0, 0, h, w), _vector(0, 0, h - oval * p["thickness"], w)], [top, top], level),
    ]
    four, column, panels = ((p["base"] == k).to(w) for k in range(3))
    # an oval top has no corners, its legs stand closer
    closer = 1 - 0.3 * oval
    x_leg = (w / 2 * (1 - 2 * p["inset"] * 0.8) - leg) * closer
    y_leg = (d / 2 * (1 - 2 * p["inset"] * 0.8) - leg) * closer
    for x in (-1.0, 1.0):
        for y in (-1.0, 1.0):
            out, ahead = four * x * x_leg, four * y * y_leg
            parts.append(_upright(out, ahead, zero, four * under, four * leg, four * leg))
        out = panels * x * x_leg
        parts.append(_upright(out, zero, zero, panels * under, panels * leg / 2, panels * y_leg))
    shelf = p["shelf"] * (four + panels)
    low = 0.3 * h
    parts.append(_upright(zero, zero, low - 0.04 * shelf, low, shelf * x_leg, shelf * y_leg))
    foot = column * (0.25 * (w + d) - p["inset"] * 0.5)
    pole = (column * 0.07, column * 0.07)
    parts.append(tube([_vector(0, 0, 0, w), _vector(0, 0, column * under, w)], [pole, pole], level))
    plate = (foot, foot)
    parts.append(
        tube([_vector(0, 0, 0, w), _vector(0, 0, column * 0.05, w)], [plate, plate], level)
    )
    return torch.cat(parts, 1)


_BUILDERS: dict[str, Callable[[Parameters], Tensor]] = {
    "chair": _chair,
    "plane": _plane,
    "table": _table,
}


def mesh(kind: str, parameters: Parameters) -> Tensor:
    """Triangles (n, F, 3, 3), float64; a part that a shape has not is a point, without area."""
    return _BUILDERS[kind](parameters)


def clouds(kind: str, parameters: Parameters, points: int, generator: torch.Generator) -> Tensor:
    """(n, points, 3) float32 points spread evenly over the shapes' surfaces."""
    return surface_points(mesh(kind, parameters), points, generator)

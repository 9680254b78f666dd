"""How close two sets of point clouds are. Each name says its convention; nothing is compiled.

- CD: the mean over points of the *squared* distance to the nearest point of the other cloud, both
  directions added (Achlioptas et al. 2018; PointFlow, Yang et al. 2019).
- EMD: the mean *unsquared* distance of the best one-to-one assignment (PointFlow; PVD squares it).
- MMD, COV (Achlioptas et al. 2018), 1-NNA (Lopez-Paz & Oquab 2017) from a matrix of either.

Matrices are float64 arrays (samples, references).
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ot
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from torch import Tensor
from tqdm.auto import tqdm

Clouds = np.ndarray | Tensor

# fastest for points on surfaces: coarse leaves, cells not shrunk to their points
_TREE = {"leafsize": 32, "balanced_tree": False, "compact_nodes": False}


def _array(clouds: Clouds, name: str) -> np.ndarray:
    array = np.asarray(clouds, dtype=np.float64)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"{name} of shape {array.shape}, wanted clouds (n, N, 3)")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array).all((1, 2)))[0])
        raise ValueError(f"{name}: cloud {bad} has coordinates that are not finite")
    return array


def _one_way(trees: list[KDTree], clouds: np.ndarray) -> np.ndarray:
    """(trees, clouds): mean squared distance from a cloud's points to the nearest in the tree."""
    flat = clouds.reshape(-1, 3)
    # neighbours in turn: what one reads of a tree the next needs too. Not of a balanced tree: where
    # points share a coordinate 0 that needs the least number above 0, which notebooks flush to 0
    order = KDTree(flat, **_TREE).indices
    queries, squared = flat[order], np.empty((len(trees), len(flat)))
    for row, tree in zip(squared, trees, strict=True):
        row[order] = np.square(tree.query(queries, workers=-1)[0])
    return squared.reshape(len(trees), *clouds.shape[:2]).mean(2)


def chamfer_matrix(samples: Clouds, references: Clouds) -> np.ndarray:
    """Squared, summed Chamfer distances (n, m) of every sample to every reference.

    One search tree a cloud, which all points of the other set are looked up in at once.

    Args:
        samples: (n, N, 3).
        references: (m, M, 3).

    Raises:
        ValueError: not clouds, or not finite.
    """
    a, b = _array(samples, "samples"), _array(references, "references")
    tree_a, tree_b = [[KDTree(x, **_TREE) for x in clouds] for clouds in (a, b)]
    return _one_way(tree_a, b) + _one_way(tree_b, a).T


def emd(a: np.ndarray, b: np.ndarray) -> float:
    """Exact earth mover's distance of two clouds (N, 3), (M, 3) of equal masses 1/N and 1/M.

    Unsquared distances; for N = M it is the mean distance of the best assignment.
    """
    mass = [np.full(len(x), 1 / len(x)) for x in (a, b)]
    return float(ot.emd2(*mass, cdist(a, b), numItermax=10_000_000))


def emd_matrix(
    samples: Clouds, references: Clouds, threads: int | None = None, progress: bool = True
) -> np.ndarray:
    """Exact EMD (n, m) of every sample to every reference; it takes long, so it says how long.

    Args:
        samples: (n, N, 3).
        references: (m, M, 3).
        threads: that share the rows (the solver runs outside Python's lock); default one a core.
        progress: whether to print the estimate and show a bar.

    Raises:
        ValueError: not clouds, or not finite.
    """
    a, b = _array(samples, "samples"), _array(references, "references")
    threads = min(threads or os.cpu_count() or 1, len(a))
    if progress:
        start = time.perf_counter()
        emd(a[0], b[0])
        seconds = (time.perf_counter() - start) * len(a) * len(b) / threads
        print(f"{len(a) * len(b):,} exact EMDs on {threads} threads: about {seconds:.0f} s")

    def row(cloud: np.ndarray) -> list[float]:
        return [emd(cloud, other) for other in b]

    with ThreadPoolExecutor(threads) as pool:
        rows = tqdm(pool.map(row, a), total=len(a), disable=not progress, desc="EMD rows")
        return np.array(list(rows))


def mmd(distance: np.ndarray) -> float:
    """Mean over references of the least distance to a sample (samples, references)."""
    return float(distance.min(0).mean())


def cov(distance: np.ndarray) -> float:
    """Share of references that are the nearest reference of some sample."""
    return len(np.unique(distance.argmin(1))) / distance.shape[1]


def _joined(ss: np.ndarray, sr: np.ndarray, rr: np.ndarray) -> np.ndarray:
    n = len(sr)
    if not ss.shape == sr.shape == rr.shape == (n, n):
        raise ValueError(
            f"matrices {ss.shape}, {sr.shape}, {rr.shape}: 1-NNA compares equally many samples and"
            " references"
        )
    joined = np.block([[ss, sr], [sr.T, rr]])
    np.fill_diagonal(joined, np.inf)
    return joined


def one_nna(ss: np.ndarray, sr: np.ndarray, rr: np.ndarray) -> float:
    """1-NNA: how often the nearest other cloud is of one's own set; 0.5 is best.

    Near 1 the sets can be told apart; below 0.5 the samples are copies of references.

    Args:
        ss: samples to samples, (n, n).
        sr: samples to references, (n, n).
        rr: references to references, (n, n).

    Raises:
        ValueError: the sets are not of one size.
    """
    own = np.arange(2 * len(sr)) < len(sr)
    return float((own[_joined(ss, sr, rr).argmin(1)] == own).mean())


def one_nna_interval(
    ss: np.ndarray, sr: np.ndarray, rr: np.ndarray, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """The range of 1-NNA if both sets had one law: labels permuted, the distances kept.

    Wider than a binomial's, as one cloud is the nearest of several. Seeded.
    """
    nearest = _joined(ss, sr, rr).argmin(1)
    own = np.arange(2 * len(sr)) < len(sr)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(draws):
        permuted = rng.permutation(own)
        values.append((permuted[nearest] == permuted).mean())
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


GRID = 28


def _occupancy(clouds: np.ndarray, name: str) -> np.ndarray:
    if np.linalg.norm(clouds, axis=2).max() > 0.5 * (1 + 1e-6):  # scaled in float32
        raise ValueError(
            f"{name} reach beyond the sphere of radius 0.5, where JSD is taken: scale both sets by"
            " one factor first (clouds in [-1, 1] to a quarter)"
        )
    axis = np.linspace(-0.5, 0.5, GRID)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[np.linalg.norm(grid, axis=1) <= 0.5]
    cell = KDTree(grid).query(clouds.reshape(-1, 3), workers=-1)[1]
    count = np.bincount(cell, minlength=len(grid))
    return count / count.sum()


def jsd(samples: Clouds, references: Clouds) -> float:
    """Jensen-Shannon divergence in bits of where the points of two sets are, 0 to 1.

    Points count at the nearest node of a 28^3 grid over the unit cube, of which the nodes inside
    the sphere of radius 0.5 are used (Achlioptas et al. 2018). It sees each set's mean shape only.

    Raises:
        ValueError: points outside the sphere.
    """
    p = _occupancy(_array(samples, "samples"), "samples")
    q = _occupancy(_array(references, "references"), "references")
    middle = (p + q) / 2

    def kl(a: np.ndarray) -> float:
        there = a > 0
        return float((a[there] * np.log2(a[there] / middle[there])).sum())

    return (kl(p) + kl(q)) / 2

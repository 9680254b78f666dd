"""Chamfer matrices against a loop of torch.cdist, and exact EMD by threads: seconds and ratios."""

import argparse
import time

import numpy as np
import torch

from rgdm_lib.shapes import data, metrics

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--clouds", type=int, default=100)
parser.add_argument("--points", type=int, default=2048)
options = parser.parse_args()

clouds = data.shapes("test", options.clouds, options.points).of("chair")
other = data.shapes("validation", options.clouds, options.points).of("chair")


def timed(function):
    start = time.perf_counter()
    value = function()
    return value, time.perf_counter() - start


def loop():
    out = np.empty((len(clouds), len(other)))
    for i, a in enumerate(clouds):
        for j, b in enumerate(other):
            d = torch.cdist(a, b).square()
            out[i, j] = d.amin(0).mean() + d.amin(1).mean()
    return out


ours, seconds = timed(lambda: metrics.chamfer_matrix(clouds, other))
theirs, loop_seconds = timed(loop)
print(f"Chamfer {len(clouds)} x {len(other)} at {options.points} points: {seconds:.1f} s;"
      f" loop of torch.cdist {loop_seconds:.1f} s; {loop_seconds / seconds:.1f} times;"
      f" largest difference {np.abs(ours - theirs).max():.1e}")  # fmt: skip
few = [x[:8, :512] for x in (clouds, other)]
one, alone = timed(lambda: metrics.emd_matrix(*few, threads=1, progress=False))
all_cores, together = timed(lambda: metrics.emd_matrix(*few, progress=False))
assert np.array_equal(one, all_cores)
print(f"EMD 8 x 8 at 512 points: {alone:.1f} s on one thread, {alone / together:.2f} times on all")

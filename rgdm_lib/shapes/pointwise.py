"""The base's rival: a denoiser of each point alone, given a latent of the shape.

Luo & Hu 2021 (arXiv 2103.01458). A PointNet reads a cloud and gives a Gaussian of z; a normalising
flow is the prior of z; given z and the time, points are independent. All three learn together.
The denoiser's layers and, as in their public code, the prior (14 affine couplings) and the weight
of the KL are theirs. As the base's are shapes, diffusion, times, sampler, and that v is predicted.
To save compute z has 64 numbers, not 256, and the PointNet is smaller.

``python -m rgdm_lib.course experiment shapes-pointwise --preset P``; it can be stopped and resumed.
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgdm_lib._files import write_whole
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.nets import TimeFeatures
from rgdm_lib.shapes import experiments, metrics
from rgdm_lib.shapes.data import shapes
from rgdm_lib.shapes.experiments import GUIDANCE, POINTS, TRAINING, Made, Start
from rgdm_lib.shapes.model import load_clouds, shape_diffusion, training_times
from rgdm_lib.shapes.nets import PointNet, SetDenoiser
from rgdm_lib.shapes.parametric import CLASSES
from rgdm_lib.training import Trainer, muon

KL_WEIGHT = 1e-3
WIDTHS = (3, 128, 256, 512, 256, 128, 3)
PRIORS = {"quick": {"latent": 8, "couplings": 2}, "laptop": {"latent": 64, "couplings": 14}}
PRIORS["full"] = PRIORS["laptop"]
LEARNING_RATE = 2e-3  # Luo & Hu's, with Adam: with Muon at the base's the loss fell more slowly
TIMED = 13  # batches of each network
COMPARED = 300  # clouds a set; a minute a matrix


class ConcatSquash(nn.Module):
    """``layer(h) * sigmoid(gate(told)) + bias(told)``: h (B, N, in), told (B, c) -> (B, N, out)."""

    def __init__(self, in_width: int, out_width: int, told: int):
        super().__init__()
        self.layer = nn.Linear(in_width, out_width)
        self.gate = nn.Linear(told, out_width)
        self.bias = nn.Linear(told, out_width, bias=False)

    def forward(self, h: Tensor, told: Tensor) -> Tensor:  # noqa: D102
        return self.layer(h) * self.gate(told).sigmoid()[:, None] + self.bias(told)[:, None]


class Coupling(nn.Module):
    """An affine coupling (Dinh et al. 2017, arXiv 1605.08803): one half moves the other.

    The halves change places. Scales are between 0 and 1, as in Luo & Hu's public code.
    """

    def __init__(self, size: int, width: int = 256):
        super().__init__()
        first, middle = nn.Linear(size // 2, width), nn.Linear(width, width)
        self.net = nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), nn.Linear(width, size))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, size), an even size -> w (B, size) and log |det dw/dz| (B,)."""
        kept, moved = z.chunk(2, 1)
        raw, shift = self.net(kept).chunk(2, 1)
        log_scale = F.logsigmoid(raw + 2)
        return torch.cat([moved * log_scale.exp() + shift, kept], 1), log_scale.sum(1)

    def inverse(self, w: Tensor) -> Tensor:
        """W (B, size) -> z."""
        moved, kept = w.chunk(2, 1)
        raw, shift = self.net(kept).chunk(2, 1)
        return torch.cat([kept, (moved - shift) / (raw + 2).sigmoid()], 1)


class PointwiseDenoiser(nn.Module):
    """Encoder, prior and denoiser ``(x_t, t, z) -> eps`` of points that know z and t alone.

    Args:
        alpha_bar: (T + 1,) the schedule's.
        latent: numbers in z, even.
        couplings: of the prior.
    """

    def __init__(self, alpha_bar: Tensor, latent: int = 64, couplings: int = 14):
        super().__init__()
        self.register_buffer("alpha_bar", alpha_bar.clone(), persistent=False)
        self.latent = latent
        self.features = TimeFeatures(32, len(alpha_bar) - 1)
        self.encoder = PointNet(256, 2 * latent)
        self.prior = nn.ModuleList(Coupling(latent) for _ in range(couplings))
        self.layers = nn.ModuleList(ConcatSquash(*pair, 33 + latent) for pair in pairwise(WIDTHS))

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """x_t (B, N, 3), t (B,) integers in 1..T, cond (B, latent) -> eps (B, N, 3)."""
        told, v = torch.cat([self.features(t), cond], 1), x_t
        for i, layer in enumerate(self.layers):
            v = layer(F.leaky_relu(v) if i else v, told)
        alpha_bar = self.alpha_bar[t].to(x_t.dtype)[:, None, None]
        return alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * x_t

    def encode(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """A draw z (B, latent) of q(z | x0) and log q(z | x0) - log p(z), (B,) nats."""
        mean, log_std = self.encoder(x0).chunk(2, 1)
        z = mean + log_std.exp() * (noise := torch.randn_like(mean))
        log_q = -(log_std + noise.square() / 2 + math.log(2 * math.pi) / 2).sum(1)
        return z, log_q - self.log_prior(z)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of z (B, latent), (B,) nats."""
        log_det = z.new_zeros(len(z))
        for coupling in self.prior:
            z, more = coupling(z)
            log_det = log_det + more
        return log_det - (z.square() + math.log(2 * math.pi)).sum(1) / 2

    @torch.no_grad()
    def draw_latents(self, n: int) -> Tensor:
        """N draws (n, latent) of the prior."""
        z = torch.randn(n, self.latent)
        for coupling in reversed(self.prior):
            z = coupling.inverse(z)
        return z


def loss(diffusion: Diffusion, net: PointwiseDenoiser, x0: Tensor, times: Tensor) -> Tensor:
    """The denoising loss given a draw of z, plus the weighted KL: (B,) for clouds x0 (B, N, 3)."""
    z, kl = net.encode(x0)
    return diffusion.loss(net, x0, z, times=times) + KL_WEIGHT * kl


def speed_to_base(start: Start) -> float:
    """Batches in the time of one of the base's: medians of processor times, kept in a file."""
    path = start.out / "pointwise_speed.json"
    if not path.exists():
        x0 = start.norm.apply(start.seen.points[: TRAINING[start.preset]["batch"]])
        diffusion, times = shape_diffusion(), training_times()
        base = SetDenoiser(diffusion.schedule.alpha_bar, **experiments.NETWORKS[start.preset])
        mine = PointwiseDenoiser(diffusion.schedule.alpha_bar, **PRIORS[start.preset])
        runs = (
            Trainer(base, lambda net: diffusion.loss(net, x0, times=times), 99, optimizer=muon),
            Trainer(mine, lambda net: loss(diffusion, net, x0, times), 99),
        )

        def seconds(run: Trainer) -> float:
            before = time.process_time()
            run.run(until=run.step + 1, progress=False)
            return time.process_time() - before

        write_whole(path, json.dumps([[seconds(run) for run in runs] for _ in range(TIMED)]))
    base_s, mine_s = np.median(json.loads(path.read_text(encoding="utf-8")), 0)
    return float(base_s / mine_s)


def _pointwise(start: Start, name: str, seed: int, compute: float) -> Made:
    speed, diffusion, times = speed_to_base(start), shape_diffusion(), training_times()
    steps = round(compute * speed * TRAINING[start.preset]["steps"])
    print(f"{name}: {steps} steps, {speed:.3f} in the time of one of the base's", flush=True)
    torch.manual_seed(1000 * (seed + 1))  # whether or not the speed was measured just now
    net = PointwiseDenoiser(diffusion.schedule.alpha_bar, **PRIORS[start.preset])
    x0 = start.norm.apply(start.seen.points)
    shared = {"warmup": steps // 20, "decay_share": 0.4, "bf16": False}  # with the base

    def batch_loss(net: PointwiseDenoiser, index: Tensor) -> Tensor:
        return loss(diffusion, net, x0[index], times)

    trained = start.fit(name, seed, net, batch_loss, steps=steps, lr=LEARNING_RATE, **shared)
    z = trained.draw_latents(GUIDANCE[start.preset]["samples"])
    return start.sample(experiments.fast(trained, start.preset), seed, z), {"steps": steps}


def compare(preset: str, out: Path, compute: float = 1.0) -> list[Path]:
    """Train and sample, then print how close these samples and the base's are to held-out shapes.

    The distances and references are those of notebook 08. ``compute`` is over that of the base's
    training: at preset laptop half an hour on a core.
    """
    make, n = partial(_pointwise, compute=compute), min(COMPARED, GUIDANCE[preset]["samples"])
    (path,) = experiments.make_sets(preset, out, ("pointwise",), (0,), make)
    held_out = shapes("test", 300, POINTS[preset])
    real = torch.cat([held_out.of(kind)[: n // 3] for kind in CLASSES])
    files = (path.with_name(experiments.BASE_FILE), path)
    sets = {file.name: load_clouds(file)[0][: len(real)] for file in files}
    sets["validation part"] = shapes("validation", n // 3, POINTS[preset]).points
    rr = metrics.chamfer_matrix(real, real)
    for name, clouds in sets.items():
        ss, sr = (metrics.chamfer_matrix(clouds, other) for other in (clouds, real))
        told = f"1-NNA-CD {metrics.one_nna(ss, sr, rr):.3f}, MMD-CD {metrics.mmd(sr):.4f}"
        print(f"{name}: {told}, COV-CD {metrics.cov(sr):.3f} (n = {len(rr)})", flush=True)
    return [path]

"""Equations first shown in notebook 00."""

import torch

from ledger import close, equation
from rgdm_lib import payoff
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.rewards import Linear


def tilted(m, s, tau):
    p = GaussianMixture(torch.tensor([[m]], dtype=torch.float64), s).tilt(Linear([1.0]), tau)
    return p.means[0, 0], p.std[0].square()


@equation(
    "linear-tilt-of-a-gaussian",
    mutations={
        "tau inverted": {"formula": lambda m, s, tau: (m + s**2 * tau, s**2)},
        "standard deviation for variance": {"formula": lambda m, s, tau: (m + s / tau, s**2)},
        "reward subtracted": {"formula": lambda m, s, tau: (m - s**2 / tau, s**2)},
        "the width shrinks": {"formula": lambda m, s, tau: (m + s**2 / tau, s**2 / (1 + 1 / tau))},
    },
)
def linear_tilt_of_a_gaussian(formula=tilted):
    """The whole density, on a grid, against the reference times exp(r / tau), normalised."""
    m, s, tau = 0.3, 0.7, 0.6
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    mean, variance = (torch.as_tensor(v, dtype=torch.float64) for v in formula(m, s, tau))
    density = torch.softmax(-(((x - m) / s) ** 2) / 2 + x / tau, 0)
    claimed = torch.distributions.Normal(mean, variance.sqrt()).log_prob(x).exp()
    close(claimed, density / (x[1] - x[0]))


@equation(
    "effective-sample-size",
    mutations={
        "a share, not a count": {"formula": lambda w: w.mean() ** 2 / w.square().mean()},
        "weights not squared below": {"formula": lambda w: w.sum() ** 2 / w.sum()},
        "sum not squared above": {"formula": lambda w: w.sum() / w.square().sum()},
        "weights must sum to 1": {"formula": lambda w: 1 / w.square().sum()},
    },
)
def effective_sample_size(formula=lambda w: payoff.effective_sample_size(w.log())):
    """Three cases known by heart, and Kish's form n / (1 + squared coefficient of variation)."""
    equal, one = torch.full((7,), 3.0, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    one[2] = 3.0
    close(formula(equal), 7)
    close(formula(one), 1)
    close(formula(torch.cat([equal, 0 * equal])), 7)
    w = torch.rand(50, dtype=torch.float64)
    close(formula(w), 50 / (1 + w.var(correction=0) / w.mean() ** 2))

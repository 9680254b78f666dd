"""Equations first shown in notebook 08."""

import itertools
import math

import numpy as np
import torch
from scipy.spatial.distance import cdist

from ledger import close, equation
from rgdm_lib.payoff import Draw
from rgdm_lib.shapes import exact, metrics, rewards


def rng():
    return np.random.default_rng(0)


def pair():
    """Two clouds (6, 3) and (4, 3)."""
    draw = rng()
    return draw.normal(size=(6, 3)), draw.normal(size=(4, 3)) + 0.5


def by_loops(a, b, power, both=(1, 1), reduce=np.mean):
    """Chamfer distance by loops, of any convention."""

    def one_way(x, y):
        return reduce([min(math.dist(p, q) ** power for q in y) for p in x])

    return both[0] * one_way(a, b) + both[1] * one_way(b, a)


@equation(
    "chamfer-distance",
    mutations={
        "not squared": {"formula": lambda a, b: by_loops(a, b, 1)},
        "averaged over directions": {"formula": lambda a, b: by_loops(a, b, 2, (0.5, 0.5))},
        "one direction": {"formula": lambda a, b: by_loops(a, b, 2, (1, 0))},
        "summed over points": {"formula": lambda a, b: by_loops(a, b, 2, reduce=np.sum)},
        "farthest for nearest": {
            "formula": lambda a, b: (
                (cdist(a, b) ** 2).max(1).mean() + (cdist(a, b) ** 2).max(0).mean()
            )
        },
    },
)
def chamfer_distance(formula=lambda a, b: metrics.chamfer_matrix(a[None], b[None])[0, 0]):
    a, b = pair()
    close(formula(a, b), by_loops(a, b, 2))


def best_assignment(a, b, power=1, reduce=np.mean, best=min):
    """Over all permutations, one by one."""
    return best(
        reduce([math.dist(p, b[j]) ** power for p, j in zip(a, order, strict=True)])
        for order in itertools.permutations(range(len(b)))
    )


@equation(
    "earth-movers-distance",
    mutations={
        "squared": {"formula": lambda a, b: best_assignment(a, b, power=2)},
        "summed over points": {"formula": lambda a, b: best_assignment(a, b, reduce=np.sum)},
        "worst assignment": {"formula": lambda a, b: best_assignment(a, b, best=max)},
        "nearest point, not one to one": {"formula": lambda a, b: cdist(a, b).min(1).mean()},
    },
)
def earth_movers_distance(formula=metrics.emd):
    a, b = rng().normal(size=(2, 5, 3))
    close(formula(a, b), best_assignment(a, b))


# three samples, five references, distances typed in: no two answers are the same
DISTANCE = np.array([
    [0.1, 0.4, 0.9, 0.8, 0.7],
    [0.2, 0.3, 0.8, 0.9, 0.6],
    [0.9, 0.7, 0.5, 1.0, 0.8],
])  # fmt: skip


@equation(
    "mmd-and-cov",
    mutations={
        "MMD over samples": {"mmd": lambda d: d.min(1).mean()},
        "largest for least": {"mmd": lambda d: d.max(0).mean()},
        "COV transposed": {"cov": lambda d: len(np.unique(d.argmin(0))) / d.shape[0]},
        "COV over samples": {"cov": lambda d: len(np.unique(d.argmin(1))) / d.shape[0]},
        "COV counts repeats": {"cov": lambda d: len(d.argmin(1)) / d.shape[1]},
    },
)
def mmd_and_cov(mmd=metrics.mmd, cov=metrics.cov):
    """By hand: column minima 0.1, 0.3, 0.5, 0.8, 0.6; the samples' nearest are 0, 0 and 2."""
    close(mmd(DISTANCE), 2.3 / 5)
    close(cov(DISTANCE), 2 / 5)


def nearest_neighbour_accuracy(ss, sr, rr, skip_self=True, share_of_samples=False):
    """Each cloud's nearest other, by loops."""
    n, right = len(ss), []
    for i in range(2 * n):
        row = np.concatenate([ss[i], sr[i]] if i < n else [sr[:, i - n], rr[i - n]])
        others = [j for j in range(2 * n) if j != i or not skip_self]
        nearest = min(others, key=lambda j, row=row: row[j])
        right.append((nearest < n) == (i < n))
    return float(np.mean(right[:n] if share_of_samples else right))


@equation(
    "one-nearest-neighbour-accuracy",
    mutations={
        "itself counted": {"formula": lambda *d: nearest_neighbour_accuracy(*d, skip_self=False)},
        "samples only": {
            "formula": lambda *d: nearest_neighbour_accuracy(*d, share_of_samples=True)
        },
        "how often wrong": {"formula": lambda *d: 1 - metrics.one_nna(*d)},
        "without the samples' own": {"formula": lambda ss, sr, rr: metrics.one_nna(ss + 9, sr, rr)},
    },
)
def one_nearest_neighbour_accuracy(formula=metrics.one_nna):
    draw = rng()
    a, b = draw.normal(size=(7, 2)), draw.normal(size=(7, 2)) * 0.6
    distances = cdist(a, a), cdist(a, b), cdist(b, b)
    close(formula(*distances), nearest_neighbour_accuracy(*distances))


def occupied(points):
    """Counts of points at the library's grid nodes, by rounding."""
    step = 1 / (metrics.GRID - 1)
    cells = np.round((points.reshape(-1, 3) + 0.5) / step).astype(int)
    return {tuple(c): int((cells == c).all(1).sum()) for c in np.unique(cells, axis=0)}


def divergence(p, q, log=np.log2, mixed=True, both=True):
    """JSD of two dicts of counts."""
    keys = sorted({*p, *q})
    a, b = (np.array([d.get(k, 0) for k in keys], float) for d in (p, q))
    a, b = a / a.sum(), b / b.sum()
    middle = (a + b) / 2 if mixed else b

    def kl(x, y):
        used = x > 0
        return float((x[used] * log(x[used] / np.maximum(y[used], 1e-12))).sum())

    return (kl(a, middle) + kl(b, middle)) / 2 if both else kl(a, middle)


def jsd_by(**change):
    return lambda a, b: divergence(occupied(a), occupied(b), **change)


@equation(
    "jensen-shannon",
    mutations={
        "in nats": {"formula": jsd_by(log=np.log)},
        "KL for JSD": {"formula": jsd_by(mixed=False, both=False)},
        "one side": {"formula": jsd_by(both=False)},
        "not halved": {"formula": lambda a, b: 2 * metrics.jsd(a, b)},
    },
)
def jensen_shannon(formula=metrics.jsd):
    """Entropy of the mixture minus the mean entropy: the same number by another formula."""
    draw = rng()
    a, b = draw.uniform(-0.25, 0.25, (3, 40, 3)), draw.uniform(-0.2, 0.28, (2, 50, 3))
    p, q = occupied(a), occupied(b)
    keys = sorted({*p, *q})
    x = np.array([[d.get(k, 0) / sum(d.values()) for k in keys] for d in (p, q)])

    def entropy(share):
        return -sum(v * math.log2(v) for v in share if v > 0)

    close(formula(a, b), entropy(x.mean(0)) - (entropy(x[0]) + entropy(x[1])) / 2)


def attention(values, keys, query):
    """One latent reads the points: softmax of its match with each, times what each holds."""
    return torch.softmax(keys @ query, 0) @ values


@equation(
    "pooling-by-attention",
    mutations={
        "position matters": {
            "pool": lambda v, k, q: attention(v * torch.arange(1, len(v) + 1)[:, None], k, q)
        },
        "not normalised over points": {"pool": lambda v, k, q: (k @ q).exp() @ v},
        "softmax over the wrong axis": {
            "pool": lambda v, k, q: torch.softmax((k @ q)[:, None], 1)[:, 0] @ v
        },
        "largest only": {"pool": lambda v, k, q: v[(k @ q).argmax()]},
    },
)
def pooling_by_attention(pool=attention):
    """Against torch's attention; whatever the order; twice the points give the same."""
    values, keys = torch.randn(2, 7, 4, dtype=torch.float64)
    query = torch.randn(4, dtype=torch.float64)
    torch_says = torch.nn.functional.scaled_dot_product_attention(
        query[None], keys, values, scale=1.0
    )[0]
    order = torch.randperm(7)
    close(pool(values, keys, query), torch_says)
    close(pool(values[order], keys[order], query), torch_says)
    close(pool(values.repeat(2, 1), keys.repeat(2, 1), query), torch_says)


FEET = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)


def margin_by(feet=FEET, sign=1, over=torch.amin, reach=torch.amax):
    def formula(centre):
        angle = 2 * math.pi / 720 * torch.arange(720, dtype=torch.float64)
        u = torch.stack([angle.cos(), angle.sin()])
        return over(reach(feet @ u, 0) - sign * centre @ u, 0)

    return formula


def library_margin(centre):
    """Three feet and, in the air, as much weight as puts the centre of mass where it should be."""
    feet = torch.cat([FEET, torch.zeros(3, 1, dtype=torch.float64)], 1)
    rest = torch.tensor([[*(2 * centre - FEET.mean(0)), 1.0]], dtype=torch.float64).expand(3, 3)
    return rewards.standing_margin(torch.cat([feet, rest])[None], directions=720)[0]


@equation(
    "standing-margin",
    mutations={
        "largest for least": {"formula": margin_by(over=torch.amax)},
        "nearest foot": {"formula": margin_by(reach=torch.amin)},
        "centre added": {"formula": margin_by(sign=-1)},
        "a box for a hull": {
            "formula": margin_by(torch.cat([FEET, -torch.ones(1, 2, dtype=torch.float64)]))
        },
    },
)
def standing_margin(formula=library_margin):
    """Distances to the triangle's edges x = 1, y = 1 and x + y = 0, directions that are drawn."""
    for x, y in ((0.3, 0.1), (0.7, -0.2), (0.1, -0.3), (-0.9, 0.2)):
        exact = min(1 - x, 1 - y, (x + y) / math.sqrt(2))
        close(formula(torch.tensor([x, y], dtype=torch.float64)), exact)


# ---- where a shape is decided ------------------------------------------------------------------


def shape_log_likelihood(x_t, known, alpha_bar, join=torch.logsumexp, over=torch.sum, power=1):
    """log p(x_t | shape) of points (N, 3) for known shapes (K, M, 3), up to one constant."""
    centre = alpha_bar**0.5 * known
    square = (x_t[None, :, None] - centre[:, None]).square().sum(3)  # (K, N, M)
    inside = join(-square / (2 * (1 - alpha_bar) ** power), 2) - math.log(known.shape[1])
    return over(inside, 1)


def posterior_by(**change):
    return lambda *args: torch.softmax(shape_log_likelihood(*args, **change), 0)


POSTERIOR = posterior_by()


@equation(
    "posterior-of-known-shapes",
    mutations={
        "mean over points": {"formula": posterior_by(over=torch.mean)},
        "nearest place only": {"formula": posterior_by(join=torch.amax)},
        "one factor for the whole cloud": {
            "formula": lambda x, known, ab: torch.softmax(
                torch.logsumexp(-(x[None] - ab**0.5 * known).square().sum(2) / 2 / (1 - ab), 1), 0
            )
        },
        "standard deviation for variance": {"formula": posterior_by(power=0.5)},
        "signal not scaled": {
            "formula": lambda x, known, ab: posterior_by()(x, known / ab**0.5, ab)
        },
    },
)
def posterior_of_known_shapes(formula=POSTERIOR):
    """Bayes' rule with torch's mixtures of Gaussians, shape by shape."""
    known = torch.randn(4, 3, 3, dtype=torch.float64)
    x, ab = torch.randn(3, 3, dtype=torch.float64), 0.4
    joint = []
    for shape in known:
        places = torch.distributions.Independent(
            torch.distributions.Normal(ab**0.5 * shape, (1 - ab) ** 0.5), 1
        )
        even = torch.distributions.Categorical(torch.ones(3, dtype=torch.float64))
        mixture = torch.distributions.MixtureSameFamily(even, places)
        joint.append(mixture.log_prob(x).sum().exp())
    close(formula(x, known, ab), torch.stack(joint) / sum(joint))


@equation(
    "mean-under-noise",
    mutations={
        "noise of the mean 1 / N": {"formula": lambda n, v, ab: ab * n * v + (1 - ab) / n},
        "N left out": {"formula": lambda n, v, ab: ab * v + 1 - ab},
        "sqrt(alpha_bar)": {"formula": lambda n, v, ab: ab**0.5 * n * v + 1 - ab},
        "noise left out": {"formula": lambda n, v, ab: ab * n * v},
    },
)
def mean_under_noise(formula=lambda n, v, ab: ab * n * v + 1 - ab):
    """Any covariance of N heights; noise adds (1 - alpha_bar) I; then the direction of the mean."""
    for n, ab in ((5, 0.3), (12, 0.9)):
        root = torch.randn(n, n, dtype=torch.float64)
        covariance = root @ root.T
        mean = torch.full((n,), n**-0.5, dtype=torch.float64)
        noisy = ab * covariance + (1 - ab) * torch.eye(n, dtype=torch.float64)
        close(formula(n, covariance.mean(), ab), mean @ noisy @ mean)


# ---- rewards and their payoff ------------------------------------------------------------------


@equation(
    "class-logit",
    mutations={
        "log p": {"formula": lambda z: torch.log_softmax(z, 1)[:, 1]},
        "raw logit": {"formula": lambda z: z[:, 1]},
        "against all": {"formula": lambda z: z[:, 1] - z.logsumexp(1)},
        "against the best other": {"formula": lambda z: z[:, 1] - torch.maximum(z[:, 0], z[:, 2])},
    },
)
def class_logit(
    formula=lambda z: rewards.class_logit(lambda clouds: z, 1)(torch.zeros(len(z), 1, 3)),
):
    logits = torch.randn(5, 3, dtype=torch.float64)
    p = logits.exp()[:, 1] / logits.exp().sum(1)
    close(formula(logits), torch.log(p / (1 - p)))


KINDS = torch.tensor([0, 0, 1, 1, 1, 2, 0, 2])
LOGITS = torch.tensor([0.3, 2.0, -1.0, 0.4, -0.2, 1.0, 0.9, -3.0], dtype=torch.float64)


def shares_by(tau=0.8, weight=lambda r, tau: (r / tau).exp(), prior=True, mean_first=False):
    def formula():
        share = []
        for k in range(3):
            r = LOGITS[KINDS == k]
            inside = weight(r.mean(), tau) if mean_first else weight(r, tau).mean()
            share.append(((KINDS == k).double().mean() if prior else 1.0) * inside)
        return torch.stack(share) / sum(share)

    return formula


SHARES = shares_by()


@equation(
    "class-shares-of-the-payoff",
    mutations={
        "prior left out": {"formula": shares_by(prior=False)},
        "mean reward first": {"formula": shares_by(mean_first=True)},
        "tau inverted": {"formula": shares_by(1 / 0.8)},
        "reward for weight": {"formula": shares_by(weight=lambda r, tau: r / tau)},
    },
)
def class_shares_of_the_payoff(formula=SHARES):
    """Against the library's weights, summed over each class."""
    weighted = Draw(torch.zeros(8, 1, 3), LOGITS).weigh(0.8)
    close(formula(), exact.class_shares(KINDS, 3, weighted.log_weight))

"""Checks of notebook 08: Chamfer without a loop, does it stand, class shares, a hacked reward."""

import torch

from rgdm_lib.course.exercises import (
    also_right,
    as_tensor,
    exercise,
    require,
    require_close,
    wrong,
)


@exercise("08.1")
def chamfer_is_squared_and_summed(chamfer):
    """Two pairs of clouds on axes, worked out by hand; 3 and 2 points, so no side is the other."""
    a = torch.tensor([
        [[0.0, 0, 0], [1, 0, 0], [0, 0, 2]],
        [[0.0, 0, 0], [0, 3, 0], [0, 0, 0]],
    ])  # fmt: skip
    b = torch.tensor([[[0.0, 0, 0], [0, 0, 5]], [[0.0, 1, 0], [4, 0, 0]]])
    # a to b, squared: 0, 1, 4 and 1, 4, 1; b to a: 0, 9 and 1, 16
    want = torch.tensor([5 / 3 + 9 / 2, 6 / 3 + 17 / 2], dtype=torch.float64)
    got = as_tensor(chamfer(a, b))
    require(got.shape != (2, 2), "it returns every cloud with every other: pair a[i] with b[i]")
    require(got.numel() != 1, "it returns one number: one for each of the pairs is wanted")
    require(got.shape == (2,), f"it returns shape {tuple(got.shape)}, not one value a pair")
    mistakes = [
        ([1 + 3 / 2, 4 / 3 + 5 / 2], "that is the distance: square it"),
        (want / 2, "that is the mean of the two directions: add them"),
        ([5 / 3, 2], "that is the way from a to b only: add the way from b to a"),
        ([9 / 2, 17 / 2], "that is the way from b to a only: add the way from a to b"),
        ([14, 23], "that is summed over points: take the mean, as clouds may have different sizes"),
        ([9, 16], "that is the largest of all: take the mean over points"),
        ([14 / 5, 23 / 5], "that is one mean over the points of both: one mean a direction"),
    ]
    because = "take for each point the squared distance to the nearest of the other cloud"
    require_close(got, want, because, rtol=1e-4, mistakes=mistakes)
    far = torch.tensor([[[1000.0, 0, 0]]])
    got = as_tensor(chamfer(far, far + 0.01))
    require_close(
        got, [6e-4], "far from the origin small distances must survive: subtract the points first,"
        " |x|^2 + |y|^2 - 2 x.y cancels (torch.cdist: compute_mode='donot_use_mm_for_euclid_dist')",
        rtol=0.05,
    )  # fmt: skip


def _squared(a, b):
    return (a[:, :, None] - b[:, None]).square().sum(3)


@also_right("08.1")
def _by_cdist():
    def chamfer(a, b):
        d = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        return d.amin(2).mean(1) + d.amin(1).mean(1)

    return (chamfer,)


@also_right("08.1")
def _pair_by_pair():
    import numpy as np
    from scipy.spatial import KDTree

    def chamfer(a, b):
        pairs = zip(np.asarray(a, float), np.asarray(b, float), strict=True)
        return [
            (KDTree(y).query(x)[0] ** 2).mean() + (KDTree(x).query(y)[0] ** 2).mean()
            for x, y in pairs
        ]

    return (chamfer,)


def _chamfer(change):
    return (lambda a, b: change(_squared(a, b)),)


@wrong("08.1", "not squared", says="square it")
def _not_squared():
    return _chamfer(lambda d: d.sqrt().amin(2).mean(1) + d.sqrt().amin(1).mean(1))


@wrong("08.1", "mean of the directions", says="the mean of the two directions")
def _mean_of_directions():
    return _chamfer(lambda d: (d.amin(2).mean(1) + d.amin(1).mean(1)) / 2)


@wrong("08.1", "one direction", says="from a to b only")
def _one_direction():
    return _chamfer(lambda d: d.amin(2).mean(1))


@wrong("08.1", "the other direction", says="from b to a only")
def _other_direction():
    return _chamfer(lambda d: d.amin(1).mean(1))


@wrong("08.1", "summed over points", says="that is summed over points")
def _summed_over_points():
    return _chamfer(lambda d: d.amin(2).sum(1) + d.amin(1).sum(1))


@wrong("08.1", "Hausdorff", says="that is the largest of all")
def _hausdorff():
    return _chamfer(lambda d: torch.maximum(d.amin(2).amax(1), d.amin(1).amax(1)))


@wrong("08.1", "one mean over both", says="one mean a direction")
def _one_mean():
    return _chamfer(lambda d: torch.cat([d.amin(2), d.amin(1)], 1).mean(1))


@wrong("08.1", "mean over the batch", says="it returns one number")
def _one_number():
    return _chamfer(lambda d: d.amin(2).mean() + d.amin(1).mean())


@wrong("08.1", "cancellation", says="small distances must survive")
def _expanded_square():
    def chamfer(a, b):
        d = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None] - 2 * a @ b.mT
        return d.amin(2).mean(1) + d.amin(1).mean(1)

    return (chamfer,)


SQUARE = [(1, 1, 0), (1, -1, 0), (-1, 1, 0), (-1, -1, 0)]
STANDING = (  # a cloud of 12 points, moved up by, whether it stands, what it shows
    (SQUARE + [(0, 0, 1)] * 8, 0, 1,
     "weight above the middle of four feet stands"),
    (SQUARE + [(5, 0, 1)] * 8, 0, 0,
     "weight far beyond the feet falls: only the lowest points support, all points are the mass"),
    (SQUARE + [(0, 0, 1)] * 7 + [(5, 0, 1)], 0, 1,
     "one point far out does not tip it: the centre of mass is the mean, not the middle of a box"),
    ([*SQUARE[:3], *[(-0.8, -0.8, 1)] * 9], 0, 0,
     "on three feet it falls over the missing fourth: the support is their convex hull, not a box"),
    (SQUARE + [(0, 0, 1)] * 8, 5, 1,
     "the same shape 5 higher stands too: the ground is at its own lowest point, not at z = 0"),
    ([(1, 1, 0), (1, -1, 0.1), (-1, 1, 0.1), (-1, -1, 0)] + [(0.3, -0.2, 1)] * 8, 0, 1,
     "two of its feet end 0.1 above the others: all points up to `sole` above the lowest support"),
)  # fmt: skip


@exercise("08.2")
def what_stands(stands):
    """Six clouds of 12 points that stand or fall by a wide margin."""
    clouds = torch.stack([
        torch.tensor(cloud, dtype=torch.float32) + torch.tensor([0, 0, up])
        for cloud, up, _, _ in STANDING
    ])  # fmt: skip
    got = as_tensor(stands(clouds, 0.12))
    require(got.shape == (6,), f"it returns shape {tuple(got.shape)}, not one value a cloud")
    require(
        ((got == 0) | (got == 1)).all(),
        "it must return 1 (stands) or 0 (falls), not how far it is from tipping",
    )
    for value, (*_, want, because) in zip(got, STANDING, strict=True):
        require(value == want, because)


def _margin(clouds, ground, centre):
    angle = 2 * torch.pi / 90 * torch.arange(90)
    turn = torch.stack([angle.cos(), angle.sin()])
    reach = (clouds[..., :2] @ turn).masked_fill(~ground[..., None], -torch.inf).amax(1)
    return (reach - centre @ turn).amin(1)


def _lowest(clouds, sole):
    return clouds[..., 2] <= clouds[..., 2].amin(1, keepdim=True) + sole


@also_right("08.2")
def _by_the_hull():
    import numpy as np
    from scipy.spatial import ConvexHull

    def one(cloud, sole):
        ground = cloud[cloud[:, 2] <= cloud[:, 2].min() + sole, :2]
        return (ConvexHull(ground).equations @ np.append(cloud.mean(0)[:2], 1) <= 0).all()

    return (lambda clouds, sole: [one(c, sole) for c in np.asarray(clouds, dtype=float)],)


@also_right("08.2")
def _by_angles():
    """The centre is inside where no half plane is free of feet."""
    import numpy as np

    def one(cloud, sole):
        z = cloud[:, 2]
        away = (cloud[z <= z.min() + sole] - cloud.mean(0))[:, :2]
        angles = np.sort(np.arctan2(away[:, 1], away[:, 0]))
        return bool(np.diff(np.append(angles, angles[0] + 2 * np.pi)).max() < np.pi)

    return (
        lambda clouds, sole: torch.tensor([one(c, sole) for c in np.asarray(clouds, dtype=float)]),
    )


@wrong("08.2", "a box for a hull", says="convex hull, not a box")
def _box():
    def stands(clouds, sole):
        ground, xy = _lowest(clouds, sole)[..., None], clouds[..., :2]
        low = xy.masked_fill(~ground, torch.inf).amin(1)
        high = xy.masked_fill(~ground, -torch.inf).amax(1)
        centre = xy.mean(1)
        return ((centre >= low) & (centre <= high)).all(1)

    return (stands,)


def _stands(ground=_lowest, centre=lambda clouds, ground: clouds[..., :2].mean(1)):
    def stands(clouds, sole):
        below = ground(clouds, sole)
        return _margin(clouds, below, centre(clouds, below)) >= 0

    return (stands,)


@wrong("08.2", "all points support", says="only the lowest points support")
def _all_points():
    return _stands(lambda clouds, sole: torch.ones_like(clouds[..., 2], dtype=torch.bool))


@wrong("08.2", "the ground at 0", says="not at z = 0")
def _ground_at_zero():
    return _stands(lambda clouds, sole: clouds[..., 2] <= sole)


@wrong("08.2", "the lowest point alone", says="up to `sole` above the lowest")
def _lowest_alone():
    return _stands(lambda clouds, sole: _lowest(clouds, 0.0))


@wrong("08.2", "middle of the box", says="not the middle of a box")
def _middle_of_box():
    return _stands(centre=lambda clouds, ground: (clouds.amin(1) + clouds.amax(1))[..., :2] / 2)


@wrong("08.2", "the margin", says="not how far it is from tipping")
def _the_margin():
    return (lambda clouds, sole: _margin(clouds, _lowest(clouds, sole), clouds[..., :2].mean(1)),)


@exercise("08.3")
def shares_follow_from_temperature(class_shares):
    """Unequal prior shares and rewards by hand: exp(r / tau) is 1, 2 and 4 at tau = 2."""
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reward = 2 * torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64) * torch.log(torch.tensor(2.0))
    want = torch.tensor([0.5, 1.2, 0.4], dtype=torch.float64) / 2.1
    got = as_tensor(class_shares(prior, reward, 2.0))
    require(got.shape == (3,), f"it returns shape {tuple(got.shape)}, not one share a class")
    mistakes = [
        (torch.softmax(reward / 2, 0), "the shares before the reward are left out"),
        (prior * torch.exp(reward / 2), "they do not add up to 1: divide by their sum"),
        (torch.softmax(prior.log() + 2 * reward, 0), "that is exp(tau r): the reward is over tau"),
        (torch.softmax(prior.log() - reward / 2, 0), "that favours low rewards: check the sign"),
        (torch.softmax(prior + reward / 2, 0), "the prior share is a factor, not an exponent"),
        (prior * reward / (prior * reward).sum(), "the weight is exp(r / tau), not the reward"),
    ]
    because = "each class has its share times exp(r / tau), over the sum of these"
    require_close(got, want, because, rtol=1e-5, mistakes=mistakes)
    got = as_tensor(class_shares(prior, reward + 5000, 2.0))
    because = "a constant added to all rewards changes nothing: exp overflows, subtract the largest"
    require(torch.isfinite(got).all(), because)
    require_close(got, want, because, rtol=1e-4)


@also_right("08.3")
def _through_softmax():
    return (lambda prior, reward, tau: torch.softmax(prior.log() + reward / tau, 0),)


@also_right("08.3")
def _class_by_class():
    import numpy as np

    def class_shares(prior, reward, tau):
        top = max(float(r) for r in reward)
        parts = [
            float(p) * np.exp((float(r) - top) / tau) for p, r in zip(prior, reward, strict=True)
        ]
        return [part / sum(parts) for part in parts]

    return (class_shares,)


@wrong("08.3", "prior left out", says="are left out")
def _prior_left_out():
    return (lambda prior, reward, tau: torch.softmax(reward / tau, 0),)


@wrong("08.3", "not normalised", says="do not add up to 1")
def _not_normalised():
    return (lambda prior, reward, tau: prior * torch.exp(reward / tau),)


@wrong("08.3", "times tau", says="the reward is over tau")
def _times_tau():
    return (lambda prior, reward, tau: torch.softmax(prior.log() + reward * tau, 0),)


@wrong("08.3", "sign", says="favours low rewards")
def _sign():
    return (lambda prior, reward, tau: torch.softmax(prior.log() - reward / tau, 0),)


@wrong("08.3", "the reward as the weight", says="not the reward")
def _reward_for_weight():
    return (lambda prior, reward, tau: prior * reward / (prior * reward).sum(),)


@wrong("08.3", "overflow", says="exp overflows")
def _overflow():
    def class_shares(prior, reward, tau):
        weight = prior * torch.exp(reward / tau)
        return weight / weight.sum()

    return (class_shares,)


@exercise("08.4")
def points_that_are_read(points_read):
    """A table of 5 points and 4 features for two clouds: three points hold every maximum."""
    features = torch.tensor([
        [[9.0, 1, 2, 0], [3, 7, 1, 1], [8, 6, 5, 2], [2, 0, 6, 0], [1, 5, 0, 8]],
        [[0.0, 1, 2, 3], [5, 9, 4, 7], [4, 8, 3, 6], [1, 1, 1, 1], [2, 2, 2, 2]],
    ])  # fmt: skip
    want = torch.tensor([
        [True, True, False, True, True],
        [False, True, False, False, False],
    ])  # fmt: skip
    got = as_tensor(points_read(features))
    require(got.shape != (2, 4), "it returns one value a feature: one for each point is wanted")
    require(got.shape == (2, 5), f"it returns shape {tuple(got.shape)}, not one value a point")
    require(
        ((got == 0) | (got == 1)).all(), "it must say True or False (1 or 0), not how many maxima"
    )
    mistakes = [
        (~want, "that is the points that are not read: the other way round"),
        ((features == features.amin(1, True)).any(2), "that is the minimum: the network takes the"
         " maximum"),
        ((features == features.amax((1, 2), True)).any(2), "only the largest of all features is"
         " kept: each feature has its own maximum"),
        ((features == features.amax((0, 1), True)).any(2), "the maximum must not run over clouds"),
        (torch.ones_like(want), "every point is largest in some feature if the maximum runs over"
         " its features: take it over points"),
    ]  # fmt: skip
    because = "a point is read if it is the largest of its cloud in at least one feature"
    require_close(got, want.double(), because, mistakes=[(v.double(), m) for v, m in mistakes])


@also_right("08.4")
def _by_scatter():
    def points_read(features):
        best = features.argmax(1)
        return torch.zeros(features.shape[:2]).scatter(1, best, 1.0)

    return (points_read,)


@also_right("08.4")
def _cloud_by_cloud():
    import numpy as np

    def points_read(features):
        read = np.zeros(features.shape[:2], bool)
        for flags, table in zip(read, np.asarray(features), strict=True):
            flags[np.unique(table.argmax(0))] = True
        return read

    return (points_read,)


@wrong("08.4", "the minimum", says="that is the minimum")
def _minimum():
    return (lambda f: (f == f.amin(1, keepdim=True)).any(2),)


@wrong("08.4", "largest of all features", says="each feature has its own maximum")
def _one_maximum():
    return (lambda f: (f == f.amax((1, 2), keepdim=True)).any(2),)


@wrong("08.4", "over clouds", says="must not run over clouds")
def _over_clouds():
    return (lambda f: (f == f.amax((0, 1), keepdim=True)).any(2),)


@wrong("08.4", "over features", says="take it over points")
def _over_features():
    return (lambda f: (f == f.amax(2, keepdim=True)).any(2),)


@wrong("08.4", "inverted", says="the other way round")
def _inverted():
    return (lambda f: (f < f.amax(1, keepdim=True)).all(2),)


@wrong("08.4", "counts", says="not how many maxima")
def _counts():
    return (lambda f: (f == f.amax(1, keepdim=True)).sum(2),)


@wrong("08.4", "one a feature", says="it returns one value a feature")
def _which_point():
    return (lambda f: f.argmax(1),)

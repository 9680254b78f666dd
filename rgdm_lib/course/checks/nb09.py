"""Checks of notebook 09: centre of mass, stability, temperature, rewards, sizes, hacking."""

import math

import numpy as np
import torch

from rgdm_lib.course.exercises import (
    also_right,
    as_tensor,
    exercise,
    require,
    require_close,
    wrong,
)
from rgdm_lib.molecules import rewards
from rgdm_lib.molecules.data import load_qm9


@exercise("09.1")
def com_is_zero(zero_com):
    """Typed-in molecules of unequal atoms: no feature can be mistaken for an equal weight."""
    x = torch.zeros(2, 3, 9)
    x[0, :, :3] = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 1.0], [0.0, 0.0, 4.0]])
    x[1, :, :3] = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, -3.0, 0.0]])
    x[0, :, 3:] = torch.tensor(
        [[0.25, 0, 0, 0, 0, 0.1], [0, 0.25, 0, 0, 0, 0.6], [0, 0, 0.25, 0, 0, 0.7]]
    )
    x[1, :, 3:] = x[0, :, 3:].flip(0)
    positions, features = x[..., :3], x[..., 3:]
    want = torch.tensor([
        [[-1.0, 2.0, -1.0], [2.0, -1.0, -1.0], [-1.0, -1.0, 2.0]],
        [[6.0, 1.0, 0.0], [-3.0, 1.0, 0.0], [-3.0, -2.0, 0.0]],
    ])  # fmt: skip
    got = as_tensor(zero_com(x))
    require(
        got.shape != positions.shape, "it returns the positions alone: keep the other six channels"
    )
    require(got.shape == x.shape, f"it returns shape {tuple(got.shape)}, not {tuple(x.shape)}")
    require_close(got[..., 3:], features, "the element channels must stay as they are")
    charge = features[..., 5:]
    weighted = (charge * positions).sum(1, True) / charge.sum(1, True)
    mistakes = [
        (positions - positions.mean((0, 1)), "the mean must not run over the batch"),
        (positions - positions.mean(2, True), "the mean runs over atoms, not over x, y, z"),
        (positions - positions.sum(1, True), "subtract the mean, not the sum"),
        (positions - positions[:, :1], "subtract the mean, not the first atom"),
        (positions - weighted, "the mean must not be weighted: every atom counts the same"),
        (positions + positions.mean(1, True), "the mean is added: subtract it"),
        (positions, "the positions have not moved"),
    ]
    because = "each molecule's positions must lose their own mean over its atoms"
    require_close(got[..., :3], want, because, mistakes=mistakes)


def _with_positions(change):
    """An answer that changes the positions and leaves the features."""
    return (lambda x: torch.cat([change(x[..., :3], x), x[..., 3:]], -1),)


@also_right("09.1")
def _by_projection():
    def zero_com(x):
        n = x.shape[1]
        projection = torch.eye(n) - torch.ones(n, n) / n
        return torch.cat([torch.einsum("ij,bjc->bic", projection, x[..., :3]), x[..., 3:]], dim=2)

    return (zero_com,)


@also_right("09.1")
def _in_place():
    def zero_com(x):
        x[..., :3] -= x[..., :3].mean(1, keepdim=True)
        return x

    return (zero_com,)


@wrong("09.1", "mean over all channels", says="the element channels must stay")
def _mean_over_all_channels():
    return (lambda x: x - x.mean(1, keepdim=True),)


@wrong("09.1", "mean over the batch", says="must not run over the batch")
def _mean_over_the_batch():
    return _with_positions(lambda positions, x: positions - positions.mean((0, 1)))


@wrong("09.1", "mean over coordinates", says="not over x, y, z")
def _mean_over_coordinates():
    return _with_positions(lambda positions, x: positions - positions.mean(2, True))


@wrong("09.1", "mean weighted by charge", says="must not be weighted")
def _weighted():
    def centre(positions, x):
        weight = x[..., 8:] / x[..., 8:].sum(1, True)
        return positions - (weight * positions).sum(1, True)

    return _with_positions(centre)


@wrong("09.1", "the first atom", says="not the first atom")
def _first_atom():
    return _with_positions(lambda positions, x: positions - positions[:, :1])


@wrong("09.1", "positions alone", says="it returns the positions alone")
def _positions_alone():
    return (lambda x: x[..., :3] - x[..., :3].mean(1, keepdim=True),)


def _orders(n, *bonds):
    orders = np.zeros((n, n), dtype=np.int8)
    for i, j, order in bonds:
        orders[i, j] = orders[j, i] = order
    return orders


@exercise("09.2")
def stability_is_edms(molecule_stable):
    """Seven four-atom molecules, bond by bond."""
    cases = (
        ("formaldehyde, with its double bond, is stable: a double bond uses two of the valence",
         (6, 8, 1, 1), True, ((0, 1, 2), (0, 2, 1), (0, 3, 1))),
        ("acetylene, with its triple bond, is stable", (6, 6, 1, 1), True,
         ((0, 1, 3), (0, 2, 1), (1, 3, 1))),
        ("atoms without any bond are not stable", (6, 8, 1, 1), False, ()),
        ("a methyl radical lacks one bond: every atom counts", (6, 1, 1, 1), False,
         ((0, 1, 1), (0, 2, 1), (0, 3, 1))),
        ("an H with two bonds is not stable, though the rest is", (8, 1, 1, 1), False,
         ((0, 1, 1), (0, 2, 1), (2, 3, 1))),
        ("C and O with three each are not stable, though the total is right", (6, 8, 1, 1), False,
         ((0, 1, 2), (0, 2, 1), (1, 3, 1))),
        ("ammonia is stable", (7, 1, 1, 1), True, ((0, 1, 1), (0, 2, 1), (0, 3, 1))),
    )  # fmt: skip
    orders = np.stack([_orders(4, *bonds) for *_, bonds in cases])
    numbers = np.array([case[1] for case in cases], dtype=np.uint8)
    got = as_tensor(molecule_stable(orders, numbers))
    require(got.shape != (7, 4), "it returns one value an atom: a molecule needs all of its atoms")
    require(got.shape == (7,), f"it returns shape {tuple(got.shape)}, not one value a molecule")
    require(((got == 0) | (got == 1)).all(), "it must return True or False for each molecule")
    for value, (because, _, want, _) in zip(got, cases, strict=True):
        require(value == want, because)


_VALENCE = np.array([0, 1, 0, 0, 0, 0, 4, 3, 2, 1])


@also_right("09.2")
def _molecule_by_molecule():
    valence = {1: 1, 6: 4, 7: 3, 8: 2, 9: 1}

    def molecule_stable(orders, numbers):
        return [
            all(row.sum() == valence[int(z)] for row, z in zip(matrix, atoms, strict=True))
            for matrix, atoms in zip(orders, numbers, strict=True)
        ]

    return (molecule_stable,)


@also_right("09.2")
def _in_torch():
    def molecule_stable(orders, numbers):
        used = torch.as_tensor(orders).sum(1)
        missing = torch.as_tensor(_VALENCE)[torch.as_tensor(numbers).long()] - used
        return missing.abs().amax(-1) == 0

    return (molecule_stable,)


@wrong("09.2", "at most the valence", says="atoms without any bond are not stable")
def _at_most_the_valence():
    return (lambda orders, numbers: (orders.sum(-1) <= _VALENCE[numbers]).all(-1),)


@wrong("09.2", "counts neighbours", says="a double bond uses two of the valence")
def _counts_neighbours():
    return (lambda orders, numbers: ((orders > 0).sum(-1) == _VALENCE[numbers]).all(-1),)


@wrong("09.2", "any atom", says="every atom counts")
def _any_atom():
    return (lambda orders, numbers: (orders.sum(-1) == _VALENCE[numbers]).any(-1),)


@wrong("09.2", "total over the molecule", says="though the total is right")
def _total_over_the_molecule():
    def molecule_stable(orders, numbers):
        all_bonded = (orders.sum(-1) > 0).all(-1)
        hydrogens = ((orders.sum(-1) == 1) | (numbers != 1)).all(-1)
        return all_bonded & hydrogens & (orders.sum((1, 2)) == _VALENCE[numbers].sum(-1))

    return (molecule_stable,)


@wrong("09.2", "hydrogens not counted", says="an H with two bonds is not stable")
def _hydrogens_not_counted():
    def molecule_stable(orders, numbers):
        return ((orders.sum(-1) == _VALENCE[numbers]) | (numbers == 1)).all(-1)

    return (molecule_stable,)


@wrong("09.2", "one value an atom", says="it returns one value an atom")
def _by_atom():
    return (lambda orders, numbers: orders.sum(-1) == _VALENCE[numbers],)


def _share(reward, tau):
    weight = torch.exp((reward - reward.max()) / tau)
    return float(weight.sum() ** 2 / weight.square().sum()) / len(reward)


@exercise("09.3")
def tau_gives_the_share(find_tau):
    """A closed form for two values; then normal rewards, also far from 0."""
    two = torch.tensor([0.0, 2.0], dtype=torch.float64).repeat(50)
    share = (1 + math.e) ** 2 / (2 * (1 + math.e**2))
    mistakes = [
        (0.5, "that is 1 / tau: weights are exp(reward / tau)"),
        (float(two.std()) / math.sqrt(-math.log(share)),
         "that is the formula for Gaussian rewards, and these are 0 and 2: measure the ESS"),
        (_bisect(lambda reward, tau: len(reward) * _share(reward, tau), two, share),
         "that is where the ESS itself is `share`: divide it by n"),
    ]  # fmt: skip
    because = "half of the rewards 0, half 2: at tau = 2 the share is (1+e)^2 / (2 (1+e^2))"
    require_close(find_tau(two, share), 2.0, because, rtol=0.01, mistakes=mistakes)
    normal = torch.randn(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for shift, spread in ((0.0, 1.0), (0.0, 0.05), (1000.0, 1.0), (-1000.0, 1.0)):
        reward = shift + spread * normal
        for share in (0.8, 0.4, 0.1):
            tau = as_tensor(find_tau(reward, share))
            require(tau.numel() == 1, f"its shape is {tuple(tau.shape)}: return one number")
            tau = float(tau.sum())
            hint = "; exp overflows: subtract the largest reward first" if shift else ""
            require(math.isfinite(tau) and tau > 0, f"tau = {tau} for rewards near {shift:g}{hint}")
            because = (
                f"the share at your tau = {tau:.4g}, rewards of sd {spread} near {shift:g}{hint}"
            )
            require_close(_share(reward, tau), share, because, rtol=0.03)


@also_right("09.3")
def _by_a_root_finder():
    def find_tau(reward, share):
        from scipy.optimize import brentq
        from scipy.special import logsumexp

        reward = np.asarray(reward)
        spread = reward.std()
        reward = (reward - reward.mean()) / spread

        def excess(log_tau):
            exponent = reward / math.exp(log_tau)
            log_ess = 2 * logsumexp(exponent) - logsumexp(2 * exponent)
            return log_ess - math.log(share * len(reward))

        return spread * math.exp(brentq(excess, -8, 8))

    return (find_tau,)


@also_right("09.3")
def _by_halving():
    return (lambda reward, share: torch.tensor(_bisect(_share, reward, share)),)


@wrong("09.3", "inverse temperature", says="that is 1 / tau")
def _inverse_temperature():
    return (lambda reward, share: 1 / _bisect(_share, reward, share),)


@wrong("09.3", "the Gaussian formula", says="that is the formula for Gaussian rewards")
def _gaussian_formula_only():
    return (lambda reward, share: float(reward.std()) / math.sqrt(-math.log(share)),)


@wrong("09.3", "plain exp", says="exp overflows: subtract the largest reward first")
def _overflows():
    def naive(reward, tau):
        weight = torch.exp(reward / tau)
        return float(weight.sum() ** 2 / weight.square().sum()) / len(reward)

    return (lambda reward, share: _bisect(naive, reward, share),)


@wrong("09.3", "the ESS, not its share", says="divide it by n")
def _count_for_share():
    def count(reward, tau):
        return len(reward) * _share(reward, tau)

    return (lambda reward, share: _bisect(count, reward, share),)


def _bisect(measure, reward, share):
    cold, hot = 1e-4, 1e4
    for _ in range(60):
        middle = math.sqrt(cold * hot)
        cold, hot = (middle, hot) if measure(reward, middle) < share else (cold, middle)
    return hot


@exercise("09.4")
def forecast_holds(my_reward, my_tau, my_forecast):
    """Weigh 490 real molecules, not those the notebook offers."""

    def scored_by(function):
        def number(mol):
            value = as_tensor(function(mol), "what my_reward returns")
            require(
                value.numel() == 1, f"my_reward returns shape {tuple(value.shape)}, not a number"
            )
            return float(value.sum())

        return rewards.per_molecule(number)

    require(callable(my_reward), "my_reward is not a function")
    molecules = load_qm9("heavy7").subset(range(4, 3921, 8))
    # What it raises on the first molecule is told. On others it means "no value", as in `rewards`.
    scored_by(my_reward)(molecules.subset([0]))
    values = scored_by(getattr(my_reward, "function", my_reward))(molecules).double()
    values = values[torch.isfinite(values)]
    require(len(values) > 100, f"only {len(values)} of {len(molecules)} molecules get a number")
    require(values.std() > 0, "my_reward gives every molecule the same value: nothing to weigh")
    tau, forecast = as_tensor(my_tau, "my_tau"), as_tensor(my_forecast, "my_forecast")
    require(tau.numel() == forecast.numel() == 1, "my_tau and my_forecast are one number each")
    tau, forecast = float(tau.sum()), float(forecast.sum())
    require(math.isfinite(tau) and tau > 0, f"my_tau is {tau}; a temperature is above 0")
    share = _share(values, tau)
    require(
        0 <= forecast <= 1, f"my_forecast is {forecast:g}: it is the share ESS / n, between 0 and 1"
    )
    advice = "higher" if share < 0.1 else "lower"
    require(
        0.1 <= share <= 0.9,
        f"the share is {share:.2f} at your tau: choose a {advice} one, for 0.1 to 0.9",
    )
    off = abs(forecast - share)
    require(off <= 0.1, f"you foretold {forecast:.2f}, and it is {share:.2f}")


def _foretold(my_reward, spreads=1.2, forecast=lambda share: share):
    """Arguments of the check: the temperature in standard deviations, the share as measured."""
    values = rewards.per_molecule(my_reward)(load_qm9("heavy7").subset(range(0, 3921, 8))).double()
    values = values[torch.isfinite(values)]
    tau = spreads * float(values.std())
    return my_reward, tau, forecast(_share(values, tau))


def _mass(mol):
    return sum(atom.GetMass() for atom in mol.GetAtoms())


@also_right("09.4")
def _by_mass():
    return _foretold(_mass)


@also_right("09.4")
def _by_polar_surface_some_without_a_value():
    from rdkit.Chem import rdMolDescriptors

    def my_reward(mol):
        return rdMolDescriptors.CalcTPSA(mol) / (mol.GetNumHeavyAtoms() != 5)

    polar, tau, share = _foretold(rdMolDescriptors.CalcTPSA)
    return my_reward, torch.tensor(tau), np.float32(share)


@wrong("09.4", "a forecast far off", says="you foretold")
def _forecast_far_off():
    return _foretold(_mass, forecast=lambda share: share / 4)


@wrong("09.4", "the ESS, not its share", says="between 0 and 1")
def _count():
    return _foretold(_mass, forecast=lambda share: 490 * share)


@wrong("09.4", "a constant reward", says="the same value")
def _constant_reward():
    return (lambda mol: 1.0, 1.0, 1.0)


@wrong("09.4", "all weight on few", says="choose a higher one")
def _all_weight_on_few():
    return _foretold(_mass, spreads=0.1)


@wrong("09.4", "no steering at all", says="choose a lower one")
def _hardly_any_weight():
    return _foretold(_mass, spreads=10.0)


@wrong("09.4", "a temperature below 0", says="a temperature is above 0")
def _negative_tau():
    return (_mass, -1.0, 0.5)


@wrong("09.4", "text for a number", says="what my_reward returns is a str")
def _text():
    return (lambda mol: f"{_mass(mol):.1f}", 10.0, 0.5)


@wrong("09.4", "a value for hardly any", says="molecules get a number")
def _hardly_any_value():
    (my_reward, tau, share) = _foretold(_mass)
    return (lambda mol: my_reward(mol) if mol.GetNumHeavyAtoms() < 5 else math.nan, tau, share)


_WEIGHED = torch.tensor([1, 3, 1, 1, 2], dtype=torch.float64)
_SIZES = torch.tensor([5, 5, 5, 9, 9])


def _kept(reward, tau, sizes, share):
    """Weights within each size, times ``share`` of the samples' mask."""
    weight = torch.zeros_like(reward)
    for size in sizes.unique():
        here = sizes == size
        weight[here] = share(here) * torch.softmax(reward[here] / tau, 0)
    return weight


@exercise("09.5")
def sizes_are_kept_or_tilted(payoff_weights):
    """Weights in whole numbers; a size of one sample; rewards far from 0."""
    reward, tau = 2 * _WEIGHED.log(), 2.0
    free, equal = _WEIGHED / 8, _kept(reward, tau, _SIZES, lambda here: 0.5)
    kept = _kept(reward, tau, _SIZES, lambda here: here.double().mean())
    ones = _kept(reward, tau, _SIZES, lambda here: 1.0)
    for keep, want, mistakes in (
        (False, free, [(kept, "keep is false, and the sizes were kept"),
                       (torch.softmax(reward * tau, 0), "rewards are divided by tau")]),
        (True, kept, [(free, "keep is true, and the sizes were tilted"),
                      (equal, "each size has the same share: it must keep its own, n_N / n"),
                      (ones, "each size sums to 1: multiply by its share, n_N / n")]),
    ):  # fmt: skip
        got = as_tensor(payoff_weights(reward.clone(), tau, _SIZES.clone(), keep))
        require(got.shape == (5,), f"it returns shape {tuple(got.shape)}: one weight a sample")
        because = (
            f"weights with keep = {keep}, exp(reward / tau) = 1, 3, 1, 1, 2, sizes 5, 5, 5, 9, 9"
        )
        require_close(got, want, because, mistakes=mistakes)
    far = as_tensor(payoff_weights(reward + 3000, tau, _SIZES, True))
    require(bool(torch.isfinite(far).all()), "exp overflows for rewards near 3000: use a softmax")
    require_close(far, kept, "a constant added to all rewards changes nothing")


@also_right("09.5")
def _by_scatter():
    def payoff_weights(reward, tau, sizes, keep):
        weight = torch.exp((reward - reward.max()) / tau)
        if not keep:
            return weight / weight.sum()
        _, which = sizes.unique(return_inverse=True)
        total = torch.zeros(int(which.max()) + 1, dtype=torch.float64).index_add(0, which, weight)
        count = torch.bincount(which).double()
        return (weight / total[which]) * (count[which] / len(reward))

    return (payoff_weights,)


@also_right("09.5")
def _sample_by_sample():
    def payoff_weights(reward, tau, sizes, keep):
        reward, sizes = reward.numpy(), sizes.numpy()
        weight = np.exp((reward - reward.max()) / tau)
        groups = (
            [sizes == size for size in sizes] if keep else [np.ones(len(sizes), bool)] * len(sizes)
        )
        return [
            w / weight[group].sum() * group.mean() for w, group in zip(weight, groups, strict=True)
        ]

    return (payoff_weights,)


@wrong("09.5", "always free", says="the sizes were tilted")
def _always_free():
    return (lambda reward, tau, sizes, keep: torch.softmax(reward / tau, 0),)


@wrong("09.5", "always kept", says="the sizes were kept")
def _always_kept():
    def weights(reward, tau, sizes, keep):
        return _kept(reward, tau, sizes, lambda here: here.double().mean())

    return (weights,)


def _free_or(share):
    def weights(reward, tau, sizes, keep):
        return _kept(reward, tau, sizes, share) if keep else torch.softmax(reward / tau, 0)

    return (weights,)


@wrong("09.5", "equal shares", says="it must keep its own")
def _equal_shares():
    return _free_or(lambda here: 0.5)


@wrong("09.5", "each size sums to 1", says="multiply by its share")
def _sums_to_the_number_of_sizes():
    return _free_or(lambda here: 1.0)


@wrong("09.5", "times tau", says="divided by tau")
def _times_tau():
    return (lambda reward, tau, sizes, keep: torch.softmax(reward * tau, 0),)


@wrong("09.5", "plain exp", says="exp overflows")
def _plain_exp():
    def weights(reward, tau, sizes, keep):
        weight = torch.exp(reward / tau)
        if not keep:
            return weight / weight.sum()
        return sum(
            (sizes == n) * (sizes == n).double().mean() * weight / weight[sizes == n].sum()
            for n in sizes.unique()
        )

    return (weights,)


@exercise("09.6")
def the_hacked_reward_is_caught(hacked_from):
    """Normal proxies: under a tilt their mean is 1 / tau, and the judge's is known."""
    points = (torch.arange(4001, dtype=torch.float64) + 0.5) / 4001
    proxy = torch.special.ndtri(points)
    bent = proxy - proxy.square() / 2  # mean m - (m^2 + 1) / 2 with m = 1 / tau: falls from m = 1
    taus = [4.0, 2.0, 1.0, 0.6, 0.4, 0.3]
    cases = (
        ("the judge is the proxy itself: it never falls", proxy, 0.0),
        ("the judge rises up to tau = 1 and falls beyond", bent, 0.6),
        ("the judge is minus the proxy: it falls at once", -proxy, 4.0),
        ("the judge knows nothing of the proxy's sign, only its size", proxy.square(), 0.0),
    )
    for because, judge, want in cases:
        got = as_tensor(hacked_from(proxy.clone(), judge.clone(), list(taus)))
        require(got.numel() == 1, f"its shape is {tuple(got.shape)}: return one temperature")
        index = float(taus.index(want)) if want == 0.6 else math.nan
        mistakes = [
            (index, "that is the place in the list: return the temperature"),
            (1.0, "at that temperature it still rises: return the first at which it has fallen"),
            (0.4, "compare with the temperature before, not with the plain mean"),
        ]
        require_close(got.sum(), want, because, mistakes=mistakes)


def _first_fall(mean, against_before=True, answer=lambda taus, i: taus[i]):
    """Answers that go through the temperatures: ``mean(proxy, judge, tau)``."""

    def hacked_from(proxy, judge, taus):
        last = judge.mean()
        for i, tau in enumerate(taus):
            if mean(proxy, judge, tau) < last:
                return answer(taus, i)
            last = mean(proxy, judge, tau) if against_before else last
        return 0

    return (hacked_from,)


def _weighted_mean(proxy, judge, tau):
    return torch.softmax(proxy / tau, 0) @ judge


@also_right("09.6")
def _all_means_first():
    def hacked_from(proxy, judge, taus):
        means = [float(judge.mean()), *(float(_weighted_mean(proxy, judge, t)) for t in taus)]
        falls = [t for t, a, b in zip(taus, means[:-1], means[1:], strict=True) if b < a]
        return torch.tensor(falls[0] if falls else 0.0)

    return (hacked_from,)


@also_right("09.6")
def _in_numpy():
    def hacked_from(proxy, judge, taus):
        proxy, judge = np.asarray(proxy), np.asarray(judge)
        last = np.mean(judge)
        for tau in taus:
            mean = np.average(judge, weights=np.exp((proxy - proxy.max()) / tau))
            if mean < last:
                return np.float64(tau)
            last = mean
        return 0.0

    return (hacked_from,)


@wrong("09.6", "against the plain mean", says="not with the plain mean")
def _against_the_plain_mean():
    return _first_fall(_weighted_mean, against_before=False)


@wrong("09.6", "the index", says="return the temperature")
def _the_index():
    return _first_fall(_weighted_mean, answer=lambda taus, i: i)


@wrong("09.6", "the last good one", says="it still rises")
def _the_last_good_one():
    return _first_fall(_weighted_mean, answer=lambda taus, i: taus[max(i - 1, 0)])


@wrong("09.6", "tilted by the judge", says="rises up to tau = 1")
def _tilted_by_the_judge():
    return _first_fall(lambda proxy, judge, tau: _weighted_mean(judge, judge, tau))


@wrong("09.6", "times tau", says="it never falls")
def _tilted_times_tau():
    return _first_fall(lambda proxy, judge, tau: torch.softmax(proxy * tau, 0) @ judge)

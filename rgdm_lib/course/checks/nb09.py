"""Checks of notebook 09: zero centre of mass, stability, a temperature, a reward of one's own."""

import math

import numpy as np
import torch

from rgdm_lib.course.exercises import exercise, require, require_close, wrong
from rgdm_lib.molecules import rewards
from rgdm_lib.molecules.data import load_qm9


@exercise("09.1")
def com_is_zero(zero_com):
    """Typed-in molecules; the features tell a mean over the wrong channels."""
    x = torch.zeros(2, 3, 9)
    x[0, :, :3] = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 1.0], [0.0, 0.0, 4.0]])
    x[1, :, :3] = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, -3.0, 0.0]])
    x[..., 3:] = torch.tensor([0.25, 0.0, 0.0, 0.0, 0.0, 0.1])
    want = x.clone()
    want[0, :, :3] = torch.tensor([[-1.0, 2.0, -1.0], [2.0, -1.0, -1.0], [-1.0, -1.0, 2.0]])
    want[1, :, :3] = torch.tensor([[6.0, 1.0, 0.0], [-3.0, 1.0, 0.0], [-3.0, -2.0, 0.0]])
    got = zero_com(x)
    require(isinstance(got, torch.Tensor), "it must return a tensor")
    require(got.shape == x.shape, f"it returns shape {tuple(got.shape)}, not {tuple(x.shape)}")
    require_close(got[..., 3:], want[..., 3:], "the element channels must stay as they are")
    require_close(got, want, "each molecule's positions must lose their own mean over its atoms")


def _orders(n, *bonds):
    orders = np.zeros((n, n), dtype=np.int8)
    for i, j, order in bonds:
        orders[i, j] = orders[j, i] = order
    return orders


@exercise("09.2")
def stability_is_edms(molecule_stable):
    """Six four-atom molecules, bond by bond."""
    cases = (
        ("formaldehyde, with its double bond, is stable", (6, 8, 1, 1), True,
         ((0, 1, 2), (0, 2, 1), (0, 3, 1))),
        ("acetylene, with its triple bond, is stable", (6, 6, 1, 1), True,
         ((0, 1, 3), (0, 2, 1), (1, 3, 1))),
        ("atoms without any bond are not stable", (6, 8, 1, 1), False, ()),
        ("a methyl radical lacks one bond", (6, 1, 1, 1), False,
         ((0, 1, 1), (0, 2, 1), (0, 3, 1))),
        ("an H with two bonds is not stable, though the rest is", (8, 1, 1, 1), False,
         ((0, 1, 1), (0, 2, 1), (2, 3, 1))),
        ("C and O with three each are not stable, though the total is right", (6, 8, 1, 1), False,
         ((0, 1, 2), (0, 2, 1), (1, 3, 1))),
    )  # fmt: skip
    orders = np.stack([_orders(4, *bonds) for *_, bonds in cases])
    numbers = np.array([case[1] for case in cases], dtype=np.uint8)
    got = np.asarray(molecule_stable(orders, numbers))
    require(got.shape == (6,), f"it returns shape {got.shape}, not one value a molecule")
    require(got.dtype == bool, f"it returns {got.dtype}, not bool")
    for value, (because, _, want, _) in zip(got, cases, strict=True):
        require(value == want, because)


def _share(reward, tau):
    weight = torch.exp((reward - reward.max()) / tau)
    return float(weight.sum() ** 2 / weight.square().sum()) / len(reward)


@exercise("09.3")
def tau_gives_the_share(find_tau):
    """A closed form for two values; then normal rewards, also far from 0."""
    two = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(50)
    want = (1 + math.e) ** 2 / (2 * (1 + math.e**2))
    got = find_tau(two, want)
    because = "half of the rewards 0, half 1: at tau = 1 the share is (1+e)^2 / (2 (1+e^2))"
    require_close(float(got), 1.0, because, rtol=0.01)
    normal = torch.randn(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for shift, spread in ((0.0, 1.0), (0.0, 0.05), (1000.0, 1.0)):
        reward = shift + spread * normal
        for share in (0.8, 0.4, 0.1):
            tau = float(find_tau(reward, share))
            require(math.isfinite(tau) and tau > 0, f"tau = {tau} for rewards near {shift:g}")
            because = f"the share at your tau = {tau:.4g}, rewards of sd {spread} near {shift:g}"
            require_close(_share(reward, tau), share, because, rtol=0.03)


@exercise("09.4")
def forecast_holds(my_reward, my_tau, my_forecast):
    """Weigh 490 real molecules, not those the notebook offers."""
    molecules = load_qm9("heavy7").subset(range(4, 3921, 8))
    alone = []
    reward = rewards.per_molecule(lambda mol: alone.append(my_reward(mol)) or float(alone[-1]))
    values = reward(molecules).double()
    values = values[torch.isfinite(values)]
    require(alone and alone[0] is not None, "my_reward returns None")
    require(len(values) > 100, f"only {len(values)} of {len(molecules)} molecules get a number")
    require(values.std() > 0, "my_reward gives every molecule the same value: nothing to weigh")
    tau, forecast = float(my_tau), float(my_forecast)
    require(math.isfinite(tau) and tau > 0, f"my_tau is {tau}; a temperature is above 0")
    share = _share(values, tau)
    require(0.1 <= share <= 0.9, f"the share is {share:.2f} at your tau: choose 0.1 to 0.9")
    off = abs(forecast - share)
    require(off <= 0.1, f"you foretold {forecast:.2f}, and it is {share:.2f}")


@wrong("09.1", "", "")
def _mean_over_all_channels():
    return (lambda x: x - x.mean(1, keepdim=True),)


@wrong("09.1", "", "")
def _mean_over_the_batch():
    return (lambda x: torch.cat([x[..., :3] - x[..., :3].mean((0, 1)), x[..., 3:]], -1),)


@wrong("09.1", "", "")
def _mean_over_coordinates():
    return (lambda x: torch.cat([x[..., :3] - x[..., :3].mean(2, True), x[..., 3:]], -1),)


_VALENCE = np.array([0, 1, 0, 0, 0, 0, 4, 3, 2, 1])


@wrong("09.2", "", "")
def _at_most_the_valence():
    return (lambda orders, numbers: (orders.sum(-1) <= _VALENCE[numbers]).all(-1),)


@wrong("09.2", "", "")
def _counts_neighbours():
    return (lambda orders, numbers: ((orders > 0).sum(-1) == _VALENCE[numbers]).all(-1),)


@wrong("09.2", "", "")
def _any_atom():
    return (lambda orders, numbers: (orders.sum(-1) == _VALENCE[numbers]).any(-1),)


@wrong("09.2", "", "")
def _total_over_the_molecule():
    return (lambda orders, numbers: orders.sum((1, 2)) == _VALENCE[numbers].sum(-1),)


@wrong("09.3", "", "")
def _inverse_temperature():
    return (lambda reward, share: 1 / _bisect(_share, reward, share),)


@wrong("09.3", "", "")
def _gaussian_formula_only():
    return (lambda reward, share: float(reward.std()) / math.sqrt(-math.log(share)),)


@wrong("09.3", "", "")
def _overflows():
    def naive(reward, tau):
        weight = torch.exp(reward / tau)
        return float(weight.sum() ** 2 / weight.square().sum()) / len(reward)

    return (lambda reward, share: _bisect(naive, reward, share),)


def _bisect(measure, reward, share):
    cold, hot = 1e-4, 1e4
    for _ in range(60):
        middle = math.sqrt(cold * hot)
        cold, hot = (middle, hot) if measure(reward, middle) < share else (cold, middle)
    return hot


def _heavy_atoms(mol):
    return float(mol.GetNumHeavyAtoms())


@wrong("09.4", "", "")
def _forecast_far_off():
    return (_heavy_atoms, 1.0, 0.1)


@wrong("09.4", "", "")
def _constant_reward():
    return (lambda mol: 1.0, 1.0, 1.0)


@wrong("09.4", "", "")
def _all_weight_on_few():
    return (lambda mol: mol.GetNumAtoms() ** 3.0, 0.5, 0.5)

"""Checks of notebook 10: a tighter bound, a batched reward of one's own and its forecast."""

import math

import numpy as np
import torch

from rgdm_lib._data import data_path
from rgdm_lib.course.exercises import (
    also_right,
    as_tensor,
    exercise,
    require,
    require_close,
    wrong,
)
from rgdm_lib.molecules import bonds, metrics, rewards
from rgdm_lib.molecules.data import MoleculeSet, load_set
from rgdm_lib.molecules.model import BASE_SAMPLES

_NAN = math.nan
_VALUES = [
    [1.0, 1.2, 1.1, _NAN],  # holds, and still would
    [0.2, 1.8, 0.2, 0.3],  # one seed is near the bound, the mean far from it
    [_NAN, 2.4, 1.9, 2.1],  # fails already
    [2.0, 1.0, 1.0, 1.0],  # on the bound: holds now
    [_NAN, _NAN, _NAN, _NAN],  # not run
    [0.19, 0.1, _NAN, 0.1],  # another bound: near it
    [1.5, 1.0, 1.0, 1.5],  # on the tighter bound: still holds
]
_BOUNDS = [2.0, 2.0, 2.0, 2.0, 2.0, 0.2, 2.0]


@exercise("10.1")
def the_worst_seed_decides(would_fail):
    """Seven claims typed in, by a factor of 0.75."""
    values, bounds = torch.tensor(_VALUES), torch.tensor(_BOUNDS)
    got = as_tensor(would_fail(values, bounds, 0.75), "what would_fail returns")
    require(
        got.shape == (7,), f"it has shape {tuple(got.shape)}: one answer for each of the 7 claims"
    )
    mistakes = [
        ([0, 0, 0, 0, 0, 0, 0], "no claim is found: mean or best of the seeds? The worst decides"),
        ([0, 1, 1, 1, 0, 1, 0], "a claim that fails already does not fail because of the factor"),
        ([0, 1, 0, 1, 1, 1, 0], "a claim that was not run can neither hold nor fail"),
        ([0, 1, 0, 0, 0, 1, 0], "at most means that the bound itself still holds"),
        ([0, 1, 0, 1, 0, 1, 1], "at most means that the tighter bound itself still holds"),
        ([0, 1, 0, 1, 0, 0, 0], "a seed that was not run is left out, the others still count"),
    ]
    require_close(
        got,
        torch.tensor([0, 1, 0, 1, 0, 1, 0]),
        "a claim holds by its worst seed: at most the bound now, above factor times it then",
        mistakes=[(torch.tensor(value), because) for value, because in mistakes],
    )


@also_right("10.1")
def _by_loops():
    def would_fail(values, bounds, factor):
        found = []
        for row, bound in zip(values.tolist(), bounds.tolist(), strict=True):
            run = [value for value in row if not math.isnan(value)]
            found.append(bool(run) and max(run) <= bound and max(run) > factor * bound)
        return found

    return (would_fail,)


@also_right("10.1")
def _by_all_and_any():
    def would_fail(values, bounds, factor):
        missing, bounds = values.isnan(), bounds[:, None]
        now = (missing | (values <= bounds)).all(1)
        return now & (values > factor * bounds).any(1)  # a comparison with NaN is false

    return (would_fail,)


def _would_fail(worst, now=lambda w, b: w <= b, then=lambda w, b: w > b):
    def would_fail(values, bounds, factor):
        w = worst(values)
        return now(w, bounds) & then(w, factor * bounds)

    return (would_fail,)


def _worst(values):
    return values.nan_to_num(-math.inf).max(1).values


@wrong("10.1", "the mean of the seeds", says="The worst decides")
def _by_the_mean():
    return _would_fail(lambda values: values.nanmean(1))


@wrong("10.1", "a missing seed spoils its row", says="the others still count")
def _nan_spreads():
    return _would_fail(lambda values: values.max(1).values)


@wrong("10.1", "those that fail already", says="fails already")
def _fails_already():
    return _would_fail(_worst, now=lambda w, b: torch.ones_like(w, dtype=torch.bool))


@wrong("10.1", "not run counts as failing", says="neither hold nor fail")
def _not_run_fails():
    return _would_fail(_worst, then=lambda w, b: (w > b) | w.isinf())


@wrong("10.1", "below the bound, not at most", says="the bound itself still holds")
def _strict_now():
    return _would_fail(_worst, now=lambda w, b: w < b)


@wrong("10.1", "at the tighter bound", says="the tighter bound itself")
def _strict_then():
    return _would_fail(_worst, then=lambda w, b: w >= b)


# ---- a reward of one's own -----------------------------------------------------------------------


def _samples(first: int, step: int = 40) -> MoleculeSet:
    """Every 40th base sample from ``first`` on."""
    return load_set(data_path(BASE_SAMPLES)).subset(range(first, 10_000, step))


def _share(values: torch.Tensor, tau: float) -> float:
    """ESS of weights exp(value / tau) over the number of values."""
    weight = torch.softmax(values / tau, 0)
    return float(1 / weight.square().sum()) / len(values)


def _pulled_apart(batch: MoleculeSet) -> MoleculeSet:
    """The same atoms, ten times as far from each other."""
    return MoleculeSet(batch.n_atoms, batch.numbers, 10 * batch.positions)


@exercise("10.2")
def forecast_holds(my_reward, my_tau, my_forecast):
    """Weigh 225 base samples; the notebook's forecast is made on the first 1,000."""
    require(callable(my_reward), "my_reward is not a function")

    def score(batch):
        value = as_tensor(my_reward(batch), "what my_reward returns")
        require(
            value.shape == (len(batch),),
            f"my_reward returns shape {tuple(value.shape)} for {len(batch)} molecules: one number "
            "for each, NaN for no value",
        )
        return value

    batch = _samples(1003)
    every = score(batch)
    values = every[torch.isfinite(every)]
    require(len(values) > 60, f"only {len(values)} of {len(batch)} samples get a number")
    require(values.std() > 0, "my_reward gives every sample the same value: nothing to weigh")
    broken = score(_pulled_apart(batch.subset(range(12))))
    require(
        not torch.isfinite(broken).any(),
        "atoms pulled far apart get a number: what is no molecule has no value, NaN and not 0",
    )
    few = list(range(20, 8, -1))
    alone = score(batch.subset(few))
    require_close(
        alone.nan_to_num(-1e3),
        every[few].nan_to_num(-1e3),
        "the same molecules get other values in another batch: the value of a molecule is its own, "
        "and comes at its place",
    )
    tau, forecast = as_tensor(my_tau, "my_tau"), as_tensor(my_forecast, "my_forecast")
    require(tau.numel() == forecast.numel() == 1, "my_tau and my_forecast are one number each")
    tau, forecast = float(tau.sum()), float(forecast.sum())
    require(math.isfinite(tau) and tau > 0, f"my_tau is {tau}; a temperature is above 0")
    require(
        0 <= forecast <= 1,
        f"my_forecast is {forecast:g}: it is a share, ESS over samples with a value, at most 1",
    )
    share = _share(values, tau)
    advice = "higher" if share < 0.1 else "lower"
    require(
        0.1 <= share <= 0.9,
        f"the share is {share:.2f} at your tau: choose a {advice} one, for 0.1 to 0.9",
    )
    off = abs(forecast - share)
    require(off <= 0.1, f"you foretold {forecast:.2f}, and it is {share:.2f}")


def _foretold(my_reward, spreads=1.2, forecast=lambda share: share):
    """Arguments of the check: the temperature in standard deviations, the share as measured."""
    values = my_reward(_samples(0)).double()
    values = values[torch.isfinite(values)]
    tau = spreads * float(values.std())
    return my_reward, tau, forecast(_share(values, tau))


def _heavy(mol):
    return float(mol.GetNumHeavyAtoms() + mol.GetNumBonds())


_size = rewards.per_molecule(_heavy)


@also_right("10.2")
def _qed():
    return _foretold(lambda batch: rewards.qed(batch))


@also_right("10.2")
def _one_by_one_as_a_list():
    def my_reward(batch):
        found = [_NAN] * len(batch)
        for i, mol in bonds.perceive(batch, "stable"):
            if mol is not None and bonds.is_connected(mol):
                found[i] = float(bonds.implicit_hydrogens(mol).GetNumHeavyAtoms())
        return found

    _, tau, share = _foretold(lambda batch: torch.tensor(my_reward(batch)))
    return my_reward, torch.tensor(tau), np.float32(share)


@also_right("10.2")
def _geometry_of_what_is_stable():
    """No RDKit value: the width of a molecule in space, infinite for no value."""

    def my_reward(batch):
        stable = metrics.stability_edm(batch)[0]
        widths = [float(batch.atoms(i)[0].std()) for i in range(len(batch))]
        return torch.where(torch.as_tensor(stable), torch.tensor(widths), math.inf)

    return _foretold(my_reward)


def _changed(change):
    """A right forecast, and a reward that goes wrong by ``change``."""
    _, tau, share = _foretold(_size)
    return lambda batch: change(_size(batch)), tau, share


@wrong("10.2", "0 for no value", says="NaN and not 0")
def _zero_for_no_value():
    return _changed(lambda value: value.nan_to_num(0.0))


@wrong("10.2", "values standardised in the batch", says="in another batch")
def _standardised():
    return _changed(lambda value: value - value.nanmean())


@wrong("10.2", "those without a value left out", says="returns shape (1")
def _left_out():
    return _changed(lambda value: value[value.isfinite()])


@wrong("10.2", "the batch's mean", says="returns shape ()")
def _mean_of_the_batch():
    return _changed(lambda value: value.nanmean())


@wrong("10.2", "a constant reward", says="the same value")
def _constant():
    return _changed(lambda value: value * 0 + 1)


@wrong("10.2", "hardly any value", says="samples get a number")
def _hardly_any():
    return _changed(lambda value: torch.where(value > value.nanquantile(0.9), value, _NAN))


@wrong("10.2", "a forecast far off", says="you foretold")
def _far_off():
    return _foretold(_size, forecast=lambda share: share / 4)


@wrong("10.2", "the ESS, not its share", says="it is a share")
def _a_count():
    return _foretold(_size, forecast=lambda share: 170 * share)


@wrong("10.2", "all weight on few", says="choose a higher one")
def _too_cold():
    return _foretold(_size, spreads=0.1)


@wrong("10.2", "no steering at all", says="choose a lower one")
def _too_hot():
    return _foretold(_size, spreads=10.0)


@wrong("10.2", "a temperature below 0", says="a temperature is above 0")
def _negative():
    my_reward, tau, share = _foretold(_size)
    return my_reward, -tau, share

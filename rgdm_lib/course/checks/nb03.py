"""Checks of notebook 03: a push along a gradient, mixing two predictions, the share to ask for."""

import math

import numpy as np
import torch

from rgdm_lib.course.exercises import also_right, exercise, require_close, wrong

# ---- 03.1 ------------------------------------------------------------------------------------

_EPS = torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=torch.float64)
_GRADIENT = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
_ALPHA_BAR = torch.tensor([0.36, 0.91], dtype=torch.float64)  # noise factors 0.8 and 0.3
_GUIDED = torch.tensor([[-1.9, -5.8], [4.7, -0.2]], dtype=torch.float64)  # scale 3, by hand


@exercise("03.1")
def guided_noise(guide):
    """Two rows of different times, scale 3; scale 0 changes nothing."""
    noise = torch.tensor([[0.8], [0.3]], dtype=torch.float64)
    signal = _ALPHA_BAR[:, None].sqrt()
    mistakes = [
        (_EPS + 3 * noise * _GRADIENT, "the sign: eps points against the score, so subtract"),
        (_EPS - 3 * _GRADIENT, "the gradient is a score: it needs the factor sqrt(1 - alpha_bar)"),
        (_EPS - 3 * noise**2 * _GRADIENT, "the factor is the square root of 1 - alpha_bar"),
        (_EPS - 3 * signal * _GRADIENT, "the factor is that of the noise, not of the data"),
        (_EPS - 3 / noise * _GRADIENT, "multiply the gradient by the factor, do not divide by it"),
        (_EPS - noise * _GRADIENT, "the scale is not used"),
        (noise * (_EPS - 3 * _GRADIENT), "the factor belongs to the gradient only, not to eps"),
    ]
    out = guide(_EPS.clone(), _GRADIENT.clone(), _ALPHA_BAR.clone(), 3.0)
    because = "at scale 3 with noise factors 0.8 and 0.3 the result, by hand, is another"
    require_close(out, _GUIDED, because, mistakes=mistakes)
    out = guide(_EPS.clone(), _GRADIENT.clone(), _ALPHA_BAR.clone(), 0.0)
    require_close(out, _EPS, "scale 0 must leave eps as it is")


@also_right("03.1")
def _by_score():
    def guide(eps, gradient, alpha_bar, scale):
        s = (1 - alpha_bar).reshape(-1, 1) ** 0.5
        return -s * (-eps / s + scale * gradient)

    return (guide,)


@also_right("03.1")
def _in_numpy():
    def guide(eps, gradient, alpha_bar, scale):
        eps, gradient, a = (np.asarray(v) for v in (eps, gradient, alpha_bar))
        return eps - scale * np.sqrt(1 - a)[:, None] * gradient

    return (guide,)


def _guide(factor, sign=-1.0):
    def guide(eps, gradient, alpha_bar, scale):
        return eps + sign * scale * factor(alpha_bar[:, None]) * gradient

    return (guide,)


@wrong("03.1", "sign", says="so subtract")
def _plus():
    return _guide(lambda a: (1 - a).sqrt(), sign=1.0)


@wrong("03.1", "no factor", says="needs the factor")
def _no_factor():
    return _guide(lambda a: 1.0)


@wrong("03.1", "variance for standard deviation", says="the square root of")
def _variance():
    return _guide(lambda a: 1 - a)


@wrong("03.1", "factor of the data", says="not of the data")
def _data_factor():
    return _guide(lambda a: a.sqrt())


@wrong("03.1", "divided", says="do not divide")
def _divided():
    return _guide(lambda a: 1 / (1 - a).sqrt())


@wrong("03.1", "scale forgotten", says="scale is not used")
def _no_scale():
    return (lambda eps, gradient, a, scale: eps - (1 - a[:, None]).sqrt() * gradient,)


# ---- 03.2 ------------------------------------------------------------------------------------

_WITHOUT = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
_WITH = torch.tensor([[3.0, -2.0], [0.0, 4.0]], dtype=torch.float64)


@exercise("03.2")
def classifier_free(mix):
    """Scales 0, 1 and 3 on numbers typed in."""
    gap = _WITH - _WITHOUT
    out = mix(_WITHOUT.clone(), _WITH.clone(), 3.0)
    mistakes = [
        (_WITH + 3 * gap, "that is scale 4 here: in this convention 1 is the conditional model"),
        (_WITH - 3 * gap, "the two predictions have changed places"),
        (_WITHOUT - 3 * gap, "it moves away from the wish: check the sign of the difference"),
        (_WITHOUT + 3 * _WITH, "what is scaled is the difference of the two, not with_it"),
        (3 * _WITH, "without is not used"),
        (_WITH, "the scale is not used, or cut off at 1"),
        ((_WITHOUT + 3 * _WITH) / 4, "an average stays between the two; guidance goes beyond"),
    ]
    expected = torch.tensor([[7.0, -10.0], [-1.0, 14.0]], dtype=torch.float64)
    because = "at scale 3 it goes three times the way from without to with_it"
    require_close(out, expected, because, mistakes=mistakes)
    for scale, expected in ((1.0, _WITH), (0.0, _WITHOUT)):
        name = "with_it" if scale else "without"
        because = f"scale {scale:g} must return {name} itself"
        require_close(mix(_WITHOUT.clone(), _WITH.clone(), scale), expected, because)


@also_right("03.2")
def _weighted():
    return (lambda without, with_it, scale: (1 - scale) * without + scale * with_it,)


@also_right("03.2")
def _lerp():
    return (lambda without, with_it, scale: torch.lerp(without, with_it, scale),)


@wrong("03.2", "the paper's w", says="that is scale 4 here")
def _paper():
    return (lambda without, with_it, scale: (1 + scale) * with_it - scale * without,)


@wrong("03.2", "exchanged", says="have changed places")
def _exchanged():
    return (lambda without, with_it, scale: with_it + scale * (without - with_it),)


@wrong("03.2", "sign", says="away from the wish")
def _away():
    return (lambda without, with_it, scale: without + scale * (without - with_it),)


@wrong("03.2", "scaled prediction", says="the difference of the two")
def _scaled():
    return (lambda without, with_it, scale: without + scale * with_it,)


@wrong("03.2", "average", says="guidance goes beyond")
def _average():
    return (lambda without, with_it, scale: (without + scale * with_it) / (1 + scale),)


@wrong("03.2", "cut at 1", says="cut off at 1")
def _cut():
    return (lambda without, with_it, scale: without + min(scale, 1.0) * (with_it - without),)


# ---- 03.3 ------------------------------------------------------------------------------------


@exercise("03.3")
def share_under_the_payoff(wanted_share):
    """A share of 1/5 with odds e^(height / tau) = 4 becomes one half; other heights and tau."""
    height, tau = 3 * math.log(4.0), 3.0
    power = math.exp(height * tau)
    mistakes = [
        (1 / 17, "a higher reward must get more: check the sign of the exponent"),
        (4 / 5, "the share of the data is missing, or the weights are not divided by their sum"),
        (0.2 * power / (0.2 * power + 0.8), "the reward is divided by tau, not multiplied"),
        (0.2 * 64 / (0.2 * 64 + 0.8), "tau is not used: the exponent is height / tau"),
        (0.8 / 1.8, "the sum counts the rest in full: it holds 1 - share, not 1"),
    ]
    because = "a fifth of the data, four times as heavy, is one half: 0.8 / (0.8 + 0.8)"
    require_close(wanted_share(0.2, height, tau), 0.5, because, mistakes=mistakes)
    for share, odds in ((0.05, 3.0), (0.5, 9.0), (0.9, 0.5)):
        expected = share * odds / (share * odds + 1 - share)
        because = f"a share of {share:g} with weight {odds:g} against 1 becomes {expected:.3f}"
        require_close(wanted_share(share, math.log(odds), 1.0), expected, because)


@also_right("03.3")
def _logistic():
    def wanted_share(share, height, tau):
        return 1 / (1 + (1 - share) / share * math.exp(-height / tau))

    return (wanted_share,)


@also_right("03.3")
def _softmax():
    def wanted_share(share, height, tau):
        logits = torch.tensor([math.log(share) + height / tau, math.log(1 - share)])
        return torch.softmax(logits.double(), 0)[0]

    return (wanted_share,)


def _share(weight, rest=lambda share: 1 - share):
    def wanted_share(share, height, tau):
        w = weight(share, height, tau)
        return w / (w + rest(share))

    return (wanted_share,)


@wrong("03.3", "sign", says="check the sign")
def _negative():
    return _share(lambda p, h, tau: p * math.exp(-h / tau))


@wrong("03.3", "no prior", says="the share of the data is missing")
def _no_prior():
    return _share(lambda p, h, tau: math.exp(h / tau), rest=lambda p: 1.0)


@wrong("03.3", "times tau", says="divided by tau, not multiplied")
def _times_tau():
    return _share(lambda p, h, tau: p * math.exp(h * tau))


@wrong("03.3", "tau not used", says="tau is not used")
def _no_tau():
    return _share(lambda p, h, tau: p * math.exp(h))


@wrong("03.3", "rest in full", says="holds 1 - share, not 1")
def _rest():
    return _share(lambda p, h, tau: p * math.exp(h / tau), rest=lambda p: 1.0)

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · DDPM from scratch
#
# You will build a complete diffusion model in one notebook: the loss, the training loop, the sampler. It
# learns a distribution in the plane and draws new points from it. At the end you will have a number
# that says how good it is, on a scale where 1 means "as good as fresh data". Nothing is hidden in a
# library: what carries the model is written here, printed here, or comes from notebook 01.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 45 | 45 | 45 |
# | minutes to run (2 CPU cores) | 0.7 | 3 | 3 |
# | memory | 1 GB | 1 GB | 1 GB |
# | GPU | not used | not used | not used |
#
# Prerequisites: [01 · Adding noise](01_adding_noise.ipynb), gradient descent in PyTorch.

# %% [markdown]
# ## Goals
#
# - **measure** the distance of two samples, and say what the number is worth
# - **derive** the training loss from a bound on the likelihood, and see what the "simple" loss drops
# - **convert** between three faces of one function: $\hat x_0$, noise and score
# - **write** the loss, the training loop and the samplers DDPM and DDIM
# - **test** a sampler before there is a network, with a denoiser that is exact
# - **break** the sampler in five popular ways, and put a number on each

# %% tags=["bootstrap"]
# rgdm_lib.course.bootstrap.CELL

# %% tags=["parameters"]
PRESET = "quick"
SEED = 0
OUT_DIR = "runs"

# %%
import copy
import inspect
import math

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from tqdm.auto import trange

from rgdm_lib import schedules
from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds import metrics, mixtures, toy
from rgdm_lib.worlds.nets import MLPDenoiser, TimeFeatures

run = notebook.start("02_ddpm_from_scratch", PRESET, SEED, OUT_DIR)
torch.set_num_threads(1)  # the network is small: a second thread costs more than it brings
settings = run.settings(
    quick={"T": 100, "hidden": 64, "steps": 4000, "batch": 512, "sets": 3},
    laptop={"T": 200, "hidden": 128, "steps": 12_000, "batch": 512, "sets": 10},
    full={"T": 200, "hidden": 128, "steps": 12_000, "batch": 512, "sets": 10},
)

# %% [markdown]
# ## 1. The task, and a ruler
#
# **Question.** We want a program that draws points as if from a data set. How do we tell whether it does?
#
# The data are *two moons*: two interleaved half circles, blurred by Gaussian noise of standard
# deviation 0.1. Since we know how to draw them, fresh data are free, and overfitting is no issue here.
#
# Two samples are close if every projection of them is. Project both on a direction, sort, and take the
# mean absolute difference of the sorted values: that is the Wasserstein-1 distance of the projections.
# The mean over many directions $u_1, \dots, u_m$ is the *sliced Wasserstein* distance of the samples
# $X$ and $Y$ with $n$ points each:
#
# <!-- definition -->
# $$
# \mathrm{SW}(X, Y) = \frac1m \sum_{j=1}^m \frac1n \sum_{i=1}^n
#   \Big| (u_j^\top X)_{(i)} - (u_j^\top Y)_{(i)} \Big| ,
# $$
#
# where $(i)$ means the $i$-th smallest. Two samples of the *same* law are not at distance 0: chance
# keeps them apart. Their mean distance is the *floor*. We report SW divided by its floor, so 1 is
# perfect. Here is the distance in five lines, and the library's beside it:

# %%
def sliced_wasserstein(x, y, directions=256):
    """Sliced Wasserstein-1 distance of two samples (n, 2)."""
    angle = math.pi * torch.arange(directions) / directions  # half a turn: u and -u say the same
    u = torch.stack([angle.cos(), angle.sin()])  # (2, directions)
    x, y = ((points @ u).sort(dim=0).values for points in (x, y))
    return float((x - y).abs().mean())


x, y = toy.moons(1000), toy.moons(1000)
print(f"here {sliced_wasserstein(x, y):.5f}, library {metrics.sliced_wasserstein(x, y):.5f}")
assert math.isclose(sliced_wasserstein(x, y), metrics.sliced_wasserstein(x, y), rel_tol=1e-4)

# %% [markdown]
# **Predict.** Stretch the moons by 10 %: a clear mistake. At $n = 10{,}000$ points the distance to the true
# moons is some five floors. How many floors is it at $n = 100$?

# %%
guess = None  # your number

# %%
def over_floor(samples, exact, floor):
    """Mean sliced W1 of samples (n, 2) to fresh exact ones of that size, over the floor."""
    values = [metrics.sliced_wasserstein(x, exact(len(x))) for x in samples]
    return sum(values) / len(values) / floor


for n, sets in ((100, 100), (1000, 30), (10_000, 5)):
    floor = metrics.sliced_wasserstein_floor(toy.moons, n)
    stretched = (1.1 * toy.moons(n) for _ in range(sets))
    print(f"n = {n:>6,}: moons stretched by 10 % score {over_floor(stretched, toy.moons, floor):.2f}")
print(f"your guess for n = 100: {guess}")

# %% [markdown]
# With a hundred points the wrong moons look almost perfect. **A distance without its $n$ means nothing.**
# All scores below use $n = 10{,}000$ points and 256 directions. One score of one sample is noisy, too:
# look at the scores of single sets of fresh data.

# %%
N = 10_000
data = toy.moons(N)
floor_of_moons = metrics.sliced_wasserstein_floor(toy.moons, N)
single = [over_floor([toy.moons(N)], toy.moons, floor_of_moons) for _ in range(8)]
print(f"floor: {floor_of_moons:.4f}")
print("fresh data, one set each, score", " ".join(f"{value:.2f}" for value in single))

# %% [markdown]
# ## 2. From a bound to a loss
#
# **Question.** Which loss makes a chain of small steps end in the data?
#
# The model runs time backwards. It starts at $x_T \sim \mathcal N(0, I)$ and takes Gaussian steps
#
# <!-- definition -->
# $$
# p_\theta(x_{t-1} \mid x_t) = \mathcal N\!\big(x_{t-1};\; \mu_\theta(x_t, t),\; \sigma_t^2 I\big) ,
# \qquad \sigma_t^2 = \tilde\beta_t \;\text{ for } t \ge 2, \qquad \sigma_1^2 = \beta_1 .
# $$
#
# Why the exception? Notebook 01 found $\tilde\beta_1 = 0$. With it the last step would be a spike, which has
# no density. So wherever this course computes a log-probability, the step to $x_0$ has variance $\beta_1$
# (in the library: `Diffusion.path_std`). A *sampler* adds no noise in its last step: it shows the mean.
#
# The likelihood $p_\theta(x_0)$ is an integral over all paths $x_1, \dots, x_T$, which nobody can compute. Multiply
# and divide its integrand by the forward process $q(x_1, \dots, x_T | x_0)$: it becomes an average over
# $q$. The logarithm of an average is at least the average of the logarithm (Jensen), so
#
# <!-- eq: bound-by-jensen | Ho et al. 2020, eq. 3 -->
# $$
# -\log p_\theta(x_0) \;\le\; E_q \left[ -\log p(x_T)
#   + \sum_{t=1}^{T} \log \frac{q(x_t | x_{t-1})}{p_\theta(x_{t-1} | x_t)} \right] .
# $$
#
# Numerator and denominator look in opposite directions. Turn the numerator round. For $t \ge 2$ it may as well
# know $x_0$ (the chain forgets what lies before $x_{t-1}$), and Bayes' rule gives
#
# <!-- eq: forward-step-turned | Bayes' rule and the Markov property -->
# $$
# q(x_t | x_{t-1}) = q(x_{t-1} | x_t, x_0)\; \frac{q(x_t | x_0)}{q(x_{t-1} | x_0)} .
# $$
#
# In the sum of the logarithms the last factor *telescopes*: each term takes away what the one before it brought,
#
# <!-- eq: telescoping-marginals | Ho et al. 2020, appendix A -->
# $$
# \sum_{t=2}^{T} \log \frac{q(x_t | x_0)}{q(x_{t-1} | x_0)} = \log q(x_T | x_0) - \log q(x_1 | x_0) .
# $$
#
# The term $t = 1$ of the bound has $+\log q(x_1 | x_0)$ in it, which cancels the last one here. The first one joins
# $-\log p(x_T)$. What is left is an average of log-ratios of two laws of the *same* variable: divergences.
#
# <!-- eq: variational-bound | Ho et al. 2020, eq. 5 -->
# $$
# \begin{aligned}
# -\log p_\theta(x_0) \;\le\;\; & \mathrm{KL}\big(q(x_T | x_0) \,\|\, p(x_T)\big)
#  + \sum_{t=2}^{T} E_q\, \mathrm{KL}\big(q(x_{t-1} | x_t, x_0) \,\|\, p_\theta(x_{t-1} | x_t)\big) \\
#  & - E_q \log p_\theta(x_0 | x_1) .
# \end{aligned}
# $$
#
# The first term has no parameters, and notebook 01 made it tiny. Every term of the sum compares two
# Gaussians: the posterior of notebook 01, which knows $x_0$, and the model's step, which does not. The
# posterior's mean was
#
# <!-- eq: posterior-mean | Ho et al. 2020, eq. 7 -->
# $$
# \tilde\mu_t(x_t, x_0) = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t}\, x_0
#   + \frac{\sqrt{\alpha_t}\, (1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, x_t .
# $$
#
# Both have the variance $\tilde\beta_t$, so their divergence is a squared distance of means:
#
# <!-- eq: step-kl | Ho et al. 2020, eq. 8 -->
# $$
# \mathrm{KL}_t = \frac{1}{2 \tilde\beta_t} \big\lVert \tilde\mu_t(x_t, x_0) - \mu_\theta(x_t, t) \big\rVert^2 .
# $$
#
# Now choose what the network outputs. Let it guess the noise, $\varepsilon_\theta(x_t, t)$. A guess of the
# noise is a guess of the data,
#
# <!-- eq: x0-hat | Ho et al. 2020, eq. 4 solved for x_0 -->
# $$
# \hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\; \varepsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}} ,
# $$
#
# and we put $\hat x_0$ where the posterior mean wants $x_0$: $\mu_\theta = \tilde\mu_t(x_t, \hat x_0)$. Then $x_t$
# cancels in the difference of the means, and what is left is
#
# <!-- eq: vlb-weight | Ho et al. 2020, eq. 12 -->
# $$
# \mathrm{KL}_t = \underbrace{\frac{\beta_t^2}{2 \tilde\beta_t\, \alpha_t (1 - \bar\alpha_t)}}_{\lambda_t}\;
#   \big\lVert \varepsilon - \varepsilon_\theta(x_t, t) \big\rVert^2
#   = \tfrac12 \big(\mathrm{SNR}(t-1) - \mathrm{SNR}(t)\big) \big\lVert x_0 - \hat x_0 \big\rVert^2 .
# $$
#
# The second form (Kingma et al. 2021) says it best: the bound pays for errors in $\hat x_0$ at the rate at
# which information about $x_0$ comes in.
#
# The last term fits in. At $t = 1$ the weight of $x_t$ in $\tilde\mu_t$ is 0 and that of $x_0$ is 1, so
# $\mu_\theta(x_1, 1) = \hat x_0$, and in $d$ dimensions
#
# <!-- eq: last-term | derived here, with variance beta_1 -->
# $$
# \begin{aligned}
# -\log p_\theta(x_0 | x_1) & = \frac{1}{2 \beta_1} \lVert x_0 - \hat x_0 \rVert^2 + \frac d2 \log(2 \pi \beta_1) \\
#   & = \underbrace{\frac{1}{2 \alpha_1}}_{\lambda_1}\, \lVert \varepsilon - \varepsilon_\theta(x_1, 1) \rVert^2
#   + \frac d2 \log(2 \pi \beta_1) .
# \end{aligned}
# $$
#
# This $\lambda_1$ is the formula of $\lambda_t$ with $\beta_1$ in the place of $\tilde\beta_1$. So the whole bound is
# $\sum_{t=1}^T \lambda_t\, E \lVert \varepsilon - \varepsilon_\theta \rVert^2$ and numbers without parameters.
#
# **Check.** Compute the divergence by PyTorch's own formula for Gaussians and compare it with both forms.

# %%
T = settings.T
schedule = schedules.cosine(T)
diffusion = Diffusion(schedule)
alpha_bar = schedule.alpha_bar
snr = alpha_bar / (1 - alpha_bar)

x0 = torch.randn(T - 1, 2, dtype=torch.float64)
noise, wrong_noise = torch.randn_like(x0), torch.randn_like(x0)
t = torch.arange(2, T + 1)
x_t = diffusion.q_sample(x0, t, noise)
x0_hat = diffusion.predict_x0(x_t, t, wrong_noise)
mean, variance = diffusion.posterior(x0, x_t, t)
mean_hat, _ = diffusion.posterior(x0_hat, x_t, t)

normal = torch.distributions.Normal
divergence = torch.distributions.kl_divergence(
    normal(mean, variance.sqrt()), normal(mean_hat, variance.sqrt())
).sum(1)
by_noise = diffusion.loss_weight("vlb")[2:] * (noise - wrong_noise).square().sum(1)
by_data = 0.5 * (snr[t - 1] - snr[t]) * (x0 - x0_hat).square().sum(1)
worst = torch.maximum((by_noise / divergence - 1).abs(), (by_data / divergence - 1).abs()).max()
run.metric("bound_term_error", worst, unit="1", n=T - 1,
           definition="largest relative difference between KL_t of two Gaussians and the two forms "
                      "of the weighted squared error, t = 2..T, float64")

# %%
x0, noise, wrong_noise = x0[:1], noise[:1], wrong_noise[:1]
x0_hat = diffusion.predict_x0(diffusion.q_sample(x0, 1, noise), 1, wrong_noise)
beta_1 = schedule.beta[1]
last_term = -normal(x0_hat, beta_1.sqrt()).log_prob(x0).sum()
by_noise = diffusion.loss_weight("vlb")[1] * (noise - wrong_noise).square().sum()
constant = torch.log(2 * math.pi * beta_1)  # d / 2 = 1 of them in the plane
print(f"last term: density {float(last_term):.6f}, weighted error {float(by_noise + constant):.6f}")
assert math.isclose(last_term, by_noise + constant, rel_tol=1e-9)

# %% [markdown]
# ### The simple loss
#
# Ho et al. found that dropping the weight gives better samples:
#
# <!-- eq: simple-loss | Ho et al. 2020, eq. 14 -->
# $$
# L_\text{simple}(\theta) = E_{t,\, x_0,\, \varepsilon} \Big\lVert \varepsilon
#   - \varepsilon_\theta\big(\sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon,\; t\big) \Big\rVert^2 ,
#   \qquad t \sim \mathrm{Uniform}\{1, \dots, T\} .
# $$
#
# Is that allowed? A network that can represent any function can minimise every $t$ separately. Positive
# weights do not move such a minimum. They do decide where a *limited* network spends its capacity, and
# how noisy the gradient is.
#
# There is another way to weigh the terms: to draw the times from another law than the uniform one. If $t$
# has the probability $p_t$, the loss is, in the mean,
#
# <!-- eq: loss-under-times | derived here -->
# $$
# E_{t \sim p}\, E_{x_0, \varepsilon} \lVert \varepsilon - \varepsilon_\theta(x_t, t) \rVert^2
#   = \sum_{t=1}^T p_t\; E_{x_0, \varepsilon} \lVert \varepsilon - \varepsilon_\theta(x_t, t) \rVert^2 ,
# $$
#
# and *any positive distribution of the times keeps the optimum of the denoising loss: it only weighs the terms*,
#
# <!-- eq: any-times-same-optimum | derived here -->
# $$
# \arg\min_f \sum_{t=1}^T p_t\, E \lVert \varepsilon - f(x_t, t) \rVert^2 = \varepsilon^* ,
# \qquad \varepsilon^*(x_t, t) = E[\varepsilon \mid x_t] , \qquad \text{if all } p_t > 0 .
# $$
#
# In the library, *`diffusion.loss(..., times=p)` draws $t$ from $p$, evenly within a batch*
# (`schedules.draw_times`): of $n$ draws, $n p_t$ are at $t$, up to less than one. The model of notebook 09 was trained so.
#
# **Check** both on a case small enough to solve: guesses of the form $c_t\, x_t$, fitted by least squares to a fixed
# set of draws. With a coefficient $c_t$ for each time the solution must not depend on $p$. A network too small
# for that, here one $c$ for all times, does depend on it.

# %%
n_each = 20
t = torch.arange(1, T + 1).repeat(n_each)
x0, noise = torch.randn(2, T * n_each, dtype=torch.float64)
x_t = diffusion.q_sample(x0, t, noise)
own = nn.functional.one_hot(t - 1, T) * x_t[:, None]  # a column, so a coefficient, for each time
uniform = torch.full((T + 1,), 1 / T, dtype=torch.float64)
p = torch.cat([torch.zeros(1), torch.linspace(3, 1, T)]).double()
p /= p.sum()


def minimiser(p, inputs):
    """Coefficients that minimise sum_t p_t (noise - inputs @ coefficients)^2 over the draws."""
    root = p[t].sqrt()[:, None]
    return torch.linalg.lstsq(root * inputs, root * noise[:, None]).solution


moved = (minimiser(p, own) - minimiser(uniform, own)).abs().max()
moved_shared = (minimiser(p, x_t[:, None]) - minimiser(uniform, x_t[:, None])).abs().max()
print(f"uniform times or p: c_t moves by {float(moved):.0e}, one c for all by {float(moved_shared):.2f}")
assert moved < 1e-10 < 1e-3 < moved_shared

# %%
# a guess whose error is known at each t: x_t itself, for x_0 ~ N(0, 1)
error = alpha_bar + (1 - (1 - alpha_bar).sqrt()) ** 2
losses = diffusion.loss(lambda x_t, t, cond: x_t, torch.randn(100_000, 1), times=p)
by_terms, margin = float(p @ error), 4 * float(losses.std()) / len(losses) ** 0.5
print(f"mean loss under p {float(losses.mean()):.4f}, sum of p_t error_t {by_terms:.4f} "
      f"(four standard errors: {margin:.4f})")
assert abs(float(losses.mean()) - by_terms) < margin
drawn = schedules.draw_times(p, 512).bincount(minlength=T + 1)
assert (drawn - 512 * p).abs().max() < 1

# %% [markdown]
# **Predict.** By which factor do the weights $\lambda_t$ of the bound differ between $t = 2$ and $t = T/2$?

# %%
guess = None  # your number

# %%
weight = diffusion.loss_weight("vlb")
print(f"lambda_2 / lambda_T/2 = {float(weight[2] / weight[T // 2]):.0f}; your guess: {guess}")

fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.semilogy(range(1, T + 1), weight[1:], label=r"bound: $\lambda_t$")
ax.axhline(1, color="#D55E00", label="simple loss: 1")
ax.set(xlabel="time t (steps)", ylabel="weight of the noise's error")
ax.legend()
run.figure(
    fig,
    "weights",
    alt="Weight of the squared error of the noise over t, log scale. The bound's weight is near 1 at "
    "t = 2, falls below 0.1 in the middle and rises steeply at the end; the simple one is 1.",
    see="the bound puts its weight on both ends; measured against it, the simple loss stresses the "
    "middle, where the shape of a sample is decided.",
)

# %% [markdown]
# ### Exercise 02.1: the simple loss
# Write `simple_loss(denoiser, x0, alpha_bar)`. `x0` is (B, d), `alpha_bar` is (T+1,), and `denoiser(x_t, t, None)`
# returns its guess of the noise, (B, d). The third argument of every denoiser is its *condition*, `cond`: what it
# is told beyond $x_t$ and $t$, such as a class or a temperature (notebook 03). Here it is told nothing:
# `None`. Draw a $t$ for every row and one noise for every element. Return (B,): for each row the *mean* over
# its $d$ elements of the squared error.
#
# <details><summary>Hint 1</summary>
#
# `torch.randint(low, high, (B,))` never returns `high`. Both $t = 1$ and $t = T$ must occur.
#
# <details><summary>Hint 2</summary>
#
# Draw `t`, draw `noise`, form `x_t` with exercise 01.1, call the denoiser, and take
# `(guess - noise).square().mean(1)`.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 02.1
def simple_loss(denoiser, x0, alpha_bar):
    """Squared error of the guessed noise, one (t, noise) for each row: (B,)."""
    # STUB: return None
    ### BEGIN SOLUTION
    t = torch.randint(1, len(alpha_bar), (len(x0),))
    noise = torch.randn_like(x0)
    a = alpha_bar[t].unsqueeze(-1)
    x_t = a.sqrt().to(x0) * x0 + (1 - a).sqrt().to(x0) * noise
    return (denoiser(x_t, t, None) - noise).square().mean(1)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("02.1", simple_loss)

# %% [markdown]
# ## 3. Three faces of one function
#
# **Question.** What does a network that guesses noise know about the data?
#
# The minimiser of the squared error is the conditional mean, $\varepsilon^*(x_t, t) = E[\varepsilon \mid x_t]$. Write
# $q_t$ for the density of $x_t$ when $x_0$ is drawn from the data. Its *score* is $\nabla \log q_t(x_t)$: the
# direction in which the density grows fastest. Differentiate $q_t(x_t) = \int q(x_t | x_0)\, p(x_0)\, dx_0$, where
# $q(x_t | x_0)$ is the Gaussian of notebook 01. Each $x_0$ contributes
# $-(x_t - \sqrt{\bar\alpha_t}\, x_0) / (1 - \bar\alpha_t)$ times its share, so
#
# <!-- eq: score-and-noise | Vincent 2011; Song & Ermon 2019 -->
# $$
# \nabla \log q_t(x_t) = - \frac{x_t - \sqrt{\bar\alpha_t}\, E[x_0 \mid x_t]}{1 - \bar\alpha_t}
#   = - \frac{\varepsilon^*(x_t, t)}{\sqrt{1 - \bar\alpha_t}} .
# $$
#
# Solved for the data it is Tweedie's formula:
#
# <!-- eq: tweedie | Robbins 1956; Efron 2011 -->
# $$
# E[x_0 \mid x_t] = \frac{x_t + (1 - \bar\alpha_t)\, \nabla \log q_t(x_t)}{\sqrt{\bar\alpha_t}} .
# $$
#
# So guessing noise, guessing data and knowing the slope of the log-density are one and the same. Later
# notebooks steer a model by adding to its score: that is adding to its noise, with the factor above.
#
# **Check**, on a world whose density we know: a ring of eight Gaussians. Get the score by automatic
# differentiation of the exact $\log q_t$, put it into Tweedie's formula, and compare with the average
# of $x_0$ over a fine grid, weighted by Bayes' rule. Neither side knows the other.

# %%
ring = mixtures.ring()
axis = torch.linspace(-3, 3, 301, dtype=torch.float64)
x0_grid = torch.cartesian_prod(axis, axis)
log_prior = ring.log_prob(x0_grid)

worst = 0.0
for t in (T // 20, T // 5, T // 2, 4 * T // 5):
    a = alpha_bar[t]
    diffused = mixtures.GaussianMixture(a.sqrt() * ring.means, (a * ring.std**2 + 1 - a).sqrt())
    x_t = diffused.sample(40).double().requires_grad_()
    (score,) = torch.autograd.grad(diffused.log_prob(x_t).sum(), x_t)
    tweedie = (x_t + (1 - a) * score) / a.sqrt()

    square = torch.cdist(x_t, a.sqrt() * x0_grid).square()
    posterior = torch.softmax(log_prior - square / (2 * (1 - a)), 1)
    worst = max(worst, float((tweedie - posterior @ x0_grid).detach().abs().max()))
run.metric("tweedie_error", worst, unit="1", n=160,
           definition="largest difference between Tweedie's x0_hat from the differentiated "
                      "log-density and Bayes' rule on a grid, ring of 8 Gaussians, 4 times t")

# %% [markdown]
# ### Exercise 02.2: from noise to data
# Write `predict_x0(x_t, t, eps, alpha_bar)`: `x_t` and `eps` are (B, d), `t` is (B,). Return $\hat x_0$, (B, d).
#
# <details><summary>Hint 1</summary>
#
# It is the jump formula $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon$, solved for $x_0$.
#
# <details><summary>Hint 2</summary>
#
# Subtract the noise part first, then divide by $\sqrt{\bar\alpha_t}$, not by $\bar\alpha_t$.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 02.2
def predict_x0(x_t, t, eps, alpha_bar):
    """The guess of x_0 that belongs to a guess of the noise."""
    # STUB: return None
    ### BEGIN SOLUTION
    a = alpha_bar[t].unsqueeze(-1).to(x_t)
    return (x_t - (1 - a).sqrt() * eps) / a.sqrt()
    ### END SOLUTION

# %% tags=["check"]
exercises.check("02.2", predict_x0)

# %% [markdown]
# ## 4. Samplers, tested before there is a network
#
# **Question.** Given a denoiser, how do we walk from noise to data?
#
# *DDPM* (ancestral sampling) uses the model's step as it stands: guess $\hat x_0$, draw from the posterior
# as if it were true. *DDIM* (Song, Meng & Ermon 2021) generalises it. To go from time $t$ to any earlier time
# $s$, keep a part of the guessed noise and replace the rest by fresh noise $z$:
#
# <!-- eq: ddim-step | Song, Meng & Ermon 2021, eq. 12 -->
# $$
# x_s = \sqrt{\bar\alpha_s}\; \hat x_0 + \sqrt{1 - \bar\alpha_s - \sigma^2}\; \varepsilon_\theta(x_t, t) + \sigma z ,
# \qquad z \sim \mathcal N(0, I),
# $$
#
# <!-- eq: ddim-sigma | Song, Meng & Ermon 2021, eq. 16 -->
# $$
# \sigma = \eta\, \sqrt{\frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}} \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_s}} .
# $$
#
# The squares of the two noise factors add up to $1 - \bar\alpha_s$ for every $\sigma$. So if the guess were right,
# $x_s$ would have the law $q(x_s | x_0)$, whatever $\eta$ is. With $\eta = 0$ there is no noise at all: the sample is a
# function of $x_T$. With $\eta = 1$ and $s = t - 1$ we get DDPM. For the variance that is plain:
# $\sigma^2 = \tilde\beta_t$. For the mean, use
# $1 - \bar\alpha_t - \beta_t = \alpha_t (1 - \bar\alpha_{t-1})$; then the factor of the guessed noise is
#
# <!-- eq: ddim-eta-one-is-ddpm | Song, Meng & Ermon 2021, section 4.1; derived here -->
# $$
# \sqrt{1 - \bar\alpha_{t-1} - \tilde\beta_t} = \frac{\sqrt{\alpha_t}\, (1 - \bar\alpha_{t-1})}{\sqrt{1 - \bar\alpha_t}} .
# $$
#
# Put $\varepsilon_\theta = (x_t - \sqrt{\bar\alpha_t}\, \hat x_0) / \sqrt{1 - \bar\alpha_t}$ beside it: $x_t$
# gets the factor $\sqrt{\alpha_t} (1 - \bar\alpha_{t-1}) / (1 - \bar\alpha_t)$ and $\hat x_0$ the factor
# $\sqrt{\bar\alpha_{t-1}}\, \beta_t / (1 - \bar\alpha_t)$. That is $\tilde\mu_t(x_t, \hat x_0)$.
#
# **Predict.** Which noise does the last step, to $s = 0$, add when $\eta = 1$?
#
# ### Exercise 02.3: one step back
# Write `reverse_step(x_t, t, s, eps, alpha_bar, eta)` for integers $t > s \ge 0$. Return the pair (mean, std):
# the mean of $x_s$, shaped like `x_t`, and the number $\sigma$.
#
# <details><summary>Hint 1</summary>
#
# Compute $\hat x_0$ first (exercise 02.2), then $\sigma$, then the mean: all of the formula except $\sigma z$.
#
# <details><summary>Hint 2</summary>
#
# At $s = 0$ rounding may make $1 - \bar\alpha_s - \sigma^2$ slightly negative: clamp it at 0.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 02.3
def reverse_step(x_t, t, s, eps, alpha_bar, eta):
    """Mean and standard deviation of the step from time t to an earlier time s."""
    # STUB: return None
    ### BEGIN SOLUTION
    a_t, a_s = float(alpha_bar[t]), float(alpha_bar[s])
    x0_hat = (x_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
    std = eta * math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
    mean = math.sqrt(a_s) * x0_hat + math.sqrt(max(1 - a_s - std**2, 0)) * eps
    return mean, std
    ### END SOLUTION

# %% tags=["check"]
exercises.check("02.3", reverse_step)

# %% [markdown]
# The sampler is a loop around that step. It uses the library's `diffusion.step`, which is exercise 02.3. First the
# claim that $\eta = 1$ is DDPM, mean and variance, at every $t$:

# %%
gap = 0.0
for t in range(1, T + 1):
    x_t, eps = torch.randn(2, 5, 2, dtype=torch.float64)
    mean, std, x0_hat = diffusion.step(x_t, t, t - 1, eps, eta=1.0)
    posterior_mean, variance = diffusion.posterior(x0_hat, x_t, t)
    gap = max(gap, float((mean - posterior_mean).abs().max()), abs(std**2 - float(variance)))
print(f"step with eta = 1 against the posterior at x0_hat: largest difference {gap:.0e}")
assert gap < 1e-9

# %%
@torch.no_grad()
def sample(denoiser, x_T, steps=None, eta=1.0):
    """Walk from x_T (B, 2) to x_0; return the list of states (t, x_t, x0_hat)."""
    steps = T if steps is None else steps
    times = [round(T * i / steps) for i in range(steps, -1, -1)]
    x, states = x_T, [(T, x_T, None)]
    for t, s in zip(times[:-1], times[1:], strict=True):
        eps = denoiser(x, torch.full((len(x),), t), None)
        mean, std, x0_hat = diffusion.step(x, t, s, eps, eta)
        x = mean + std * torch.randn_like(x) if std > 0 else mean
        states.append((s, x, x0_hat))
    return states


# %% [markdown]
# Now test it. For the ring we know the perfect denoiser (notebook 01, section 6). A perfect denoiser
# and a correct sampler must score close to 1. If they do not, no network is to blame.
#
# **Predict.** With the perfect denoiser and all $T$ steps ($T = 100$ in `quick`), DDPM scores about 1. What
# does it score with only 10 steps?

# %%
guess = None  # your number

# %%
exact = ring.denoiser(schedule)
floor_of_ring = metrics.sliced_wasserstein_floor(ring.sample, N)
for name, eta, steps in (("ddpm", 1.0, T), ("ddpm", 1.0, 10), ("ddim", 0.0, 10)):
    samples = (sample(exact, torch.randn(N, 2), steps, eta)[-1][1] for _ in range(2))
    count = "all" if steps == T else steps
    run.metric(f"sw_over_floor_exact_{name}_{count}", over_floor(samples, ring.sample, floor_of_ring),
               unit="1", n=N, floor=1.0,
               definition=f"sliced Wasserstein-1 over its floor of {name} samples in {steps} steps "
                          "(mean of 2 sets) with the exact denoiser of a ring of 8 Gaussians")
print(f"your guess for DDPM in 10 steps: {guess}")

# %% [markdown]
# The error that remains is the price of finite steps: a reverse step is exactly Gaussian only when it is
# infinitely small. A network that learned the exact denoiser would score this with this sampler; its own error comes on top.

# %% [markdown]
# ## 5. A network
#
# **Question.** What must a network look like to be a denoiser?
#
# It takes $x_t$ and $t$, and returns a guess of the noise. For points in the plane a multilayer perceptron
# will do. Three details matter.
#
# - *It must see the time.* The right answers near $t = 0$ and near $t = T$ differ completely (notebook 01). One
#   number $t/T$ is a poor input: networks are smooth. So $t$ enters as sines and cosines of several
#   frequencies, added to every layer.
# - *It should not have to divide by almost nothing.* $\hat x_0$ has the factor $1/\sqrt{\bar\alpha_t}$, which is
#   thousands at $t = T$. An error of 0.001 in the noise would move $\hat x_0$ by 2 or more. The library's `MLPDenoiser`
#   therefore predicts $v = \sqrt{\bar\alpha_t}\, \varepsilon - \sqrt{1 - \bar\alpha_t}\, x_0$ (Salimans & Ho
#   2022) inside and returns the noise that follows from it,
#   $\varepsilon = \sqrt{1 - \bar\alpha_t}\, x_t + \sqrt{\bar\alpha_t}\, v$. From outside it is a denoiser
#   like any other.
# - *It should not run away.* Far from all training points a network extrapolates as it likes. If $v$ grows with
#   $x_t$ there, each step can push a stray sample further out. So the network sees $5 \tanh(x_t / 5)$: nearly
#   $x_t$ where the data are, and never more than 5, and what comes out passes through the same squashing. Then $|v| \le 5$ in
#   each coordinate, and far out each step pulls back. (With the input alone bounded, some samples still ran away.)
#
# The weights of its last layer start at zero, so the untrained network says the same $v$ everywhere: its bias, near 0. Here it is, all of it: the inputs made of the
# time, the layers, and what happens between input and output. (`cond_dim` is for networks with a condition.)

# %%
for part in (TimeFeatures.__init__, TimeFeatures.forward, MLPDenoiser.__init__, MLPDenoiser.forward):
    print(part.__qualname__)
    print(inspect.getsource(part))

# %%
def new_network():
    """A denoiser for points in the plane: three residual layers."""
    return MLPDenoiser(2, alpha_bar, hidden=settings.hidden, layers=3)


model = new_network()
print(f"{sum(p.numel() for p in model.parameters()):,} weights")
print(f"untrained: loss {diffusion.loss(model, toy.moons(N)).mean().item():.3f}")

# %% [markdown]
# ## 6. Training
#
# **Question.** What else, beyond the loss, makes training work?
#
# Each step draws a fresh batch, a time and a noise for each point. So the gradient is noisy even late in
# training, and the weights jitter about the optimum. Two remedies are standard. The learning rate falls to zero
# at the end. And we sample from an *exponential moving average* (EMA) of the weights: after each step
# $\bar\theta \leftarrow m\, \bar\theta + (1 - m)\, \theta$ with $m$ near 1. Early on $m$ is kept small: an average that still
# remembers the random initial weights is worse than none.

# %%
def train(model, loss, steps, lr=2e-3, warmup=100, decay_share=0.5, ema_decay=0.999):
    """Minimise loss(model) with Adam; return the averaged network and the loss of every step."""
    average = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    history = []
    for step in trange(steps, mininterval=1.0):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / warmup, (steps - step) / (decay_share * steps))
        value = loss(model).mean()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(ema_decay, (1 + step) / (10 + step)) if step > 0 else 0.0
        with torch.no_grad():
            for averaged, current in zip(average.parameters(), model.parameters(), strict=True):
                averaged.lerp_(current, 1 - keep)
        history.append(value.item())
    return average, history


# %% [markdown]
# The loss is `diffusion.loss`, which is exercise 02.1. **Predict.** The untrained network's loss is printed
# above. What is the loss at the end? (Hint: notebook 01, section 6. Not zero.)

# %%
guess = None  # your number

# %%
denoiser, history = train(
    model, lambda network: diffusion.loss(network, toy.moons(settings.batch)), settings.steps
)

# %% [markdown]
# Is the final loss good? Compare with the least possible one, that of
# $\varepsilon^* = E[\varepsilon \mid x_t]$. The moons are known well enough to compute it: they are a mixture
# of Gaussians of width 0.1 with a centre at *every* angle of the half circles. Sums over 64 well-chosen
# angles (Gauss-Legendre) replace the integrals over the angle, with an error far below anything we print. The
# error of $\varepsilon^*$ at $t$ follows from Pythagoras:
# $E \lVert \varepsilon - \varepsilon^* \rVert^2 = E \lVert \varepsilon \rVert^2 - E \lVert \varepsilon^* \rVert^2$,
# the second an integral over the plane.

# %%
node, node_weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(64))
angle = math.pi / 2 * (node + 1)
arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
exact_moons = mixtures.GaussianMixture(torch.cat([arc, -arc]), 0.1, node_weight.repeat(2))


def least_loss_at(t):
    """Mean squared error per element of the best guess of the noise at t; no random numbers."""
    a = alpha_bar[t]
    width = (a * 0.1**2 + 1 - a).sqrt()
    law = mixtures.GaussianMixture(a.sqrt() * exact_moons.means, width, exact_moons.weights)
    reach, h = float(1.5 * a.sqrt() + 7 * width), float(width / 2)
    side = torch.arange(-reach, reach + h, h, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    mass = law.log_prob(x).exp() * h**2
    assert abs(float(mass.sum()) - 1) < 1e-9
    best_eps = -(1 - a).sqrt() * law.score(x)
    return float(1 - mass @ best_eps.square().mean(1))


least_by_time = torch.tensor([least_loss_at(t) for t in range(1, T + 1)])
least_loss = float(least_by_time.mean())
print(f"least possible loss: {least_loss:.5f}; your guess for the network: {guess}")

# %% [markdown]
# By Pythagoras again, the network's loss is the least one plus its mean squared distance to $\varepsilon^*$.
# That distance is far less noisy than the loss, and cannot be negative. **Check** that the draws agree with
# the integral.

# %%
x0 = toy.moons(20_000)
t = torch.randint(1, T + 1, (len(x0),))
noise = torch.randn_like(x0)
x_t = diffusion.q_sample(x0, t, noise)
with torch.no_grad():
    guessed, best = denoiser(x_t, t, None), exact_moons.denoiser(schedule)(x_t, t)
drawn = (best - noise).square().mean(1)
margin = 4 * float(drawn.std()) / len(drawn) ** 0.5
print(f"loss of the best guess, drawn: {float(drawn.mean()):.4f} (four standard errors: {margin:.4f})")
assert abs(float(drawn.mean()) - least_loss) < margin
excess = float((guessed - best).square().mean())
run.metric("eps_loss", least_loss + excess, unit="1", n=len(x0), floor=least_loss,
           definition="mean squared error of the noise per element, trained network, uniform t: the "
                      "least possible one, integrated, plus the mean squared distance to the best guess")

# %%
block = 50
curve = torch.tensor(history).unfold(0, block, block).mean(1)
fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.plot(block * (torch.arange(len(curve)) + 1), curve, label="training loss, mean of 50 steps")
ax.axhline(least_loss, color="#D55E00", ls="--", label="least possible")
ax.set(xlabel="training step", ylabel="squared error of the noise", ylim=(0.3, 0.46))
ax.legend()
run.figure(
    fig,
    "loss_curve",
    alt="The training loss falls from above 0.4 within a few hundred steps and then fluctuates "
    "about the dashed line of the least possible loss, 0.34.",
    see="most of the gain is in the first steps; later the curve looks flat, and only the distance to its floor says whether it still improves.",
)

# %% [markdown]
# ## 7. Samples
#
# **Predict.** The score of the network's samples, with DDPM and all $T$ steps. (Fresh data: 1 on average.)

# %%
guess = None  # your number

# %%
chains = (sample(denoiser, torch.randn(N, 2)) for _ in range(settings.sets))
chain = next(chains)
points = chain[-1][1]
samples = [points] + [states[-1][1] for states in chains]
run.metric(
    "sw_over_floor", over_floor(samples, toy.moons, floor_of_moons), unit="1", n=N, floor=1.0,
    definition=f"sliced Wasserstein-1 of DDPM samples ({T} steps) of two moons to fresh data (10,000 "
               f"points, 256 directions; mean of {settings.sets} pairs of sets) over its floor, the "
               "mean of 20 pairs of fresh data sets",
)
print(f"your guess: {guess}")

# %%
shown = [9 * T // 10, 6 * T // 10, 3 * T // 10, 3 * T // 20, T // 20, 0]
by_time = {t: (x, x0_hat) for t, x, x0_hat in chain}
fig, axes = plt.subplots(2, len(shown), figsize=(10, 3.6), sharex=True, sharey=True)
for column, t in zip(axes.T, shown, strict=True):
    x, x0_hat = by_time[t]
    column[0].scatter(*x[:2000].T, s=1, alpha=0.3, rasterized=True)
    if x0_hat is not None:
        column[1].scatter(*x0_hat[:2000].T, s=1, alpha=0.3, color="#D55E00", rasterized=True)
    column[0].set(title=f"t = {t}", aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
    column[1].set(xlabel="$x_1$", aspect="equal")
axes[0, 0].set_ylabel("$x_t$")
axes[1, 0].set_ylabel(r"$\hat x_0$")
run.figure(
    fig,
    "generation",
    alt="Six columns from t = 0.9 T to t = 0. Top: a round cloud of points becomes two crescents. "
    "Bottom: the guess x0_hat starts as a blob in the middle and opens into the crescents earlier.",
    see="the guess of the data (bottom) starts as an average and decides step by step; the sample "
    "(top) follows.",
)

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharex=True, sharey=True)
for ax, x, title in zip(axes, (data, points), ("data", "DDPM samples"), strict=True):
    ax.scatter(*x.T, s=1, alpha=0.25, rasterized=True)
    ax.set(title=title, xlabel="$x_1$", aspect="equal")
axes[0].set_ylabel("$x_2$")
run.figure(
    fig,
    "data_and_samples",
    alt="10,000 data points and 10,000 model points side by side: two crescents each, of the same "
    "shape and thickness; the model's have some stray points between them.",
    see="same shape, same thickness; but the model leaves more points in the gap between the moons.",
)

# %% [markdown]
# Look at the gap. Sliced Wasserstein hardly sees a few stray points: they are few, and each has moved
# only a little. No single number sees everything, so take a second one: the share of points further than
# 0.4 (four standard deviations of the data's blur) from the two half circles.

# %%
angle = torch.linspace(0, math.pi, 400)
arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
skeleton = torch.cat([arc, -arc])


def stray_share(x):
    """Share of points (n, 2) further than 0.4 from the two half circles."""
    return (torch.cdist(x, skeleton).amin(1) > 0.4).double().mean()


run.metric("stray_share", stray_share(points), unit="1", n=N, floor=stray_share(data),
           definition=f"share of DDPM samples ({T} steps) further than 0.4 from the half circles; "
                      "its floor is that of as many data points")

# %% [markdown]
# ### Play
#
# Move the slider and watch one run of the chain. The picture above is the same run at six times.

# %%
def show_chain(t):
    x, x0_hat = by_time[t]
    fig, ax = plt.subplots(figsize=(4.5, 4))
    ax.scatter(*x[:2000].T, s=2, alpha=0.4, label="$x_t$")
    if x0_hat is not None:
        ax.scatter(*x0_hat[:2000].T, s=2, alpha=0.4, label=r"$\hat x_0$")
    ax.set(title=f"t = {t}", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal",
           xlabel="$x_1$", ylabel="$x_2$")
    ax.legend(loc="upper right", markerscale=4)
    return fig


widgets.explore(show_chain, t=ipywidgets.IntSlider(T // 2, 0, T))

# %% [markdown]
# ### Fewer steps
#
# A step costs one call of the network. **Predict.** With 10 calls only, which is better: DDPM ($\eta = 1$) or
# DDIM ($\eta = 0$)? And with 50?

# %%
counts = [5, 10, 20, 50]
scores = {eta: [] for eta in (1.0, 0.0)}
for eta, values in scores.items():
    for steps in counts:
        samples = [sample(denoiser, torch.randn(N, 2), steps, eta)[-1][1] for _ in range(2)]
        values.append(over_floor(samples, toy.moons, floor_of_moons))

fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.loglog(counts, scores[1.0], "o-", label=r"DDPM, $\eta = 1$")
ax.loglog(counts, scores[0.0], "s-", label=r"DDIM, $\eta = 0$")
ax.axhline(1, color="grey", lw=0.8, ls=":", label="fresh data")
ax.set(xlabel="sampling steps (calls of the network)", ylabel="SW over floor")
ax.set_xticks(counts, [str(c) for c in counts])
ax.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
ax.minorticks_off()
ax.legend()
run.figure(
    fig,
    "steps",
    alt="Score over the number of sampling steps, both axes logarithmic. Both curves fall from above "
    "10 at 5 steps to about 2 at 50; DDIM lies below DDPM at first, then they meet.",
    see="more steps help each time; DDIM is ahead with few of them. Differences as small as those "
    "at 50 are chance: single sets of fresh data differ by as much (section 1).",
)
run.metric("sw_over_floor_ddim_20", scores[0.0][2], unit="1", n=N,
           definition="the same score for DDIM samples, eta = 0, 20 steps, mean of 2 sets")

# %% [markdown]
# ## 8. Break it
#
# **Question.** What do the popular mistakes cost?
#
# The network stays as it is. Each line below changes one thing in the sampler (DDPM, 50 steps).
# **Predict** the order, worst first:
#
# - *beta*: $\beta$ where $\tilde\beta$ is meant, in every step but the last
# - *no denominator*: $(1 - \bar\alpha_s)\, \beta$ as the variance
# - *last step noisy*: noise of variance $\beta$ added in the last step, too
# - *noise reused*: the guessed noise is added in place of fresh noise
# - *time frozen*: the network is told $t = T/2$ at every step

# %%
@torch.no_grad()
def broken_sample(fault, steps=50):
    """DDPM from the trained network with one mistake; "none" makes none."""
    times = [round(T * i / steps) for i in range(steps, -1, -1)]
    x = torch.randn(N, 2)
    for t, s in zip(times[:-1], times[1:], strict=True):
        told = T // 2 if fault == "time frozen" else t
        eps = denoiser(x, torch.full((N,), told), None)
        mean, std, _ = diffusion.step(x, t, s, eps)
        beta = float(1 - alpha_bar[t] / alpha_bar[s])
        if (fault == "beta" and s > 0) or (fault == "last step noisy" and s == 0):
            std = math.sqrt(beta)
        elif fault == "no denominator":
            std = math.sqrt(beta * float(1 - alpha_bar[s]))
        x = mean + std * (eps if fault == "noise reused" else torch.randn_like(x))
    return x


faults = ("none", "beta", "no denominator", "last step noisy", "noise reused", "time frozen")
broken = {}
for fault in faults:
    broken[fault] = broken_sample(fault)
    run.metric(f"broken_{fault.replace(' ', '_')}", unit="1", n=N,
               value=over_floor([broken[fault]], toy.moons, floor_of_moons),
               definition=f"the same score for DDPM in 50 steps, one set, with this mistake: {fault}")

# %%
fig, axes = plt.subplots(1, 6, figsize=(11, 2.3), sharex=True, sharey=True)
for ax, (fault, x) in zip(axes, broken.items(), strict=True):
    ax.scatter(*x[:3000].T, s=1, alpha=0.3, rasterized=True)
    ax.set(title=fault, xlabel="$x_1$", aspect="equal", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
    if float(x.abs().max()) > 100:
        ax.text(0, 0, f"points up to\n{float(x.abs().max()):.0e}", ha="center", va="center")
axes[0].set_ylabel("$x_2$")
run.figure(
    fig,
    "broken",
    alt="Six scatter plots. Correct, beta and a noisy last step all look like two crescents; without "
    "the denominator they are thinner; reused noise is off the scale; a frozen time gives a blob.",
    see="four of the six pictures show two moons; look for the one that is too thin.",
)

# %% [markdown]
# Three lessons.
#
# - *A mistake can still draw two nice moons.* Without the denominator the picture looks clean, and the
#   score is several times worse.
# - *A mistake can be too small to see here.* The noise of the last step has a standard deviation of about 0.04, and these
#   data are blurred by 0.1 already. The same noise ruins data with fine detail, such as the bond lengths of a molecule.
# - *$\beta$ for $\tilde\beta$ even helps here*, with only 50 steps. The best variance of a step lies between the two: $\tilde\beta$
#   would be right if $\hat x_0$ were exact, $\beta$ if the data were Gaussian noise (Ho et al. 2020, section 3.2). In
#   truth $\hat x_0$ is uncertain, so $\tilde\beta$ makes samples slightly too narrow, and the error goes away
#   as steps get smaller. But the *posterior* has variance $\tilde\beta$ and nothing else. Whoever computes
#   log-probabilities or bounds with $\beta$ under that name has a bug that no picture will show.

# %% [markdown]
# ## Recap
#
# - A distance between samples needs its $n$ and its floor.
# - The bound on the likelihood is a weighted squared error; the simple loss drops the weights.
# - Noise, data and score are three faces of one conditional mean (Tweedie).
# - DDPM and DDIM are one step formula with a dial $\eta$. Test a sampler with an exact denoiser first.
# - Train on fresh noise at every step, let the learning rate fall, sample from averaged weights.
# - A good loss is one near its floor, not near zero.

# %% [markdown]
# ## Results
#
# All metrics of this run, also written to `results.json`.

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - *The network ignores $t$.* Then it learns one blurred answer for all times. Check that its output changes
#   when only $t$ does.
# - *$t$ drawn from $0 \dots T-1$.* At $t = 0$ there is no noise to guess; at $t = T$, where sampling starts, the
#   network was never trained.
# - *Data of another size.* Bring them to variance near 1 per coordinate, or the schedule's numbers mean
#   something else.
# - *No EMA, constant learning rate.* The loss curve looks the same, the score does not.
# - *Judging by eye*, or by a distance at small $n$.
#
# ## Further reading
#
# - Ho, Jain, Abbeel 2020, [Denoising Diffusion Probabilistic Models](https://arxiv.org/abs/2006.11239)
# - Song, Meng, Ermon 2021, [Denoising Diffusion Implicit Models](https://arxiv.org/abs/2010.02502)
# - Song et al. 2021, [Score-Based Generative Modeling through SDEs](https://arxiv.org/abs/2011.13456)
# - Kingma et al. 2021, [Variational Diffusion Models](https://arxiv.org/abs/2107.00630): the bound in terms of the SNR
# - Salimans, Ho 2022, [Progressive Distillation](https://arxiv.org/abs/2202.00512): the parametrisation $v$
#
# ## Next
#
# You can now draw what the data hold. [03 · Conditional control](03_conditional_control.ipynb) steers by conditions and
# gradients; [07 · RGDM](07_rgdm.ipynb) draws what a *reward* asks for.

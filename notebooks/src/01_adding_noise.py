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
# # 01 · Adding noise
#
# A diffusion model is trained to undo something. This notebook is about that something: a chain of
# small steps that turns any data into plain Gaussian noise. It has no network and no training. At
# the end you can jump to any step of the chain, walk one step back when the data point is known, and
# compute what a *perfect* denoiser would answer when it is not. Every formula is checked by numbers.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 35 | 35 | 35 |
# | minutes to run (2 CPU cores) | 0.3 | 0.5 | 0.5 |
# | memory | 1 GB | 1 GB | 1 GB |
# | GPU | not used | not used | not used |
#
# Prerequisites: Gaussians, conditional probability, a little PyTorch. Nothing about diffusion.

# %% [markdown]
# ## Goals
#
# - **simulate** the forward process one step at a time, and **jump** to any step in one go
# - **compare** noise schedules by their signal-to-noise ratio
# - **measure** how much of the data is left at the last step, and say why it must be little
# - **derive** the posterior of one step back, and check it against Bayes' rule on a grid
# - **compute** the best possible denoiser of a mixture, and the loss that even it cannot avoid

# %% tags=["bootstrap"]
# rgdm_lib.course.bootstrap.CELL

# %% tags=["parameters"]
PRESET = "quick"
SEED = 0
OUT_DIR = "runs"

# %%
import math

import ipywidgets
import matplotlib.pyplot as plt
import torch

from rgdm_lib import schedules
from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds import toy

run = notebook.start("01_adding_noise", PRESET, SEED, OUT_DIR)
settings = run.settings(
    quick={"paths": 100_000, "draws": 200_000},
    laptop={"paths": 400_000, "draws": 2_000_000},
    full={"paths": 400_000, "draws": 2_000_000},
)

# %% [markdown]
# ## 1. One small step
#
# **Question.** How do you destroy data a little, so that a small step back is easy to learn?
#
# Let $x_0$ be a data point: a number, a vector, an image, a molecule. Time runs over
# $t = 1, \dots, T$. One step shrinks the point a little and adds a little Gaussian noise:
#
# <!-- definition -->
# $$
# x_t = \sqrt{1 - \beta_t}\; x_{t-1} + \sqrt{\beta_t}\; \varepsilon_t,
# \qquad \varepsilon_t \sim \mathcal N(0, I) .
# $$
#
# The number $\beta_t$, between 0 and 1, is the variance that step $t$ adds. The list of all $\beta_t$
# is the *noise schedule*. We write $\alpha_t = 1 - \beta_t$. The chain $x_0, x_1, \dots, x_T$ is the
# *forward process*; its law, given $x_0$, is called $q$. Nothing in it is learned.
#
# Why shrink? Look at the variance of one coordinate. The noise is independent of $x_{t-1}$, so
#
# <!-- eq: variance-one-step | derived here -->
# $$
# \operatorname{Var}(x_t) = (1 - \beta_t) \operatorname{Var}(x_{t-1}) + \beta_t .
# $$
#
# Variance 1 is a fixed point: data of variance 1 stay at variance 1. The process is *variance
# preserving*. Without the shrinking factor the variance would only grow.
#
# **Predict.** Data of variance 1, a hundred steps, $\beta_t = 0.1$ in each. What is the variance at the
# end if you forget the factor $\sqrt{1 - \beta_t}$? Write a number, then run the cell below it.

# %%
guess = None  # your number

# %%
x = y = torch.randn(settings.paths)
for _ in range(100):
    noise = torch.randn_like(x)
    x = math.sqrt(1 - 0.1) * x + math.sqrt(0.1) * noise
    y = y + math.sqrt(0.1) * noise
print(f"with the factor: variance {x.var():.2f}; without: {y.var():.2f}; your guess: {guess}")

# %% [markdown]
# Each step adds 0.1, so a hundred steps add 10 to the 1 that was there. A network would have to work
# with inputs of another size at every $t$. With the factor it never has to.
#
# Here is the process on a toy data set in the plane, the *two moons* that notebook 02 will learn.
# Its schedule is the library's `linear` one with $T = 100$; section 3 says what that is.

# %%
T = 100
schedule = schedules.linear(T)
diffusion = Diffusion(schedule)

moons = toy.moons(3000)
times = [0, 5, 20, 50, 100]
fig, axes = plt.subplots(1, 5, figsize=(10, 2.4), sharex=True, sharey=True)
for ax, t in zip(axes, times, strict=True):
    x_t = diffusion.q_sample(moons, t, torch.randn_like(moons))
    ax.scatter(*x_t.T, s=1, alpha=0.3, rasterized=True)
    ax.set(title=f"t = {t}", xlabel="$x_1$", aspect="equal", xlim=(-3.3, 3.3), ylim=(-3.3, 3.3))
axes[0].set_ylabel("$x_2$")
run.figure(
    fig,
    "moons_dissolve",
    alt="Five scatter plots of 3,000 points. Two crescents at t = 0 blur at 5 and 20, and are a "
    "round cloud at 50 and 100.",
    see="the fine structure goes first, the rough shape later; at t = 100 nothing is left to see.",
)

# %% [markdown]
# ## 2. Jump to any step
#
# **Question.** Training will need $x_t$ at a random $t$, millions of times. Must we walk there?
#
# No. Put one step into the next:
# $x_2 = \sqrt{\alpha_2 \alpha_1}\, x_0 + \sqrt{\alpha_2 (1 - \alpha_1)}\, \varepsilon_1 + \sqrt{1 - \alpha_2}\, \varepsilon_2$.
# The two noise terms are independent Gaussians, so their sum is one Gaussian, and its variance is the
# sum $\alpha_2 (1 - \alpha_1) + 1 - \alpha_2 = 1 - \alpha_1 \alpha_2$. The same happens at every step.
# With
#
# <!-- definition -->
# $$
# \bar\alpha_t = \alpha_1 \alpha_2 \cdots \alpha_t, \qquad \bar\alpha_0 = 1,
# $$
#
# induction gives the law of $x_t$ given $x_0$ in one line:
#
# <!-- eq: ddpm-marginal | Ho et al. 2020, eq. 4 -->
# $$
# q(x_t \mid x_0) = \mathcal N\!\left(\sqrt{\bar\alpha_t}\, x_0,\; (1 - \bar\alpha_t) I\right) .
# $$
#
# So $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon$ with a single fresh
# $\varepsilon \sim \mathcal N(0, I)$. The two factors are a rotation: their squares add up to one. The
# number $\bar\alpha_t$ is the share of the original variance that is still there.
#
# ### Exercise 01.1: jump
# Write `q_sample(x0, t, noise, alpha_bar)`. `x0` and `noise` are (B, d), `t` is an integer tensor (B,)
# with its own step for every row, `alpha_bar` is (T+1,), indexed by $t$ itself. Return $x_t$, (B, d).
#
# <details><summary>Hint 1</summary>
#
# `alpha_bar[t]` is (B,). It has to multiply a (B, d) tensor row by row.
#
# <details><summary>Hint 2</summary>
#
# `unsqueeze(-1)` makes it (B, 1). Then take two square roots.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 01.1
def q_sample(x0, t, noise, alpha_bar):
    """Draw x_t given x_0."""
    # STUB: return None
    ### BEGIN SOLUTION
    a = alpha_bar[t].unsqueeze(-1)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise
    ### END SOLUTION

# %% tags=["check"]
exercises.check("01.1", q_sample)

# %% [markdown]
# From here on the notebook uses the library's `Diffusion.q_sample`, which is the same function.
#
# ### A world in which everything is exact
#
# To check formulas we need data whose law we know completely. Take one-dimensional data with two
# modes: a share $w_1 = 0.3$ of the points near $\mu_1 = -1$, $w_2 = 0.7$ near $\mu_2 = 2$, each mode a Gaussian
# of standard deviation $s = 0.25$. The marginal of $x_t$ is then a mixture too: every mode moves to $\sqrt{\bar\alpha_t}\,\mu_k$ and widens to
# the variance
#
# <!-- eq: mixture-variance | derived here -->
# $$
# v_t = \bar\alpha_t s^2 + 1 - \bar\alpha_t .
# $$

# %%
MEANS = torch.tensor([-1.0, 2.0], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
STD = 0.25
alpha_bar = schedule.alpha_bar


def draw_data(n):
    """n points of the two-mode data, (n,) float64."""
    mode = torch.multinomial(WEIGHTS, n, replacement=True)
    return MEANS[mode] + STD * torch.randn(n, dtype=torch.float64)


def normal_density(x, mean, variance):
    """Density of N(mean, variance) at x."""
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / torch.sqrt(2 * math.pi * variance)


def marginal_density(x, a):
    """Density of x_t at x (any shape) where alpha_bar_t = a."""
    variance = a * STD**2 + 1 - a
    return (WEIGHTS * normal_density(x[..., None], a.sqrt() * MEANS, variance)).sum(-1)


# %% [markdown]
# **Check.** Walk 100 steps with many points and compare the mean and the variance at every $t$ with
# the closed form. The walk is random, so a perfect match is not to be expected. What can be? Each number is
# printed beside its *floor*, what chance alone costs: here the error of as many points drawn directly from the
# closed form.

# %%
x0 = draw_data(settings.paths)
exact_mean = alpha_bar.sqrt() * (WEIGHTS * MEANS).sum()
spread = (WEIGHTS * MEANS**2).sum() - (WEIGHTS * MEANS).sum() ** 2
exact_variance = alpha_bar * (spread + STD**2) + 1 - alpha_bar

walk, mean_error, variance_error, floors = x0, 0.0, 0.0, [0.0, 0.0]
paths = [x0[:12]]
for t in range(1, T + 1):
    beta = schedule.beta[t]
    walk = (1 - beta).sqrt() * walk + beta.sqrt() * torch.randn_like(walk)
    jump = diffusion.q_sample(x0, t, torch.randn_like(x0))
    paths.append(walk[:12])
    mean_error = max(mean_error, float((walk.mean() - exact_mean[t]).abs()))
    variance_error = max(variance_error, float((walk.var() - exact_variance[t]).abs()))
    floors[0] = max(floors[0], float((jump.mean() - exact_mean[t]).abs()))
    floors[1] = max(floors[1], float((jump.var() - exact_variance[t]).abs()))
run.metric("marginal_mean_error", mean_error, unit="1", n=settings.paths, floor=floors[0],
           definition="largest error over t of the mean of x_t, walked step by step, "
                      "against the closed form")
run.metric("marginal_variance_error", variance_error, unit="1", n=settings.paths, floor=floors[1],
           definition="largest error over t of the variance of x_t, walked step by step, "
                      "against the closed form")

# %%
grid = torch.linspace(-4, 4, 401, dtype=torch.float64)
density = torch.stack([marginal_density(grid, a) for a in alpha_bar])

fig, ax = plt.subplots(figsize=(8, 3.6))
image = ax.pcolormesh(range(T + 1), grid, density.T, cmap="Blues", vmax=0.8, rasterized=True)
ax.plot(torch.stack(paths), color="#D55E00", lw=0.7)
fig.colorbar(image, label="density of $x_t$ (per unit of $x$)")
ax.set(xlabel="time t (steps)", ylabel="$x_t$")
run.figure(
    fig,
    "density_and_paths",
    alt="Density of x_t over time as a heat map with twelve random paths. Two bands at -1 and 2 "
    "merge near t = 50 into one band of width 1 about 0.",
    see="two modes flow together; past t = 60 or so a path does not tell where it came from.",
)

# %% [markdown]
# ## 3. Schedules, and the one number that matters
#
# **Question.** Which $\beta_t$? What is a fair way to compare two choices?
#
# Since $q(x_t \mid x_0)$ depends on $\bar\alpha_t$ only, a schedule *is* its curve $\bar\alpha_t$. The
# natural scale is the *signal-to-noise ratio* (SNR), the variance of what is left over the variance of the noise:
#
# <!-- definition -->
# $$
# \mathrm{SNR}(t) = \frac{\bar\alpha_t}{1 - \bar\alpha_t} .
# $$
#
# Three curves in common use, with $u = t / T$:
#
# - **linear** (Ho et al. 2020): $\beta_t$ grows linearly from $10^{-4}$ to $0.02$. These numbers are
#   meant for $T = 1000$. For another $T$ multiply them by $1000 / T$, so that the sum stays the same.
# - **cosine** (Nichol & Dhariwal 2021): $\bar\alpha_t \propto \cos^2\!\big(\tfrac{u + 0.008}{1.008} \cdot \tfrac{\pi}{2}\big)$.
# - **polynomial** (Hoogeboom et al. 2022, for molecules): $\bar\alpha_t \approx (1 - u^2)^2$.
#
# **Predict.** At SNR 1 signal and noise are equally strong. The linear schedule reaches it at
# $t = 27$ of 100. Where does the cosine schedule reach it?

# %%
guess = None  # your number

# %%
candidates = {
    "linear": schedules.linear(T),
    "cosine": schedules.cosine(T),
    "polynomial": schedules.polynomial(T),
}
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
for name, s in candidates.items():
    a = s.alpha_bar
    left.plot(a, label=name)
    right.plot(range(1, T + 1), torch.log10(a[1:] / (1 - a[1:])), label=name)
    crossing = int((a < 0.5).int().argmax())
    print(f"{name:<11} SNR falls below 1 at t = {crossing}, alpha_bar_T = {float(a[-1]):.1e}")
print(f"your guess: {guess}")
right.axhline(0, color="grey", lw=0.8, ls=":")
left.set(xlabel="time t (steps)", ylabel=r"$\bar\alpha_t$ (share of variance)")
right.set(xlabel="time t (steps)", ylabel="log10 SNR", ylim=(-6, 4))
left.legend()
run.figure(
    fig,
    "schedules",
    alt="Left: alpha_bar falls from 1 to 0; linear falls first, cosine and polynomial are close. "
    "Right: log10 SNR over time; it crosses 0 at 27 for linear, near 50 for the others.",
    see="the linear schedule spends most steps where almost nothing is left; cosine and polynomial "
    "share them out more evenly.",
)

# %% [markdown]
# By which factor does the SNR fall in each tenth of the steps? The more alike the factors are, the more evenly a
# schedule shares its steps out over the levels of noise.

# %%
for name, s in candidates.items():
    snr = s.alpha_bar[1:] / (1 - s.alpha_bar[1:])
    tenths = snr[[0, *range(9, T, 10)]]
    factors = tenths[:-1] / tenths[1:]
    print(f"{name:<11}", "".join(f"{float(f):8,.1f}" for f in factors[:-1]), f"{float(factors[-1]):11,.1f}")
    print(f"{'':<11} inner eight: {float(factors[1:-1].min()):.1f} to {float(factors[1:-1].max()):.1f}")

# %% [markdown]
# Not the same factor everywhere: between its first and last tenth the cosine schedule's factors go from 1.9 to 4.2,
# lowest in the middle, those of the linear one from 2.8 to 6.5, growing towards the noise. At the ends the
# factors are larger still. To be even in the middle is one reason to prefer the cosine schedule when $T$ is
# small. There is no best schedule for all data: fine detail is decided at high SNR, the rough shape at low
# SNR, and a schedule says how many steps each gets.

# %% [markdown]
# ## 4. How much is left at the end?
#
# **Question.** Sampling will start from $\mathcal N(0, I)$. When is that allowed?
#
# When $x_T$ cannot be told from $\mathcal N(0, I)$. For a given $x_0$ the mismatch is a
# Kullback-Leibler divergence of two Gaussians. In $d$ dimensions, in nats,
#
# <!-- eq: prior-kl | Ho et al. 2020, L_T of eq. 5, with eq. 4 -->
# $$
# \mathrm{KL}\big(q(x_T \mid x_0) \,\|\, \mathcal N(0, I)\big)
#   = \tfrac12 \left( \bar\alpha_T \lVert x_0 \rVert^2 - d\,\bar\alpha_T - d \log(1 - \bar\alpha_T) \right) .
# $$
#
# For small $\bar\alpha_T$ the last two terms cancel to first order, and $\tfrac12 \bar\alpha_T \lVert x_0 \rVert^2$
# is what remains. So the mismatch is proportional to $\bar\alpha_T$. The library refuses schedules with
# $\bar\alpha_T > 10^{-3}$.
#
# **Break it.** Many tutorials take the published betas, $10^{-4}$ to $0.02$, and shorten the chain to
# $T = 100$ to save time. **Predict:** which share $\bar\alpha_{100}$ of the variance is then left?

# %%
guess = None  # your number

# %%
unscaled = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100, dtype=torch.float64), 0)
unscaled = torch.cat([torch.ones(1, dtype=torch.float64), unscaled])
print(f"betas not rescaled: alpha_bar_100 = {float(unscaled[-1]):.2f}; your guess: {guess}")
print(f"betas times 1000/T: alpha_bar_100 = {float(alpha_bar[-1]):.1e}")
try:
    schedules.NoiseSchedule(unscaled)
except ValueError as error:
    print("the library says:", error)


def prior_kl(x0, a):
    """KL(q(x_T | x_0) || N(0, 1)) in nats for scalars x0, with alpha_bar_T = a."""
    return 0.5 * (a * x0**2 - a - torch.log1p(-a))


# %% [markdown]
# Is the formula right? Compare it with the integral of $q \log(q / p)$ on a fine grid, for a few $x_0$.

# %%
fine = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
width = fine[1] - fine[0]
standard = normal_density(fine, torch.tensor(0.0), torch.tensor(1.0, dtype=torch.float64))


def kl_on_grid(density):
    """Integral of q log(q / N(0, 1)) over the grid, in nats."""
    return torch.special.xlogy(density, density / standard).sum() * width


worst = max(
    float((kl_on_grid(normal_density(fine, a.sqrt() * x, 1 - a)) - prior_kl(x, a)).abs())
    for x in torch.linspace(-2, 3, 6, dtype=torch.float64)
    for a in (unscaled[-1], alpha_bar[10], alpha_bar[-1])
)
run.metric("prior_kl_error", worst, unit="nats", n=18,
           definition="largest difference between the closed form of KL(q(x_T|x_0) || N(0, 1)) "
                      "and its integral on a grid, over 6 points x_0 and 3 values of alpha_bar")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for ax, a, title in (
    (axes[0], unscaled[-1], "betas not rescaled"),
    (axes[1], alpha_bar[-1], "betas times 1000/T"),
):
    q_T = marginal_density(fine, a)
    ax.plot(fine, q_T, label="$x_T$, exact")
    ax.plot(fine, standard, ls="--", label=r"$\mathcal{N}(0, 1)$")
    ax.set(xlim=(-4, 4), xlabel="$x_T$", title=f"{title}: KL {float(kl_on_grid(q_T)):.1e} nats")
axes[0].set_ylabel("density (per unit of $x$)")
axes[0].legend(loc="upper left")
run.figure(
    fig,
    "last_step",
    alt="Left: the law of x_T without rescaling is a skewed curve with its peak near 1, far from "
    "the dashed standard normal. Right: with rescaling the two curves coincide.",
    see="without rescaling, x_T still remembers that most data lie on the right.",
)

# %% [markdown]
# Section 7 shows what this costs a sampler that is otherwise perfect.

# %% [markdown]
# ## 5. One step back, when you know the answer
#
# **Question.** Suppose somebody tells you $x_0$ and $x_t$. Where was $x_{t-1}$?
#
# This law, the *posterior* of one step, is what the network of notebook 02 will imitate. Bayes' rule
# says: prior times likelihood. The prior is $q(x_{t-1} \mid x_0)$, known by the jump formula. The
# likelihood is the step $q(x_t \mid x_{t-1})$. Both are Gaussians in $x_{t-1}$:
#
# <!-- eq: bayes-one-step | Bayes' rule and the Markov property -->
# $$
# q(x_{t-1} \mid x_t, x_0) \;\propto\;
# \mathcal N\!\big(x_{t-1};\, \sqrt{\bar\alpha_{t-1}}\, x_0,\, (1 - \bar\alpha_{t-1}) I\big)\;
# \mathcal N\!\big(x_t;\, \sqrt{\alpha_t}\, x_{t-1},\, \beta_t I\big) .
# $$
#
# A product of Gaussians is a Gaussian. Its precisions (inverse variances) add up:
#
# <!-- eq: posterior-precision | derived here -->
# $$
# \frac{1}{\tilde\beta_t} = \frac{1}{1 - \bar\alpha_{t-1}} + \frac{\alpha_t}{\beta_t}
# \qquad\Longrightarrow\qquad
# \tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\, \beta_t ,
# $$
#
# where the right side uses $\alpha_t (1 - \bar\alpha_{t-1}) + \beta_t = 1 - \bar\alpha_t$. Its mean is the
# average of the two opinions about $x_{t-1}$, weighted by their precisions:
#
# <!-- eq: posterior-mean | Ho et al. 2020, eq. 7 -->
# $$
# \tilde\mu_t(x_t, x_0) = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t}\, x_0
#   + \frac{\sqrt{\alpha_t}\, (1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, x_t .
# $$
#
# **Predict.** At $t = 1$ the step back lands on $x_0$, which we know. What is $\tilde\beta_1$? And in
# which direction does $\tilde\beta_t$ differ from $\beta_t$: is it larger or smaller?
#
# ### Exercise 01.2: the posterior
# Write `posterior(x0, x_t, t, alpha_bar)` for one integer $t \ge 1$. It returns the pair (mean,
# variance): the mean has the shape of `x_t`, the variance is a scalar tensor.
#
# <details><summary>Hint 1</summary>
#
# $\alpha_t = \bar\alpha_t / \bar\alpha_{t-1}$ and $\beta_t = 1 - \alpha_t$: two entries of `alpha_bar` are all you need.
#
# <details><summary>Hint 2</summary>
#
# The weights of $x_0$ and $x_t$ share the denominator $1 - \bar\alpha_t$. At $t = 1$ the weight of $x_t$
# is 0.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 01.2
def posterior(x0, x_t, t, alpha_bar):
    """Mean and variance of q(x_{t-1} | x_t, x_0)."""
    # STUB: return None
    ### BEGIN SOLUTION
    previous, current = alpha_bar[t - 1], alpha_bar[t]
    alpha = current / previous
    beta = 1 - alpha
    mean = (previous.sqrt() * beta * x0 + alpha.sqrt() * (1 - previous) * x_t) / (1 - current)
    return mean, (1 - previous) / (1 - current) * beta
    ### END SOLUTION

# %% tags=["check"]
exercises.check("01.2", posterior)

# %% [markdown]
# **Check.** Trust no algebra: multiply the two densities on a grid, normalise, and read off the mean
# and the variance. The grid knows nothing of the formulas above.

# %%
def bayes_on_grid(x0, x_t, t, points):
    """Normalised posterior weights of x_{t-1} on a grid: prior times likelihood."""
    a = alpha_bar[t - 1]
    log_prior = -((points - a.sqrt() * x0) ** 2) / (2 * (1 - a))
    step = x_t - schedule.alpha[t].sqrt() * points
    log_likelihood = -(step**2) / (2 * schedule.beta[t])
    return torch.softmax(log_prior + log_likelihood, 0)


points = torch.linspace(-8, 8, 32_001, dtype=torch.float64)
mean_error = variance_error = 0.0
for t in range(2, T + 1):
    for x0_, x_t_ in ((2.0, 1.0), (-1.0, 2.5), (0.5, -3.0)):
        w = bayes_on_grid(x0_, x_t_, t, points)
        mean = (w * points).sum()
        variance = (w * (points - mean) ** 2).sum()
        m, v = diffusion.posterior(
            torch.tensor(x0_, dtype=torch.float64), torch.tensor(x_t_, dtype=torch.float64), t
        )
        mean_error = max(mean_error, float((mean - m).abs()))
        variance_error = max(variance_error, float((variance - v).abs()))
run.metric("posterior_mean_error", mean_error, unit="1", n=3 * (T - 1),
           definition="largest error of the posterior mean against Bayes' rule on a grid, "
                      "t = 2..100, 3 pairs (x_0, x_t)")
run.metric("posterior_variance_error", variance_error, unit="1", n=3 * (T - 1),
           definition="largest error of beta_tilde_t against Bayes' rule on a grid, "
                      "t = 2..100, 3 pairs (x_0, x_t)")

# %%
t, x0_, x_t_ = 20, torch.tensor(2.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
zoom = torch.linspace(-0.5, 3.2, 600, dtype=torch.float64)
prior = normal_density(zoom, alpha_bar[t - 1].sqrt() * x0_, 1 - alpha_bar[t - 1])
root, beta = schedule.alpha[t].sqrt(), schedule.beta[t]
likelihood = normal_density(zoom, x_t_ / root, beta / root**2)
dots = bayes_on_grid(x0_, x_t_, t, zoom)[::12] / (zoom[1] - zoom[0])
m, v = diffusion.posterior(x0_, x_t_, t)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
left.plot(zoom, prior, label="prior $q(x_{t-1} | x_0)$")
left.plot(zoom, likelihood, label="likelihood of $x_t$, scaled to area 1")
left.plot(zoom, normal_density(zoom, m, v), label="posterior, formula")
left.plot(zoom[::12], dots, "k.", ms=4, label="posterior, grid")
left.set(xlabel="$x_{t-1}$", ylabel="density (per unit of $x$)", title="t = 20", ylim=(0, 2.9))
left.legend(fontsize=8, loc="upper left")
steps = torch.arange(2, T + 1)
for name, s in candidates.items():
    right.plot(steps, (s.posterior_variance / s.beta)[2:], label=name)
right.set(xlabel="time t (steps)", ylabel=r"$\tilde\beta_t / \beta_t$", ylim=(0, 1.05))
right.legend()
run.figure(
    fig,
    "posterior",
    alt="Left: a broad prior and a narrower likelihood; their product, the posterior, is narrower "
    "still and lies between them; black grid points lie on it. Right: beta_tilde over beta rises "
    "from about 0.25 at t = 2 to 1.",
    see="the posterior is sharper than either opinion; beta and beta_tilde differ only in the last "
    "steps before the data.",
)

# %% [markdown]
# **Break it.** Writing $\beta_t$ where $\tilde\beta_t$ is meant is a classic mistake. At most $t$ the two
# are almost equal, so nothing looks wrong. But the steps near $t = 0$ are the ones that set the fine
# detail, and there the variance is several times too large.

# %%
ratio = float(schedule.beta[2] / schedule.posterior_variance[2])
no_denominator = (1 - alpha_bar[:-1]) * schedule.beta[1:]
print(f"beta_2 / beta_tilde_2 = {ratio:.1f}")
print(f"without the denominator, at t = 2: {float(no_denominator[1]):.2e} "
      f"instead of {float(schedule.posterior_variance[2]):.2e}")
print(f"beta_tilde_1 = {float(schedule.posterior_variance[1]):.1f}: the last step has no noise")

# %% [markdown]
# ## 6. What a denoiser sees
#
# **Question.** In real life nobody tells you $x_0$. What is the best guess, given $x_t$ alone?
#
# "Best" means least squared error, and the minimiser of squared error is the conditional mean
# $E[x_0 \mid x_t]$. For our mixture it has a closed form. Given $x_t$, mode $k$ has the *responsibility*
#
# <!-- eq: responsibility | Bayes' rule -->
# $$
# r_k(x_t) = \frac{w_k\, \mathcal N(x_t;\, \sqrt{\bar\alpha_t}\, \mu_k,\, v_t)}
#   {\sum_j w_j\, \mathcal N(x_t;\, \sqrt{\bar\alpha_t}\, \mu_j,\, v_t)} .
# $$
#
# Inside mode $k$ both $x_0$ and $x_t$ are Gaussian, so the guess is linear in $x_t$. Together
#
# <!-- eq: mixture-denoiser | derived here -->
# $$
# E[x_0 \mid x_t] = \sum_k r_k(x_t) \left( \mu_k
#   + \frac{\sqrt{\bar\alpha_t}\, s^2}{v_t} \big( x_t - \sqrt{\bar\alpha_t}\, \mu_k \big) \right) .
# $$
#
# **Predict.** At $t = 100$ we observe $x_T = 2$, and one data mode sits exactly at 2. What does the
# perfect denoiser answer? (The data: 30 % near $-1$, 70 % near $2$.)

# %%
guess = None  # your number

# %%
def responsibilities(x_t, a):
    """Probability of each mode given x_t (any shape), where alpha_bar_t = a: (..., 2)."""
    x_t, a = x_t[..., None], a[..., None]
    logits = WEIGHTS.log() - (x_t - a.sqrt() * MEANS) ** 2 / (2 * (a * STD**2 + 1 - a))
    return torch.softmax(logits, -1)


def guess_in_each_mode(x_t, a):
    """E[x_0 | x_t, mode] for each mode: (..., 2)."""
    x_t, a = x_t[..., None], a[..., None]
    gain = a.sqrt() * STD**2 / (a * STD**2 + 1 - a)
    return MEANS + gain * (x_t - a.sqrt() * MEANS)


def ideal_x0_hat(x_t, a):
    """E[x_0 | x_t] of the two-mode data, where alpha_bar_t = a (scalar, or x_t's shape)."""
    return (responsibilities(x_t, a) * guess_in_each_mode(x_t, a)).sum(-1)


answer = float(ideal_x0_hat(torch.tensor(2.0, dtype=torch.float64), alpha_bar[T]))
print(f"E[x_0 | x_100 = 2] = {answer:.2f}; your guess: {guess}")

# %% [markdown]
# Almost the mean of all data, 1.1, a place where there *are* no data. The noise has drowned what
# $x_T$ knew, so the best guess is the average. Remember this picture: **a denoiser's answer is an
# average over possible data, not a data point.** A sharp sample needs many steps.
#
# **Check** the formula against Bayes' rule on a grid over $x_0$.

# %%
x0_grid = torch.linspace(-4.5, 4.5, 4501, dtype=torch.float64)
data_density = marginal_density(x0_grid, alpha_bar[0])
x_t_grid = torch.linspace(-3.5, 3.5, 141, dtype=torch.float64)
error = 0.0
for t in range(1, T + 1):
    a = alpha_bar[t]
    log_weight = data_density.log() - (x_t_grid[:, None] - a.sqrt() * x0_grid) ** 2 / (2 * (1 - a))
    weight = torch.softmax(log_weight, 1)
    mean = weight @ x0_grid
    error = max(error, float((mean - ideal_x0_hat(x_t_grid, a)).abs().max()))
run.metric("denoiser_error", error, unit="1", n=T * len(x_t_grid),
           definition="largest error of the closed form of E[x_0 | x_t] of the mixture against "
                      "Bayes' rule on a grid, t = 1..100, 141 values of x_t")

# %%
fig, ax = plt.subplots(figsize=(7.5, 3.8))
for t in (2, 10, 30, 50, 100):
    a = alpha_bar[t]
    ax.plot(x_t_grid, ideal_x0_hat(x_t_grid, a), label=f"t = {t}, SNR {float(a / (1 - a)):.2g}")
for mean in MEANS:
    ax.axhline(float(mean), color="grey", lw=0.8, ls=":")
ax.set(xlabel="noisy value $x_t$", ylabel="best guess $E[x_0 | x_t]$", ylim=(-2.2, 3.4))
ax.legend(fontsize=8, loc="upper left")
run.figure(
    fig,
    "ideal_denoiser",
    alt="The best guess as a function of x_t at five times. At t = 2 nearly the identity, at 10 a "
    "steep step, at 30 a soft step from -1 to 2, at 50 a gentle slope, at 100 a flat line at 1.1.",
    see="little noise: believe what you see; some noise: decide for a mode (dotted lines); much "
    "noise: answer the mean.",
)

# %% [markdown]
# ### The same guess, as noise
#
# Networks are usually trained to predict the noise $\varepsilon$ rather than $x_0$. Since
# $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon$ holds for every sample, it holds for the
# conditional means too. So a guess of $x_0$ is a guess of $\varepsilon$.
#
# ### Exercise 01.3: the best guess of the noise
# Write `best_eps(x_t, x0_hat, a)`: given $x_t$, the best guess `x0_hat` $= E[x_0 \mid x_t]$ (same shape)
# and `a` $= \bar\alpha_t$ (a scalar tensor), return $E[\varepsilon \mid x_t]$.
#
# <details><summary>Hint 1</summary>
#
# Take the mean given $x_t$ on both sides of the jump formula. What is $E[x_t \mid x_t]$?
#
# <details><summary>Hint 2</summary>
#
# Solve $x_t = \sqrt{a}\, \hat x_0 + \sqrt{1 - a}\, \hat\varepsilon$ for $\hat\varepsilon$.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 01.3
def best_eps(x_t, x0_hat, a):
    """E[eps | x_t] from E[x_0 | x_t]."""
    # STUB: return None
    ### BEGIN SOLUTION
    return (x_t - a.sqrt() * x0_hat) / (1 - a).sqrt()
    ### END SOLUTION

# %% tags=["check"]
exercises.check("01.3", best_eps)

# %% [markdown]
# ### The loss that nobody can avoid
#
# Even the perfect denoiser is wrong, because $x_t$ does not determine $x_0$. Its mean squared error on
# $x_0$ is the average conditional variance $E[\operatorname{Var}(x_0 \mid x_t)]$. Its error on the noise is
# that times the SNR, because the two errors are proportional:
#
# <!-- eq: eps-loss-floor | derived here -->
# $$
# \min_f\, E \lVert f(x_t) - \varepsilon \rVert^2
#   = \frac{\bar\alpha_t}{1 - \bar\alpha_t}\; E\big[\operatorname{Var}(x_0 \mid x_t)\big] .
# $$
#
# **Predict.** At which end of the chain is guessing the *noise* hard: at small $t$ or at large $t$?

# %%
def noise_loss_on_grid(t):
    """Least error on the noise at step t, as an integral over x_t (no random numbers)."""
    a = alpha_bar[t]
    inside = STD**2 - a * STD**4 / (a * STD**2 + 1 - a)  # Var(x_0 | x_t, mode)
    r, m = responsibilities(fine, a), guess_in_each_mode(fine, a)
    between = (r * m**2).sum(1) - (r * m).sum(1) ** 2
    return a / (1 - a) * (marginal_density(fine, a) * (inside + between)).sum() * width


loss_floor = torch.stack([noise_loss_on_grid(t) for t in range(1, T + 1)])

t = torch.randint(1, T + 1, (settings.draws,))
x0 = draw_data(settings.draws)
noise = torch.randn_like(x0)
x_t = diffusion.q_sample(x0, t, noise)
a = alpha_bar[t]
eps_hat = (x_t - a.sqrt() * ideal_x0_hat(x_t, a)) / (1 - a).sqrt()
drawn = (eps_hat - noise).square()
run.metric("eps_loss_floor", loss_floor.mean(), unit="1", n=T,
           definition="mean over t = 1..100 of the least possible squared error on the noise, "
                      "two-mode data, linear schedule, integrated on a grid")
run.metric("eps_loss_drawn", drawn.mean(), unit="1", n=settings.draws, floor=loss_floor.mean(),
           definition="the same error of the closed-form denoiser, by drawing (x_0, t, noise)")

# %%
snr = (alpha_bar / (1 - alpha_bar))[1:]
fig, ax = plt.subplots(figsize=(7.5, 3.4))
ax.plot(range(1, T + 1), loss_floor, label="error on the noise")
ax.plot(range(1, T + 1), loss_floor / snr, label="error on $x_0$")
ax.axhline(float(exact_variance[0]), color="grey", lw=0.8, ls=":", label="variance of the data")
ax.set(xlabel="time t (steps)", ylabel="mean squared error", ylim=(0, 2.1))
ax.legend()
run.figure(
    fig,
    "loss_floor",
    alt="Least squared error over t. The error on the noise falls from 1 to 0.26 at t = 15, rises to "
    "0.45 at t = 28, falls to 0; the error on x_0 rises from 0 to the variance of the data, 1.95.",
    see="noise is hard to guess when there is little of it, data when there is much. The hump near "
    "t = 28 is where the mode is in doubt.",
)

# %% [markdown]
# Two consequences for training. First, a loss of, say, 0.4 can be *perfect*: compare it with its floor,
# not with zero. Secondly, the loss is an average over $t$ of easy and hard problems, so a loss curve that
# looks flat may hide real progress at some $t$.

# %% [markdown]
# ### Play
#
# The widget shows what the denoiser knows at one $x_t$: the law of $x_0$ given $x_t$, and its mean.
# Move $t$ down from 100 with $x_t$ fixed, and see the average become a decision.

# %%
def draw_belief(t, x):
    """The law of x_0 given x_t = x, and its mean."""
    a = alpha_bar[t]
    log_weight = data_density.log() - (x - a.sqrt() * x0_grid) ** 2 / (2 * (1 - a))
    belief = torch.softmax(log_weight, 0) / (x0_grid[1] - x0_grid[0])
    fig, ax = plt.subplots(figsize=(6.5, 2.8))
    ax.fill_between(x0_grid, data_density, color="0.85", label="data")
    ax.plot(x0_grid, belief, label=f"$x_0$ given $x_t$ = {x:g}, t = {t}")
    mean = float(ideal_x0_hat(torch.tensor(x, dtype=torch.float64), a))
    ax.axvline(mean, color="#D55E00", ls="--", label=f"its mean, {mean:.2f}")
    ax.set(xlabel="$x_0$", ylabel="density (per unit of $x$)", xlim=(-2.5, 3.5))
    ax.legend(fontsize=8, loc="upper left")
    return fig


run.figure(
    draw_belief(30, 0.0),
    "belief",
    alt="The data's two modes in grey; the law of x_0 given x_30 = 0 has both, the left one higher "
    "than in the data; a dashed line marks the mean, between them.",
    see="at t = 30 the value 0 leaves both modes possible; the best guess lies where no data are.",
)

# %%
widgets.explore(
    draw_belief,
    t=ipywidgets.IntSlider(30, 1, T),
    x=ipywidgets.FloatSlider(0.0, min=-3, max=3, step=0.1),
)

# %% [markdown]
# ## 7. Break it: a perfect denoiser with a wrong start
#
# **Question.** What does $\bar\alpha_T = 0.36$ cost, if everything else is perfect?
#
# Suppose a sampler draws $x_0$ from the exact law of $x_0$ given $x_T$. Started at the right $x_T$ it returns
# exactly the data. Started at $x_T \sim \mathcal N(0, 1)$, mode $k$ gets the share
#
# <!-- eq: share-from-normal-start | derived here -->
# $$
# \int \mathcal N(x;\, 0, 1)\; r_k(x)\; dx .
# $$
#
# **Predict.** The right mode holds 70 % of the data. Which share do the samples put there when the betas
# are not rescaled?

# %%
guess = None  # your number

# %%
def right_share(a):
    """Share of the right mode in samples that start from N(0, 1) and are otherwise exact."""
    return float((standard * responsibilities(fine, a)[:, 1]).sum() * width)


print(f"betas times 1000/T : {right_share(alpha_bar[-1]):.4f}  (data: 0.7)")
print(f"betas not rescaled : {right_share(unscaled[-1]):.4f}; your guess: {guess}")
run.metric("right_share_rescaled", right_share(alpha_bar[-1]), unit="1", n=len(fine), ceiling=0.7,
           definition="share of the right mode from a start in N(0, 1) and an exact way back, "
                      "linear schedule rescaled to T = 100")
run.metric("right_share_unscaled", right_share(unscaled[-1]), unit="1", n=len(fine), ceiling=0.7,
           definition="the same with the betas of T = 1000 used unscaled at T = 100")

# %% [markdown]
# No network, no training, no discretisation: a wrong start alone moves a sizeable part of the samples
# into the wrong mode. More training cannot repair it. This matters twice in this course, because
# steering a model by a reward moves probability between modes, and you want to see *your* shift, not
# the schedule's.

# %% [markdown]
# ## Recap
#
# - A forward step shrinks and adds noise; the variance stays near 1.
# - $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon$: any step in one jump.
# - A schedule is its curve $\bar\alpha_t$, best read as SNR. It must end with $\bar\alpha_T \le 10^{-3}$.
# - Given $x_0$, one step back is a Gaussian with variance $\tilde\beta_t \le \beta_t$, and $\tilde\beta_1 = 0$.
# - Without $x_0$, the best guess is $E[x_0 \mid x_t]$: an average, not a sample. Its error is not zero.

# %% [markdown]
# ## Results
#
# All metrics of this run, also written to `results.json`.

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - *Off by one.* Arrays here have length $T + 1$ and are indexed by $t$ itself; `alpha_bar[0]` is 1. Code
#   that indexes $0 \dots T-1$ for $t = 1 \dots T$ is common; mixing the two shifts the schedule by a step.
# - *A short schedule.* Check $\bar\alpha_T$ first, whatever the paper says about $T$.
# - *$\sqrt{\cdot}$ forgotten or doubled.* $\alpha_t$ multiplies variances, $\sqrt{\alpha_t}$ multiplies points.
# - *float32 at small $t$.* $1 - \bar\alpha_1$ is about $10^{-3}$ here and $10^{-4}$ at $T = 1000$: compute schedules in
#   float64 and convert at the end.
# - *Data of another size.* All of this assumes data of variance near 1. Scale yours first.
#
# ## Further reading
#
# - Sohl-Dickstein et al. 2015, [Deep Unsupervised Learning using Nonequilibrium Thermodynamics](https://arxiv.org/abs/1503.03585): the idea
# - Ho, Jain, Abbeel 2020, [Denoising Diffusion Probabilistic Models](https://arxiv.org/abs/2006.11239): sections 2 and 3
# - Nichol, Dhariwal 2021, [Improved DDPM](https://arxiv.org/abs/2102.09672): the cosine schedule
# - Kingma et al. 2021, [Variational Diffusion Models](https://arxiv.org/abs/2107.00630): why the SNR is the natural time
#
# ## Next
#
# [02 · DDPM from scratch](02_ddpm_from_scratch.ipynb): replace the closed form of $E[x_0 \mid x_t]$ by a network, and sample.

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
# # 06 · Sampling the payoff distribution
#
# RGDM imitates samples of $p^* \propto p_{ref}\, e^{r/\tau}$. This notebook is about where they come from: weights on
# finished samples, particles inside the chain, and the paper's search in a small ball. You take the ball
# apart into its biases, exactly and without a single random number, and find out when reweighing beats playing.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 40 | 40 | 40 |
# | minutes to run (2 CPU cores) | 1 | 1 | 1 |
# | memory | 1 GB | 1 GB | 1 GB |
# | GPU | not needed | not needed | not needed |
#
# Prerequisites: 05 (payoff distribution, soft values).

# %% [markdown]
# ## Goals
#
# - **weigh** samples, and **read** the effective sample size before believing any of it
# - **steer** particles through the chain, and **derive** the weights that make them exact for any value
# - **separate** the biases of the local payoff, and **repair** them one by one
# - **give** the radius of the ball that has a limit
# - **compute** whose gradient is noisier: REINFORCE's or that of the payoff's weights

# %% tags=["bootstrap"]
# rgdm_lib.course.bootstrap.CELL

# %% tags=["parameters"]
PRESET = "quick"
SEED = 0
OUT_DIR = "runs"

# %%
import math
import warnings

import ipywidgets
import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display

from rgdm_lib import payoff, schedules, stepwise
from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.rewards import Quadratic

run = notebook.start("06_payoff_sampling", PRESET, SEED, OUT_DIR)
settings = run.settings(
    quick={"samples": 40_000, "runs": 8, "draws": 200_000},
    laptop={"samples": 200_000, "runs": 16, "draws": 1_000_000},
    full={"samples": 200_000, "runs": 16, "draws": 1_000_000},
)
F64 = torch.float64


def table(header, rows):
    """Show rows of text as a table."""
    lines = [header, ["---"] * len(header), *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


# %% [markdown]
# ## 1. Weights on samples
#
# **Question.** There are $n$ samples of $p_{ref}$ and their rewards. What more does $p^*$ take?
#
# Nothing: each sample gets the weight $w_i \propto e^{r_i/\tau}$. How many samples is that worth? The **effective
# sample size** says it:
#
# <!-- definition -->
# $$
# ESS = \frac{(\sum_i w_i)^2}{\sum_i w_i^2} ,
# $$
#
# $n$ for equal weights, 1 if one sample has them all. It sees only what is there: a region that no sample reached
# (notebook 05's "break it") is missing from the weights *and* from the ESS.
#
# **Predict.** Two modes of shares 0.7 and 0.3, and a bowl-shaped reward around a point between them. Lower the temperature
# from 4 to 0.01. How many of 10,000 samples are left?

# %%
law = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.4, [0.7, 0.3])
bowl = Quadratic([0.4, 0.8])
x = law.sample(10_000).double()
rows = []
for tau in (4.0, 1.0, 0.25, 0.05, 0.01):
    weighted = payoff.from_data(x, bowl, tau)
    mean = float(weighted.expectation(weighted.reward))
    exact = law.frontier(bowl, tau)[0]
    rows.append([tau, f"{weighted.ess:,.0f}", f"{law.ess_share(bowl, tau) * len(x):,.0f}", f"{mean:.4f}", f"{exact:.4f}"])
table(["tau", "effective samples", "in closed form", "mean reward by weights", "exact"], rows)

# %% [markdown]
# ### What it refuses
#
# Weights fail silently if one lets them. The library stops where there is no answer, and warns where it is a poor one.
#
# **Predict.** Six cases: rewards that are not finite, a temperature of 0, an empty batch, a reward function that returns
# too few values, one sample, and all the weight on one of 100. Which stop, which warn, which are fine?

# %%
points = law.sample(100).double()


def nothing_finite(x):
    return x[:, 0] * math.nan


def lost_one(x):
    return bowl(x)[:-1]


cases = {
    "no finite reward": (points, nothing_finite, 1.0),
    "tau = 0": (points, bowl, 0.0),
    "empty batch": (points[:0], bowl, 1.0),
    "99 rewards for 100 samples": (points, lost_one, 1.0),
    "one sample": (points[:1], bowl, 1.0),
    "all weight on one": (points, bowl, 1e-4),
}
rows = []
for name, (samples, reward, tau) in cases.items():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            outcome = f"fine: ESS {payoff.from_data(samples, reward, tau).ess:.1f}"
        except ValueError as error:
            outcome = f"stops: {error}"
    rows.append([name, f"warns: {said[0].message}" if said else outcome])
table(["case", "answer"], rows)

# %% [markdown]
# One sample has ESS 1 of 1: every expectation is its own value, and no warning can know better. A *single* reward
# that is not finite is no error: that sample has no value, gets weight 0, and is counted.
#
# ## 2. Particles inside the chain
#
# **Question.** Finished samples are judged when all is decided. Can the chain be steered on its way?
#
# Take *any* guess $v_t(x_t)$ of what a state is worth, with $v_0 = r$. A particle starts with the weight
# $e^{v_T/\tau}$ and gains $e^{(v_{t-1} - v_t)/\tau}$ a step. The product telescopes:
#
# <!-- eq: particle-weights-telescope | Del Moral et al. 2006; derived here -->
# $$
# e^{v_T(x_T)/\tau} \prod_{t=1}^{T} e^{(v_{t-1}(x_{t-1}) - v_t(x_t))/\tau} = e^{r(x_0)/\tau} .
# $$
#
# So the weighted law is the sampler's own, tilted by $e^{r/\tau}$, whatever $v$ was. What is gained: where the weights
# become uneven, particles are **resampled** in proportion to them (and the weights start again from 1), so that the
# rest of the walk is spent on the promising ones. A good $v$ leaves many effective samples, a bad one few.
#
# **Predict.** Three values: $r(\hat x_0)$, the reward of the denoised guess; the exact soft value; and one that points the wrong
# way. Which of them give the right mean reward?
#
# (The right answer is the *sampler's own* law, tilted. At 50 steps this sampler is a little narrower than the data.)

# %%
diffusion, TAU = Diffusion(schedules.cosine(50)), 0.25
denoiser = law.denoiser(diffusion.schedule)


def soft_value(x, t):
    return law.soft_value(x, t, diffusion.schedule, bowl, TAU)


def wrong_way(x, t):
    return -0.15 * x[:, 1]


def starts(n):
    return torch.randn(n, 2, dtype=F64)


def finished(eta):
    """Starts and ends of the sampler's own paths."""
    x_T = starts(settings.samples)
    *_, last = diffusion.sample(denoiser, x_T, eta=eta)
    return x_T, last.x


def band(estimates):
    """Mean and its standard error."""
    e = torch.as_tensor(estimates, dtype=F64)
    return float(e.mean()), float(e.std() / len(e) ** 0.5)


def in_batches(reward, log_weight):
    """Weighted mean reward with its standard error, from 20 batches."""
    parts = zip(reward.reshape(20, -1), log_weight.reshape(20, -1), strict=True)
    return band([float(torch.softmax(w, 0) @ r) for r, w in parts])


# %%
_, ends = finished(eta=1.0)
truth, truth_error = in_batches(bowl(ends), bowl(ends) / TAU)
print(f"sampler's own law, tilted: {truth:.4f} +- {truth_error:.4f}; the data's law: {law.frontier(bowl, TAU)[0]:.4f}")
rows, deviation = [], {}
for name, value in {"r of the guess": None, "soft value": soft_value, "wrong way": wrong_way}.items():
    runs = [
        stepwise.particles(denoiser, diffusion, starts(1000), bowl, TAU, value=value)
        for _ in range(settings.runs)
    ]
    mean, error = band([float(w.expectation(w.reward)) for w in runs])
    deviation[name] = abs(mean - truth) / (error**2 + truth_error**2) ** 0.5
    ess, calls = sum(w.ess for w in runs) / len(runs), runs[0].evaluations
    rows.append([name, f"{mean:.4f} +- {error:.4f}", f"{deviation[name]:.1f}", f"{ess:.0f}", f"{calls:,}"])
table(["value", "mean reward", "standard errors off", "effective of 1,000", "reward evaluations"], rows)
run.metric("particle_mean_standard_errors_off", max(deviation.values()), "1", 1000 * settings.runs,
           "largest distance over three values between the particles' mean reward and the sampler's own law "
           "tilted, in standard errors of the difference")  # fmt: skip

# %% [markdown]
# All three are right, and none may be called better for its mean. The difference is in the effective samples: both
# values that know the reward leave some 700 of 1,000, the useless one no more than finished samples have, some
# 200. (One that is resampled late starts again from equal weights: how diverse the survivors are, the ESS does not
# say.) The soft value asks for the reward once a particle, the guess in every state, 51 times. But nobody is given the
# soft value: it must be learned.
#
# ### Exercise 06.1: the weight of a particle
# Write `particle_log_weight(values, tau, resampled_at)`: `values` (S + 1, n) are the values of n particles along
# their paths, row 0 at $x_T$, the last row the rewards of $x_0$. `resampled_at` is the row at which they were last
# resampled, or None. Return their log weights at the end, (n,), not normalised.
#
# <details><summary>Hint 1</summary>
#
# Never resampled: the product above, initial factor and all.
#
# <details><summary>Hint 2</summary>
#
# Resampling at row $k$ spends everything gained up to and with row $k$. What is left are the gains after it.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 06.1
def particle_log_weight(values, tau, resampled_at):
    """Log weights at the end of the chain."""
    # STUB: return None
    ### BEGIN SOLUTION
    spent = 0 if resampled_at is None else values[resampled_at]
    return (values[-1] - spent) / tau
    ### END SOLUTION

# %% tags=["check"]
exercises.check("06.1", particle_log_weight)

# %% [markdown]
# > **Bug museum: the initial factor forgotten.** "All particles start alike, so they start with weight 1." Then the product
# > is $e^{(r - v_T)/\tau}$: the payoff over $e^{v_T(x_T)/\tau}$. With DDPM's noise nobody notices: $x_T$ is forgotten on the way.
# > With little noise ($\eta = 0.2$) the start decides the end, and every sample is weighted wrongly.
#
# **Predict.** The same forgetful weights at $\eta = 1$ and at $\eta = 0.2$: how large is the error in each?

# %%
rows, forgetful = [], {}
for eta in (1.0, 0.2):
    x_T, ends = finished(eta)
    reward = bowl(ends)
    right = in_batches(reward, reward / TAU)
    missing = in_batches(reward, (reward - wrong_way(x_T, None)) / TAU)
    smc = band([
        float(w.expectation(w.reward))
        for w in (
            stepwise.particles(denoiser, diffusion, starts(1000), bowl, TAU, value=wrong_way, eta=eta)
            for _ in range(settings.runs)
        )
    ])  # fmt: skip
    forgetful[eta] = missing[0] - right[0]
    rows.append([eta, *(f"{m:.4f} +- {e:.4f}" for m, e in (right, smc, missing)), f"{forgetful[eta]:+.4f}"])
table(["eta", "tilted", "particles", "factor forgotten", "error"], rows)
run.metric("forgotten_initial_factor_error_eta02", forgetful[0.2], "reward", settings.samples,
           "mean reward of finished samples weighted by exp((r - v_T) / tau) minus that of exp(r / tau), eta = 0.2")  # fmt: skip

# %% [markdown]
# Three lines that find the bug, whatever $v$ is: do not resample, and compare the weights with $e^{r/\tau}$ of the finished samples.

# %%
w = stepwise.particles(denoiser, diffusion, starts(500), bowl, TAU, value=wrong_way, eta=0.2, least_ess=0)
off = float((w.log_weight - payoff.log_weights(bowl(w.x0), TAU)).abs().max())
print(f"carried weights against those of the finished samples: {off:.0e}: {'ok' if off < 1e-9 else 'WRONG'}")

# %% [markdown]
# ## 3. The paper's local payoff, taken apart
#
# **Question.** RGDM's paper (Zhang & Xu 2023) draws, at each step, from $e^{reward/\tau}$ on a ball around the next reverse sample. How
# far from $p^*$ does that lead, and which part of it is to blame?
#
# Samples would only blur the answer. On a line the chain can be put on a **grid**: 401 points, 40 steps, one
# matrix a step. Then it is a finite chain, with exact laws, soft values and payoff, and every variant below is a matrix
# product. (The last step has the noise of variance $\beta_1$, so that it is a matrix too.)

# %%
def grid_chain(T, n=401):
    """Points, start, kernels, means, widths and denoised guesses of the reference on a grid; index t - 1 is step t."""
    law, chain = GaussianMixture([[-1.0], [1.0]], 0.4, [0.6, 0.4]), Diffusion(schedules.cosine(T))
    y = torch.linspace(-4, 4, n, dtype=F64)
    kernels, means, widths, guesses = [], [], [], [y]
    for t in range(1, T + 1):
        eps = law.denoiser(chain.schedule)(y[:, None], torch.full((n,), t))
        mean, _, guess = chain.step(y[:, None], t, t - 1, eps)
        widths.append(chain.path_std(t, t - 1))
        means.append(mean)
        guesses.append(guess[:, 0].clamp(-4, 4))
        kernels.append(torch.softmax(-(y - mean).square() / (2 * widths[-1] ** 2), 1))
    return y, torch.softmax(-(y**2) / 2, 0), kernels, means, widths, guesses


def walk(start, kernels):
    """Law of x_0 after all steps, from the last kernel down to the first."""
    for kernel in reversed(kernels):
        start = start @ kernel
    return start


y, start, kernels, means, widths, guesses = grid_chain(40)
reference = walk(start, kernels)
rewards = {  # reward, temperature
    "linear": (lambda y: y, 1.0),
    "concave": (lambda y: -2 * (y - 0.3) ** 2, 0.5),
    "indicator": (lambda y: (y > 0.5).to(y), 0.5),
    "oscillating": (lambda y: torch.cos(4 * math.pi * y), 0.5),
}

# %% [markdown]
# The four variants, each with one repair more:
#
# 1. **published**: the kernel's sample $c$, then $e^{r(\hat x_0)/\tau}$ on the ball around $c$, normalised in each ball
#    (the library has no ball in the last step: its own row);
# 2. **$p_{ref}$ back inside the ball**: its points no longer count alike;
# 3. **centred on the mean**: the noise counts once. ($p_{ref}$ is centred there already, so the ball is opened);
# 4. now one of two. **The soft value** in place of $r(\hat x_0)$; *or* **the normalisers carried** as weights.
#
# **Predict.** Which single repair helps most? And must the last two both be made?

# %%
def normalised(matrix):
    return matrix / matrix.sum(1, keepdim=True)


def ball_about_sample(v, radius=0.2):
    """Published kernels; v (n,) are exp(value / tau) of the next state, one a step."""
    inside = ((y - y[:, None]).abs() <= radius).to(F64)
    return [kernel @ normalised(inside * g) for kernel, g in zip(kernels, v, strict=True)]


def ball_with_reference(v, radius=0.2):
    inside = ((y - y[:, None]).abs() <= radius).to(F64)
    made = []
    for kernel, g in zip(kernels, v, strict=True):
        total = (kernel * g) @ inside  # row: x_t, column: the centre
        made.append(kernel * g * ((kernel / total.clamp_min(1e-300)) @ inside))
    return made


def tilted_kernels(v):
    return [normalised(kernel * g) for kernel, g in zip(kernels, v, strict=True)]


def soft_values(r, tau, kernels):
    """exp(V / tau) on the grid, t = 0 to T."""
    values = [(r / tau).exp()]
    for kernel in kernels:
        values.append(kernel @ values[-1])
    return values


def carried(v, start, kernels):
    """The weighted law of particles: initial factor, and the gain of each step."""
    p = start * v[-1]
    for t in range(len(kernels), 0, -1):
        p = (p / v[t]) @ (kernels[t - 1] * v[t - 1])
    return p / p.sum()


# %%
def distance(p, q):
    """Total variation, in 0 to 1."""
    return float((p - q).abs().sum() / 2)


laws, apart = {}, {}
for name, (r, tau) in rewards.items():
    exact = reference * (r(y) / tau).exp()
    guess, soft = [(r(g) / tau).exp() for g in guesses], soft_values(r(y), tau, kernels)
    laws[name] = {
        "exact": exact / exact.sum(),
        "reference": reference,
        "published": walk(start, ball_about_sample(guess[:-1])),
        "published, no last ball": walk(start, [kernels[0], *ball_about_sample(guess[:-1])[1:]]),
        "p_ref in the ball": walk(start, ball_with_reference(guess[:-1])),
        "about the mean": walk(start, tilted_kernels(guess[:-1])),
        "soft value": walk(start, tilted_kernels(soft[:-1])),
        "or: carried": carried(guess, start, kernels),
    }
    apart[name] = {k: distance(p, laws[name]["exact"]) for k, p in laws[name].items() if k != "exact"}
variants = list(apart["linear"])
table(["distance to the payoff", *rewards], [[v, *(f"{apart[r][v]:.4f}" for r in rewards)] for v in variants])
shift = {k: float((p - laws["linear"]["exact"]) @ y) for k, p in laws["linear"].items()}
print("linear reward, error of the mean:", {k: round(v, 3) for k, v in shift.items() if k != "exact"})
for v in ("published", "about the mean", "soft value"):
    run.metric(f"local_payoff_tv_linear_{v.replace(' ', '_')}", apart["linear"][v], "1", len(y),
               f"total variation between the law of x_0 and the payoff on the grid, linear reward, variant: {v}")  # fmt: skip

# %%
fig, axes = plt.subplots(1, 4, figsize=(13, 3.2))
step = float(y[1] - y[0])
for ax, name in zip(axes, rewards, strict=True):
    ax.fill_between(y, laws[name]["exact"] / step, color="0.85", label="payoff")
    for v in ("published", "about the mean", "soft value"):
        ax.plot(y, laws[name][v] / step, lw=1.2, ls="--" if v == "soft value" else "-", label=v)
    ax.set(title=name, xlabel="$x_0$", xlim=(-2.5, 2.5))
axes[0].set_ylabel("density")
axes[0].legend(fontsize=7)
run.figure(
    fig,
    "local_payoff",
    alt="Densities of x_0 under four rewards. The dashed line of the soft value lies on the grey payoff everywhere; the "
    "published form and the mean-centred one do not.",
    see="with the soft value the law is the payoff's. Every other line misses somewhere, each in its own way.",
)

# %% [markdown]
# Read the table downwards.
#
# - Under a linear reward the published form covers a small part of the way: a ball of radius 0.2 reaches too little of each step.
# - $p_{ref}$ inside the ball alone does not help. Biases do not add up: some cancel. (The published form is *best* of the
#   first three under the oscillating reward: its last ball sees true rewards and spans most of a period. Without that ball it
#   is twice as far.)
# - Centred on the mean, only $r(\hat x_0)$ is left to blame: little under a linear reward, most where the reward bends or jumps.
# - **The third and the fourth bias are one.** With the soft value the row's sum *is* $e^{V_t/\tau}$: nothing is lost by normalising. With any
#   other value, carrying the sums repairs it. One of the two will do; without both, nothing does.
#
# (The soft value's law keeps the start, notebook 05: here that costs less than can be seen.)
#
# ### A radius without a limit
#
# **Predict.** No reward at all, so that every ball is harmless. Take the library's published form, radius 0.2, with
# 25, 100, 400, 1,600 steps. What happens to the width of the samples?
#
# A uniform point in a ball of radius $\rho$ in $d$ dimensions has covariance $\rho^2 I/(d + 2)$. Added at each of $T$ steps,
# it grows with $T$, while the step's own noise shrinks. What has a limit is a ball *instead* of the noise, about the mean,
# with the step's covariance:
#
# <!-- eq: ball-radius-rule | derived here -->
# $$
# \rho_t = \sqrt{(d + 2)\, \mathrm{Var}(x_{t-1} \mid x_t)} .
# $$

# %%
def width_ratio(T, radius=None, d=2, spread=0.5):
    """Width of x_0 over the truth, N(0, spread^2 I): exact. radius: about the sample; None: the rule, about the mean."""
    chain, variance = Diffusion(schedules.cosine(T)), 1.0
    for t in range(T, 0, -1):
        a = float(chain.schedule.alpha_bar[t])
        eps = torch.tensor([[(1 - a) ** 0.5 / (a * spread**2 + 1 - a)]], dtype=F64)  # of x_t = 1
        mean, std, _ = chain.step(torch.ones(1, 1, dtype=F64), t, t - 1, eps)
        variance = float(mean) ** 2 * variance + std**2  # the rule: same covariance as the noise
        if radius is not None and t > 1:
            variance += radius**2 / (d + 2)
    return variance**0.5 / spread


def sampled_ratio(T, **options):
    gauss, chain = GaussianMixture([[0.0, 0.0]], 0.5), Diffusion(schedules.cosine(T))
    ball = stepwise.local_ball(
        gauss.denoiser(chain.schedule), chain, starts(10_000), lambda x: 0 * x[:, 0], 1.0, 1, **options
    )
    return float(ball.x0.std() / 0.5)


lengths = (25, 50, 100, 200, 400)
fixed, rule = ([width_ratio(T, radius) for T in lengths] for radius in (0.2, None))
fig, ax = plt.subplots(figsize=(5.8, 3.4))
ax.semilogx(lengths, fixed, "-", color="C3", label="radius 0.2 about the sample")
ax.semilogx(lengths, rule, "-", color="C0", label="the rule, about the mean")
for options, color in (({"radius": 0.2, "centre": "sample"}, "C3"), ({}, "C0")):
    for T in (25, 100, 400):
        sampled, exact = sampled_ratio(T, **options), width_ratio(T, options.get("radius"))
        ax.plot(T, sampled, "o", color=color)
        assert abs(sampled / exact - 1) < 4 / 40_000**0.5  # four standard errors of a width
ax.axhline(1, color="0.6", ls=":")
ax.set(xlabel="steps $T$", ylabel="width over the truth")
ax.set_xticks(lengths, lengths)
ax.minorticks_off()
ax.legend(fontsize=8)
run.figure(
    fig,
    "radius",
    alt="Width of the samples over the truth against the number of steps. A fixed radius of 0.2 rises from 1.0 to 2.2; "
    "the rule rises to 1 from below.",
    see="lines: exact; dots: 10,000 samples of the library. More steps make a fixed radius worse.",
)
run.metric("width_fixed_radius_400_steps", fixed[-1], "1", 400,
           "standard deviation of x_0 over the truth, N(0, 1/4) in 2 dimensions, no reward, balls of radius 0.2 "
           "about the sample, 400 steps, exact")  # fmt: skip
run.metric("width_rule_400_steps", rule[-1], "1", 400, "the same with the ball about the mean and the rule's radius")

# %% [markdown]
# ### Exercise 06.2: the radius
# Write `ball_radius(variance, d)`: `variance` is that of one coordinate of the step, `d` the number of coordinates.
#
# <details><summary>Hint</summary>
#
# The rule above: which radius gives $\rho^2/(d + 2)$ the step's variance?
#
# </details>

# %% tags=["exercise"]
# Exercise 06.2
def ball_radius(variance, d):
    """Radius of the ball with the step's covariance."""
    # STUB: return None
    ### BEGIN SOLUTION
    return math.sqrt((d + 2) * variance)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("06.2", ball_radius)

# %% [markdown]
# ### Break it: 1,600 steps
#
# **Predict.** More steps make a sampler better. With the fixed radius, how wide are the samples at $T = 1600$?

# %%
broken, kept = width_ratio(1600, 0.2), width_ratio(1600)
print(f"1,600 steps: {broken:.2f} times too wide; with the rule {kept:.3f}")
assert broken > 4 and abs(kept - 1) < 0.01

# %% [markdown]
# ### Turn the radius
#
# **Predict.** The published form on the grid, linear reward. A small ball does nothing. Is there a radius at which it is right?

# %%
def published_law(radius, name="linear"):
    r, tau = rewards[name]
    inside, p = ((y - y[:, None]).abs() <= radius).to(F64), start
    for t in range(40, 0, -1):
        p = (p @ kernels[t - 1]) @ normalised(inside * (r(guesses[t - 1]) / tau).exp())
    return p


def draw_radius(ax, radius):
    p = published_law(radius)
    ax.fill_between(y, laws["linear"]["exact"] / step, color="0.85", label="payoff")
    ax.plot(y, p / step, label="published")
    ax.set(title=f"radius {radius:.2f}: distance {distance(p, laws['linear']['exact']):.2f}", xlabel="$x_0$")


def show_radius(radius):
    fig, ax = plt.subplots(figsize=(5, 3))
    draw_radius(ax, radius)
    ax.set_ylabel("density")
    ax.legend(fontsize=8)
    return fig


fig, axes = plt.subplots(1, 3, figsize=(11, 3), sharey=True)
for ax, radius in zip(axes, (0.1, 0.3, 0.6), strict=True):
    draw_radius(ax, radius)
axes[0].set_ylabel("density")
axes[0].legend(fontsize=8)
run.figure(
    fig,
    "turn_the_radius",
    alt="The published form's density against the payoff for radii 0.1, 0.3 and 0.6: too little tilted, then too wide and "
    "tilted too far.",
    see="no radius gives the payoff: what moves the mean also widens the law.",
)
radii = [k / 20 for k in range(1, 15)]
best = min((distance(published_law(radius), laws["linear"]["exact"]), radius) for radius in radii)
print(f"best of {len(radii)} radii: {best[1]:.2f}, at a distance of {best[0]:.3f}")
assert best[0] > 0.2
slider = ipywidgets.FloatSlider(value=0.3, min=0.05, max=0.7, step=0.05, continuous_update=False)
widgets.explore(show_radius, radius=slider)

# %% [markdown]
# ### $r(\hat x_0)$ is not the soft value
#
# **Question.** How far is the guess's reward from $V$, and will shorter steps help?
#
# Expand the reward about $\hat x_0 = \mathbb E[x_0 \mid x_t]$, gradient $g$, Hessian $H$:
#
# <!-- eq: guess-against-value | derived here -->
# $$
# V_t - r(\hat x_0) \approx \tfrac12\, \mathrm{tr}\Big[\Big(H + \frac{g g^\top}{\tau}\Big)\,
# \mathrm{Cov}(x_0 \mid x_t)\Big] .
# $$
#
# It is the covariance of what is not yet decided. That does not know how many steps there are.
#
# **Predict.** Order the four rewards by what $r(\hat x_0)$ costs, with a ball that is right in everything else.

# %%
def ball_by_the_rule(v, chain):
    points, _, kernels, means, widths, _ = chain
    made = []
    for mean, width, g in zip(means, widths, v, strict=True):
        made.append(normalised(((points - mean).abs() <= 3**0.5 * width) * g))
    return made


rows = []
for T, n in ((20, 401), (40, 401), (80, 801)):
    chain = grid_chain(T, n)
    unguided, found = walk(*chain[1:3]), {"soft value": [], "r of the guess": [], "no guidance": []}
    for r, tau in rewards.values():
        exact = unguided * (r(chain[0]) / tau).exp()
        soft, guess = soft_values(r(chain[0]), tau, chain[2]), [(r(g) / tau).exp() for g in chain[5]]
        ends = [walk(chain[1], ball_by_the_rule(v[:-1], chain)) for v in (soft, guess)]
        for value, law_of_end in zip(found, [*ends, unguided], strict=True):
            found[value].append(distance(law_of_end, exact / exact.sum()))
    rows += [[T, value, *(f"{d:.3f}" for d in row)] for value, row in found.items()]
table(["steps", "value", *rewards], rows)
for value in ("soft value", "r of the guess", "no guidance"):
    run.metric(f"rule_tv_oscillating_80_steps_{value.replace(' ', '_')}", found[value][-1], "1", n,
               "total variation to the payoff on the grid, oscillating reward, 80 steps, balls by the rule "
               f"about the mean, value: {value}")  # fmt: skip
assert max(found["soft value"]) < 0.03 < min(found["r of the guess"])

# %% [markdown]
# With the soft value some 0.02 are left: a ball has the Gaussian's covariance, not its shape. With $r(\hat x_0)$ the error
# stays. **More steps do not help**, and under the oscillating reward they do harm: at 80 steps it is worse than no guidance at all.
#
# ## 4. Whose gradient is noisier?
#
# **Question.** The paper says that imitating payoff samples "alleviates the high gradient variance" of policy gradients. When?
#
# One Gaussian knows the answer in closed form. Policy and reference are $N(m_0, s_0^2 I)$ in $d$ dimensions, the reward
# is a bowl, $-\tfrac k2 |x - a|^2$. Two numbers matter: the **pull** $\kappa = k s_0^2/\tau$ and the **distance**
# $\delta = |a - m_0|/s_0$. Both gradients are of the mean. The measure is $\mathrm{tr}\, \mathrm{Cov}(g) / |\mathbb E g|^2$, the **relative
# variance** a sample: divide by $n$ for a batch. REINFORCE with the mean reward as its baseline:
#
# <!-- eq: reinforce-relative-variance | derived here -->
# $$
# \mathrm{RV}_{play} = d + 1 + \frac{d^2 + 4d}{2 \delta^2} .
# $$
#
# The weighted log-likelihood, with weights $w = e^{r/\tau}/Z$. Their second moment is one over the effective share,
#
# <!-- eq: payoff-weight-second-moment | derived here -->
# $$
# \mathbb E[w^2] = \Big(\frac{1 + \kappa}{\sqrt{1 + 2\kappa}}\Big)^{d}
# \exp\!\Big(\frac{\kappa^2 \delta^2}{(1 + \kappa)(1 + 2\kappa)}\Big) ,
# $$
#
# and $w^2 p_{ref}$ is a Gaussian again, of pull $2\kappa$:
#
# <!-- eq: payoff-relative-variance | derived here -->
# $$
# \mathrm{RV}_{imitate} = \mathbb E[w^2]\;
# \frac{d/(1 + 2\kappa) + 4\kappa^2\delta^2/(1 + 2\kappa)^2}{\kappa^2\delta^2/(1 + \kappa)^2} - 1 .
# $$
#
# The score has mean 0 under the reference, so imitation may have a baseline as well: $w - 1$ for $w$. With
# $A = \mathbb E[w^2]\big(d/(1 + 2\kappa) + 4\kappa^2\delta^2/(1 + 2\kappa)^2\big)$ and
# $C = \kappa^2\delta^2/(1 + \kappa)^2$,
#
# <!-- eq: payoff-relative-variance-with-baseline | derived here -->
# $$
# \mathrm{RV}_{imitate,\,w - 1} = \frac{A - 2\big(d/(1 + \kappa) + C\big) + d}{C} - 1 .
# $$

# %%
def rv_play(kappa, delta, d):
    return d + 1 + (d**2 + 4 * d) / (2 * delta**2) + 0 * kappa


def rv_imitate(kappa, delta, d, baseline=0.0):
    kappa, delta = (torch.as_tensor(v, dtype=F64) for v in (kappa, delta))
    second = ((1 + kappa) / (1 + 2 * kappa).sqrt()) ** d
    second = second * (kappa**2 * delta**2 / ((1 + kappa) * (1 + 2 * kappa))).exp()
    A = second * (d / (1 + 2 * kappa) + 4 * kappa**2 * delta**2 / (1 + 2 * kappa) ** 2)
    C = kappa**2 * delta**2 / (1 + kappa) ** 2
    return (A - 2 * baseline * (d / (1 + kappa) + C) + baseline**2 * d) / C - 1


# %% [markdown]
# **Predict.** Small pull means a hot temperature: all weights nearly 1. Is imitation then quieter than playing, or noisier?

# %%
def relative_variance_band(g):
    """trace(Cov) / |mean|^2 of draws (n, d), and a standard error from 20 batches."""
    return band([float(part.var(0).sum() / part.mean(0).square().sum()) for part in g.chunk(20)])


rows, worst = [], 0.0
for kappa, delta, d in ((0.1, 1.0, 2), (1.0, 1.0, 2), (1.0, 0.5, 2), (1.0, 1.0, 8), (2.0, 2.0, 2)):
    x = torch.randn(settings.draws, d, dtype=F64)
    centre = torch.zeros(d, dtype=F64)
    centre[0] = delta
    r = Quadratic(centre, kappa)
    log_z = GaussianMixture(torch.zeros(1, d), 1.0).log_Z(r, 1.0)
    w, reward = (r(x) - log_z).exp(), r(x)
    mean_reward = -kappa * (delta**2 + d) / 2
    row = [kappa, delta, d]
    for weight, exact in (
        (reward - mean_reward, rv_play(kappa, delta, d)),
        (w, float(rv_imitate(kappa, delta, d))),
        (w - 1, float(rv_imitate(kappa, delta, d, 1.0))),
    ):
        found, error = relative_variance_band(weight[:, None] * x)
        worst = max(worst, abs(found - exact) / error)
        row.append(f"{found:.2f} +- {error:.2f} ({exact:.2f})")
    rows.append(row)
table(["kappa", "delta", "d", "play (exact)", "imitate", "imitate, w - 1"], rows)
run.metric("relative_variance_standard_errors_off", worst, "1", settings.draws,
           "largest distance between Monte Carlo and closed-form relative variances, in standard errors of 20 batches")  # fmt: skip
assert worst < 5

# %%
pull, far = torch.logspace(-2, 1.5, 120, dtype=F64), torch.linspace(0.1, 3, 100, dtype=F64)
K, D = torch.meshgrid(pull, far, indexing="xy")
fig, axes = plt.subplots(2, 2, figsize=(9.5, 6.6), sharex=True, sharey=True)
wins = {}
for row, baseline in zip(axes, (0.0, 1.0), strict=True):
    for ax, d in zip(row, (1, 8), strict=True):
        ratio = (rv_play(K, D, d) / rv_imitate(K, D, d, baseline)).log10()
        image = ax.pcolormesh(pull, far, ratio, cmap="RdBu", vmin=-2, vmax=2, rasterized=True)
        ax.contour(pull, far, ratio, [0.0], colors="k", linewidths=1)
        ax.set(xscale="log", title=f"d = {d}, weights {'w - 1' if baseline else 'w'}")
        wins[baseline, d] = (float(D[ratio > 0].max()) if bool((ratio > 0).any()) else 0.0, float(ratio.max()))
for ax in axes[1]:
    ax.set_xlabel("pull $\\kappa$ (cold to the right)")
for ax in axes[:, 0]:
    ax.set_ylabel("distance $\\delta$")
fig.colorbar(image, ax=axes, label="log10 of play's over imitation's relative variance")
run.figure(
    fig,
    "who_wins",
    alt="Four maps over pull and distance: without a baseline imitation wins in a window of middle pull; with the baseline it "
    "also wins at small pull. At large pull or large distance playing wins.",
    see="blue: imitation is quieter; red: playing is; black: the border.",
)
for (baseline, d), (most, best) in wins.items():
    print(f"baseline {baseline:.0f}, d = {d}: imitation wins up to delta = {most:.2f}, at best by a factor {10**best:.1f}")

# %% [markdown]
# Neither always wins. Cold temperatures and far goals leave few effective samples, and that is variance. Hot ones cost imitation
# as much: all weights are 1, and the mean drowns in the score's noise. The baseline repairs that end (and costs a little at the cold
# one, where 1 is too much). Hot, the two become **the same estimator**, since to first order in $1/\tau$
#
# <!-- eq: same-estimator-at-large-tau | derived here -->
# $$
# w - 1 = \frac{r - \bar r}{\tau} + O(\tau^{-2}) .
# $$

# %%
for kappa in (1.0, 0.1, 0.01, 0.001):
    ratio = float(rv_play(kappa, 1.0, 2) / rv_imitate(kappa, 1.0, 2, 1.0))
    print(f"kappa = {kappa:g}: play over imitate {ratio:.3f}; without a baseline "
          f"{float(rv_play(kappa, 1.0, 2) / rv_imitate(kappa, 1.0, 2)):.5f}")  # fmt: skip
assert abs(ratio - 1) < 0.01

# %% [markdown]
# So "lower variance" is not a theorem. What does help RGDM is something else: one batch of rewards serves many steps, since its target does not
# move.
#
# ### Exercise 06.3: relative variance
# Write `relative_variance(g)`: `g` (n, p) are draws of a gradient. Return $\mathrm{tr}\,\mathrm{Cov}(g)/|\bar g|^2$, a number
# (over n or n - 1, as you like).
#
# <details><summary>Hint</summary>
#
# The trace is the sum of the coordinates' variances.
#
# </details>

# %% tags=["exercise"]
# Exercise 06.3
def relative_variance(g):
    """Relative variance of a draw."""
    # STUB: return None
    ### BEGIN SOLUTION
    return g.var(0).sum() / g.mean(0).square().sum()
    ### END SOLUTION

# %% tags=["check"]
exercises.check("06.3", relative_variance)

# %% [markdown]
# ## Recap
#
# - Weights on samples are $p^*$, if there are enough effective ones. The ESS sees only what was sampled.
# - Carried weights telescope: particles are right for any value, with the initial factor. A good value leaves more of them.
# - The local payoff drops $p_{ref}$, counts the noise twice, and takes $r(\hat x_0)$ for $V$ while normalising each ball by itself. The
#   soft value or the carried sums repair the last two at once.
# - A fixed radius has no limit in $T$; $\rho_t^2 = (d + 2)\,\mathrm{Var}$ about the mean has.
# - Imitation is not always quieter than playing. With a baseline they agree at high temperature.

# %% [markdown]
# ## Results

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - **An ESS taken for coverage**: a mode that no sample reached is missing from it.
# - **The initial factor forgotten**: compare unresampled weights with $e^{r/\tau}$.
# - **A sampler judged by the data's law**: particles follow the *sampler's* law, tilted.
# - **Best of K or the local ball taken for $p^*$**: they carry no weights, and more proposals do not repair the value.
# - **A radius tuned at one $T$**: it is wrong at another.
#
# ## Further reading
#
# - Del Moral, Doucet & Jasra 2006, *Sequential Monte Carlo samplers*: particles and their weights
# - Wu et al. 2023, *Practical and asymptotically exact conditional sampling in diffusion models*, arXiv 2306.17775
# - Li et al. 2024, *Derivative-free guidance in continuous and discrete diffusion models*, arXiv 2408.08252: best of K
# - Zhang & Xu 2023, *Towards controllable diffusion models via reward-guided exploration*, arXiv 2304.07132
# - Owen, *Monte Carlo theory, methods and examples*, chapter 9: weights and effective sample size
#
# ## Next
#
# `07_rgdm`: the samples are there; now a network learns to imitate them.

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
# # 07 · RGDM: train toward the payoff distribution
#
# You have a diffusion model and a reward: any function of a finished sample, with or without a gradient.
# You want the model to produce what the reward likes, without forgetting what real samples look like. At the
# end of this notebook you will have written the whole method on one screen, run it on a world where the
# right answer is known exactly, and put one number on how close it came: 1 means "as close as a fresh
# exact sample".

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 40 | 40 | 40 |
# | minutes to run (2 CPU cores) | 0.7 | 20 | 60 |
# | memory | 1 GB | 1 GB | 1 GB |
# | GPU | not used | not used | not used |
#
# Prerequisites: [02 · DDPM from scratch](02_ddpm_from_scratch.ipynb): the denoising loss and the sampler.

# %% [markdown]
# ## Goals
#
# - **state** the fixed target that a reward and a temperature define
# - **weight** samples of a model so that they follow that target, and **count** what they are still worth
# - **derive** why training on weighted samples is plain denoising
# - **write** RGDM in twenty lines, several rounds of it, with weights back to one fixed target
# - **measure** the result against the exact answer, in distance and in the reward-KL plane
# - **break** it with a temperature that is too low, and with a loop that moves its own target
# - **compare** it with a dozen rivals at equal terms, and **choose** between them

# %% tags=["bootstrap"]
# rgdm_lib.course.bootstrap.CELL

# %% tags=["parameters"]
PRESET = "quick"
SEED = 0
OUT_DIR = "runs"

# %%
import copy
import json
import math
import warnings
from functools import partial

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch

from rgdm_lib import accuracy, comparison, payoff, rgdm, schedules
from rgdm_lib._data import data_path
from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.payoff import log_weights, next_beta, systematic_resample
from rgdm_lib.training import Trainer
from rgdm_lib.worlds import known, metrics, mixtures, sampling
from rgdm_lib.worlds.nets import PRETRAINING, MLPDenoiser
from rgdm_lib.worlds.rewards import Linear

run = notebook.start("07_rgdm", PRESET, SEED, OUT_DIR)
torch.set_num_threads(1)  # the network is small: a second thread costs more than it brings
settings = run.settings(
    quick={"T": 50, "hidden": 64, "base_steps": 1000, "n": 4000, "rounds": 3, "steps": 300, "draws": 2, "N": 4000},
    laptop={"T": 400, "hidden": 128, "base_steps": 30_000, "n": 5000, "rounds": 4, "steps": 1500, "draws": 10, "N": 10_000},
    full={"T": 1000, "hidden": 128, "base_steps": 60_000, "n": 5000, "rounds": 4, "steps": 1500, "draws": 10, "N": 10_000},
)
N = settings.N  # points behind every distance below

# %% [markdown]
# ## 1. The question, and a world that knows the answer
#
# **Question.** A reward $r(x_0)$ says how good a finished sample is. What exactly should the trained
# model produce?
#
# "Samples of the highest reward" is the wrong answer: it is a single point, and usually one that no real
# sample resembles (a molecule that fools the score, a picture that fools the classifier). Maximum-entropy
# reinforcement learning asks for reward *and* for staying close to a reference model $p_{ref}$:
#
# <!-- definition -->
# $$
# J(\theta) = E_{p_\theta}[r(x_0)] - \tau\, KL(p_\theta \,\|\, p_{ref}) .
# $$
#
# The temperature $\tau > 0$ is the price of moving away by one nat, in units of reward. Write the KL out and
# complete it to the log of a density, and the maximum can be read off:
#
# <!-- eq: maxent-is-kl-to-payoff | derived here -->
# $$
# J(\theta) = \tau \log Z - \tau\, KL(p_\theta \,\|\, p^*) ,
# \qquad p^*(x_0) = \frac{p_{ref}(x_0)\, e^{r(x_0)/\tau}}{Z}, \qquad Z = E_{p_{ref}}\big[e^{r/\tau}\big] .
# $$
#
# So the best model is $p^*$, the **payoff distribution**: the reference, reweighted. It is *fixed*. It depends
# on the reference, on the reward and on the temperature, and on nothing that happens in training. Keep this
# sentence in mind: most of what goes wrong in practice is a target that moves.
#
# Our world: $p_{ref}$ is a ring of eight Gaussians of width $s$, and the reward is linear, $r(x) = b \cdot x$. For
# this pair the payoff distribution is again a mixture of eight Gaussians, and we can write it down. A
# Gaussian times $e^{b \cdot x/\tau}$ is a Gaussian of the same width, moved along $b$:
#
# <!-- eq: payoff-of-mixture-under-linear-reward | derived here -->
# $$
# p^*(x) = \sum_k \pi^*_k\, \mathcal N\!\Big(x;\; m_k + \frac{s^2}{\tau} b,\; s^2 I\Big) ,
# \qquad \pi^*_k \propto \pi_k \exp\!\Big(\frac{b \cdot m_k}{\tau} + \frac{s^2 |b|^2}{2 \tau^2}\Big) .
# $$
#
# Two things happen at once: *modes* gain or lose weight, and *every mode moves*. A method that only
# selects among modes gets the first and misses the second.

# %%
world = mixtures.ring(modes=8, radius=1.5, std=0.15)
reward = Linear([math.cos(math.pi / 8), math.sin(math.pi / 8)])
SHARE = 0.1  # what the temperature is fixed by, see section 3
tau = world.temperature(reward, SHARE)
exact = world.tilt(reward, tau)
print(f"tau = {tau:.4f}")
print("share of each mode, reference:", [round(w, 3) for w in world.weights.tolist()])
print("share of each mode, payoff:   ", [round(w, 3) for w in exact.weights.tolist()])
moved = (exact.means - world.means).norm(dim=1)
print(f"every mode moves by {float(moved[0]):.4f}")

# %% [markdown]
# **Predict.** The reward points to the upper right, at 22.5 degrees, between two of the modes. Where will the
# payoff distribution have its mass? Will any mode vanish entirely?

# %%
def density(ax, law, title, width=2.3):
    """Draw a density in the plane."""
    side = torch.linspace(-width, width, 200, dtype=torch.float64)
    x, y = torch.meshgrid(side, side, indexing="xy")
    p = law.log_prob(torch.stack([x.flatten(), y.flatten()], 1)).exp().reshape(x.shape)
    ax.imshow(p, extent=[-width, width, -width, width], origin="lower", cmap="magma")
    ax.set(title=title, xlabel="$x_1$", ylabel="$x_2$")
    ax.set_aspect("equal")


fig, axes = plt.subplots(1, 2, figsize=(8, 3.8))
density(axes[0], world, "reference $p_{ref}$")
density(axes[1], exact, r"payoff $p^* \propto p_{ref}\, e^{r/\tau}$")
axes[1].arrow(0, 0, 0.8 * float(reward.slope[0]), 0.8 * float(reward.slope[1]),
              color="white", width=0.02, head_width=0.12)
run.figure(fig, "world",
           alt="Two densities in the plane: eight equal blobs on a ring, and the same ring with almost all "
               "mass in the blobs at the upper right, where the reward's arrow points.",
           see="The reward moves mass to the side its arrow points to; the far side fades but never "
               "vanishes, for its density is multiplied by a small number, not by zero.")

# %% [markdown]
# ## 2. The reference model
#
# Nobody hands us $p_{ref}$ as a formula. We have a *network* that was trained on data, and the method may use
# nothing else: its samples, and the reward of finished samples. So we first train that network, exactly as
# in notebook 02, and only look at the formula again to judge the result.
#
# One thing needs care before that. What a sampler draws in finitely many steps is a little too narrow, and here that counts twice: weights
# move a mode by $s^2 |b| / \tau$, with the width $s$ that the *samples* have. Of a single Gaussian the exact denoiser is linear, so the width
# after all steps follows in closed form (`sampling.sampled_width`).
#
# **Predict.** Steps even in the cosine schedule's angle, or steps that are short where there is little noise, as many of them: which
# narrows a mode of width 0.15 more?

# %%
schedule = sampling.fine_schedule(settings.T)
diffusion = Diffusion(schedule)
widths = {"even": sampling.sampled_width(Diffusion(schedules.cosine(settings.T)), 0.15),
          "short at little noise": sampling.sampled_width(diffusion, 0.15)}
for name, width in widths.items():
    print(f"{settings.T} steps, {name}: width {width:.3f} of what it should be; weights then move a mode by {width**2:.3f} of its way")
assert widths["even"] < widths["short at little noise"] < 1

# %% [markdown]
# A mode is made in the steps whose noise is about as wide as it is, so these should be short. Both laws become right as $T$ grows; the second
# costs nothing more. (The exact denoiser of the *payoff*, in the even steps, hardly showed the fault: it is told the whole way that modes
# move. What is wrong is the reference that a method starts from when all it has are samples.)

# %%
base = MLPDenoiser(2, schedule.alpha_bar, hidden=settings.hidden, layers=3)
trainer = Trainer(base, lambda net: diffusion.loss(net, world.sample(1024)), settings.base_steps,
                  **PRETRAINING)
base.load_state_dict(trainer.run(progress=False).state_dict())


def draw(denoiser, n=N):
    """Finished samples of a model, (n, 2)."""
    return sampling.sampler_of(diffusion, denoiser, 2)(n)


x_base = draw(base)
base_over_floor = metrics.over_floor(lambda n: draw(base, n), world.sample, N, settings.draws)
run.metric("sampled_width_ring", widths["short at little noise"], "1", settings.T,
           f"width of what the exact denoiser of a Gaussian of width 0.15 becomes in {settings.T} steps, over 0.15", ceiling=1.0)
run.metric("base_over_floor_ring", base_over_floor, "1", N,
           f"sliced Wasserstein-1 (256 directions) of the base model's samples to the ring, mean of "
           f"{settings.draws} draws, over its floor, the mean of 20 pairs of exact samples", floor=1.0)

# %% [markdown]
# ## 3. The payoff distribution from samples: weights
#
# We cannot sample $p^*$, but we can sample $p_{ref}$, and $p^*$ differs from it by a factor we can compute. Give
# sample $i$ the weight
#
# <!-- definition -->
# $$
# w_i = \frac{e^{r_i/\tau}}{\sum_j e^{r_j/\tau}} .
# $$
#
# Then $\sum_i w_i f(x_i)$ estimates $E_{p^*}[f]$ for any $f$. The normalisation uses the same samples, so
# the estimate has a bias, but only of order $1/n$. The reward is *evaluated*, never differentiated; it may
# be a step function, a quantum-chemistry program or a person.
#
# The price is that few samples do the work. The number of equally weighted samples that would be worth
# as much is the **effective sample size**
#
# <!-- eq: effective-sample-size | Owen, Monte Carlo theory, methods and examples, eq. 9.13 -->
# $$
# ESS = \frac{\big(\sum_i w_i\big)^2}{\sum_i w_i^2} .
# $$
#
# For many samples its share of $n$ tends to a number that only the world and the temperature decide. With
# $w = e^{r/\tau}$ the two averages in it are $Z(\tau)$ and $E[e^{2r/\tau}] = Z(\tau/2)$:
#
# <!-- eq: ess-share-from-z | derived here -->
# $$
# \frac{ESS}{n} \;\longrightarrow\; \frac{Z(\tau)^2}{Z(\tau/2)} .
# $$
#
# This is how we chose $\tau$ above: such that the share is 10 %. Temperatures have the reward's unit and mean
# nothing by themselves; "the temperature at which 10 % of the samples survive" can be compared between
# worlds, rewards and papers.

# %% [markdown]
# ### Exercise 07.1: weights and what they are worth
# Write `weigh(reward, tau)`: `reward` is (n,), some entries may be `nan`, which means "no value". Return the
# pair (weights (n,) that sum to 1, effective sample size). Rewards may be as large as 10,000, of
# either sign: do not overflow, nor divide by 0.
#
# <details><summary>Hint 1</summary>
#
# A sample without a value cannot be in the payoff distribution. Which number, put in place of its
# logarithm, gives weight 0?
#
# <details><summary>Hint 2</summary>
#
# `torch.softmax` subtracts the largest entry first. `-math.inf` is a fine entry for it.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 07.1
def weigh(reward, tau):
    """Weights of the payoff distribution, and their effective sample size."""
    # STUB: return None
    ### BEGIN SOLUTION
    log_weight = torch.where(torch.isfinite(reward), reward / tau, -math.inf)
    weight = torch.softmax(log_weight, 0)
    return weight, 1 / weight.square().sum()
    ### END SOLUTION

# %% tags=["check"]
exercises.check("07.1", weigh)

# %% [markdown]
# **Predict.** We weight samples of the network at three temperatures. At the middle one 10 % should
# survive. How many effective samples are left when the temperature is ten times lower: 1 %, 0.1 %, less?

# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 3.5))
for ax, scale in zip(axes, (4, 1, 0.1), strict=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns of the last panel: rightly, see below
        weighted = payoff.from_data(x_base, reward, scale * tau)
    kept = weighted.resample(N)
    ax.scatter(*x_base[:2000].T, s=2, color="0.85", rasterized=True)
    ax.scatter(*kept[:2000].T, s=3, alpha=0.4, rasterized=True)
    ax.set(title=rf"{scale:g} $\tau$: ESS {weighted.ess / N:.1%}", xlabel="$x_1$",
           xlim=(-2.3, 2.3), ylim=(-2.3, 2.3))
    ax.set_aspect("equal")
axes[0].set_ylabel("$x_2$")
run.figure(fig, "temperatures",
           alt="The model's ring in grey, three times; in colour what weighting keeps: the right half of the "
               "ring, its rightmost blobs, and at the lowest temperature a few of its outermost points.",
           see="Lower temperatures keep fewer samples and push outward; the last panel lives on a few "
               "extreme points of the cloud.")

# %% [markdown]
# The same with a slider. Everything the notebook concludes is in the static figure above; move it to get a
# feeling for the scale.

# %%
def show_temperature(log10_scale):
    """Resampled base samples at tau times 10^log10_scale."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weighted = payoff.from_data(x_base, reward, tau * 10**log10_scale)
    fig, ax = plt.subplots(figsize=(4, 4))
    ax.scatter(*x_base[:2000].T, s=2, color="0.85")
    ax.scatter(*weighted.resample(2000).T, s=4, alpha=0.4)
    ax.set(title=f"ESS {weighted.ess:,.0f} of {N:,}", xlim=(-2.3, 2.3), ylim=(-2.3, 2.3))
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
    ax.set_aspect("equal")
    return fig


slider = ipywidgets.FloatSlider(value=0.0, min=-3.0, max=1.0, step=0.1)
widgets.explore(show_temperature, log10_scale=slider)

# %% [markdown]
# ## 4. From weights to a model: it is denoising
#
# Weighted samples are not yet a model: they are the same points over and over. We want a network that
# draws *new* points of $p^*$. Maximising $J$ directly means differentiating through the sampler, with
# REINFORCE's noise. RGDM swaps the two arguments of the KL instead:
#
# <!-- eq: forward-kl-is-weighted-likelihood | derived here -->
# $$
# KL(p^* \,\|\, p_\theta) = -E_{p^*}\big[\log p_\theta(x_0)\big] + const
# = -E_{p_{ref}}\Big[\frac{e^{r(x_0)/\tau}}{Z} \log p_\theta(x_0)\Big] + const .
# $$
#
# If the model is able to represent $p^*$, both KLs have the same minimum, $p_\theta = p^*$. If it is not, the
# minimum differs: this one covers all modes of $p^*$, the other may give some up. What is gained: the
# expectation is under a **fixed** law. Nothing is differentiated through sampling, and one batch of rewards
# serves thousands of gradient steps.
#
# And $-\log p_\theta(x_0)$ of a diffusion model is bounded by the denoising loss with the likelihood's weights (notebook 02); other
# positive weights, such as the simple loss's, keep the optimum. So the whole of training is: draw $x_0$ from the weighted set, add noise, predict the noise. The reward enters only
# through *which* $x_0$ are drawn.
#
# Compare this with guidance at sampling time: the reward is never applied to a half-noisy $x_t$, where it
# would mean nothing. It always sees finished samples.

# %% [markdown]
# ## 5. Several rounds, one target
#
# One round at a 10 % share turns 5,000 rewards into 500 effective samples. The trained model is already much
# closer to $p^*$, so its samples would be a better place to spend rewards on. But its samples are *not*
# samples of $p_{ref}$, and weighting them with $e^{r/\tau}$ again would aim at something else:
#
# <!-- eq: naive-iteration-drifts | derived here -->
# $$
# p_k \propto p_{k-1}\, e^{r/\tau} \quad\Longrightarrow\quad p_k \propto p_{ref}\, e^{k\, r/\tau} .
# $$
#
# That is iterated reward-weighted regression. It never stops: after $k$ rounds the temperature is
# effectively $\tau/k$. RGDM keeps the target and corrects the weights. A sample $i$ came along a path
# $x_T, \dots, x_0$ from one of the models $\theta_0 = ref, \theta_1, \dots, \theta_k$ used so far, $n_j$ samples from
# model $j$. Paths have exact log-probabilities (a sum of Gaussian steps), so treat all samples as draws
# from the *mixture* of all these models and divide by its density:
#
# <!-- eq: balance-heuristic-weights | derived here -->
# $$
# w_i \propto \frac{p_{ref}(path_i)}{\sum_j \frac{n_j}{n}\, p_{\theta_j}(path_i)}\; e^{r_i/\tau} .
# $$
#
# This is the balance heuristic of Veach and Guibas (1995), applied to diffusion paths. Because the reference
# is one of the models, the fraction is never above $n/n_0$: no single sample can run away with the weight.
# And no reward is computed twice.
#
# When one round at the final temperature would leave too few effective samples, RGDM *tempers*: it trains
# toward $p_{ref}\, e^{\beta r}$ with $\beta = 1/\tau$ at the end and less before, each round as far as the
# effective sample size allows.

# %% [markdown]
# ### Exercise 07.2: the balance heuristic
# Write `log_base(log_p, counts)`. `log_p` is (models, n): entry $[j, i]$ is the log-probability of path $i$ under
# model $j$; row 0 is the reference. `counts` is (models,): how many of the n samples each model drew. Return
# (n,): the logarithm of the fraction in the formula above. Log-probabilities may be in the
# thousands, of either sign.
#
# <details><summary>Hint 1</summary>
#
# The denominator is a sum of products; its logarithm is a `logsumexp` of sums.
#
# <details><summary>Hint 2</summary>
#
# $\log \sum_j \frac{n_j}{n} p_j$ is `torch.logsumexp(log_p + (counts / counts.sum()).log()[:, None], 0)`.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 07.2
def log_base(log_p, counts):
    """log p_ref - log mixture of every path."""
    # STUB: return None
    ### BEGIN SOLUTION
    log_share = (counts / counts.sum()).log()
    return log_p[0] - torch.logsumexp(log_share[:, None] + log_p, 0)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("07.2", log_base)

# %% [markdown]
# ## 6. RGDM on one screen
#
# Here is the whole algorithm. Read it from top to bottom: *explore* (draw paths from the model as it is),
# *reward*, *weigh* back to the fixed target, *choose* how far to go, *denoise*.
#
# A path is not quite a sample. `diffusion.trajectory` adds noise in *every* step, the last one too, of variance
# $\beta_1$ there: without it the path would have no density, and so no weight (notebook 02, section 2). Our `draw` leaves the
# last noise out. So the points that are weighed and trained on are a little wider than those that are judged.

# %%
def rgdm_on_one_screen(net, diffusion, reward, tau, n, rounds, steps, least_ess=0.3):
    """Train ``net`` toward p_ref exp(r / tau) / Z, p_ref being what it is now."""
    models, paths, rewards, beta = [], [], [], 0.0
    for k in range(rounds):
        models.append(copy.deepcopy(net))
        paths.append(diffusion.trajectory(net, torch.randn(n, 2)))
        rewards.append(reward(paths[-1].x[-1]))
        x0, r = torch.cat([path.x[-1] for path in paths]), torch.cat(rewards)
        with torch.no_grad():
            log_p = torch.stack([
                torch.cat([diffusion.log_prob(m, path).double().sum(1) for path in paths])
                for m in models
            ])
        base = log_p[0] - torch.logsumexp(log_p - math.log(len(models)), 0)
        beta = 1 / tau if k == rounds - 1 else next_beta(r, beta, 1 / tau, least_ess * n, base)
        log_weight = log_weights(r, 1 / beta, base)

        def loss(net, x0=x0, log_weight=log_weight):
            return diffusion.loss(net, x0[systematic_resample(log_weight, 512)])

        trained = Trainer(net, loss, steps, lr=1e-3, ema_decay=0.995).run(progress=False)
        net.load_state_dict(trained.state_dict())
    return net

# %% [markdown]
# How much is "a little"? The modes have the width 0.15, and independent variances add up:

# %%
last_noise = diffusion.path_std(1, 0)
print(f"noise of a path's last step: {last_noise:.3f}; it widens the modes "
      f"by {math.hypot(1, last_noise / 0.15) - 1:.1%}")

# %% [markdown]
# The library's `rgdm.fit` is the same algorithm, with the samplers exchangeable, with one report a round, and
# with a way out when the path weights are useless. A small run from the same random numbers must give the
# same network:

# %%
def small(method):
    """A tiny run from a fixed seed, the rest of the notebook's random numbers untouched."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return method(copy.deepcopy(base))


def by_library(net):
    """The same by rgdm_lib."""
    sampler = payoff.model_sampler(diffusion, lambda n: torch.randn(n, 2), reward, 200)
    list(rgdm.fit(net, diffusion, sampler, tau, rounds=2, steps=10, batch_size=512, lr=1e-3,
                  ema_decay=0.995))
    return net


mine = small(lambda net: rgdm_on_one_screen(net, diffusion, reward, tau, n=200, rounds=2, steps=10))
theirs = small(by_library)


def apart(a, b):
    """Largest difference of two networks' weights."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


assert apart(mine, theirs) < 1e-6 < apart(base, theirs)
print("one screen and library: the same network")

# %% [markdown]
# ## 7. The result
#
# **Predict.** Samples of the trained model against as many exact samples of $p^*$. On the scale where fresh
# exact samples score 1, where will it land? What are the possible culprits, if it is not 1? (There are at
# least four: the base model's own error, the finite number of effective samples, the fit, and the finite
# number of steps of the sampler.)
#
# Two things are added to the screen above, for the fit. Half of the loss's times are drawn where there is little noise
# (`accuracy.training_times`), which is where the edges of the modes are made. Any positive distribution of the times keeps the
# optimum (notebook 02). And the learning rate falls to 0 over all of a round (`accuracy.FITTING`), with twice the batch.

# %%
net = copy.deepcopy(base)
sampler = payoff.model_sampler(diffusion, lambda n: torch.randn(n, 2), reward, settings.n)
loss = partial(diffusion.loss, times=accuracy.training_times(diffusion))
rounds = []
for result in rgdm.fit(net, diffusion, sampler, tau, rounds=settings.rounds, steps=settings.steps,
                       batch_size=1024, loss=loss, **accuracy.FITTING):
    rounds.append(result)
    path_ess = "    " if result.path_ess is None else f"{result.path_ess:.0%}"
    print(f"{result.evaluations:6,} rewards  beta tau = {result.beta * tau:.2f}  "
          f"ESS = {result.ess:6,.0f}  path ESS {path_ess:>4}  mean reward {result.reward:.3f} "
          f"(exact {world.frontier(reward, 1 / result.beta)[0]:.3f})")

# %% [markdown]
# Look at the effective sample size: it grows faster than the number of rewards, for the later samples are
# drawn close to where they are needed. (The first round stops at a third of $1/\tau$, as `least_ess` asks for a share of
# 30 % and $\tau$ has 10 %. At a share of 40 % it would go all the way. Change `SHARE` and see.) The **path ESS** is
# a check of the fit that costs nothing. If the model's law of whole *paths* were the payoff's,
# $p_\theta(path) = p_{ref}(path)\, e^{\beta r(x_0)} / Z$, then along every path
#
# <!-- eq: perfect-fit-constant-ratio | derived here -->
# $$
# \log p_{ref}(path) + \beta\, r(x_0) - \log p_\theta(path) = \log Z ,
# $$
#
# the same number for all paths, and weights made of the left-hand side would all be equal: 100 %. **Predict:** does a
# *perfect* denoiser of the payoff get there?

# %%
def path_ess_of_exact(T, n=4000):
    """Path ESS of paths of the payoff's exact denoiser, back from the ring's exact denoiser."""
    chain = Diffusion(sampling.fine_schedule(T))
    of_ring, of_payoff = (law.denoiser(chain.schedule) for law in (world, exact))
    path = chain.trajectory(of_payoff, torch.randn(n, 2))
    log_ratio = chain.log_prob(of_ring, path) - chain.log_prob(of_payoff, path)
    log_weight = log_ratio.double().sum(1) + reward(path.x[-1]).double() / tau
    return payoff.effective_sample_size(log_weight) / n


exact_path_ess = {T: path_ess_of_exact(T) for T in sorted({20, 200, settings.T})}
print("path ESS of exact denoisers:", {T: f"{e:.0%}" for T, e in exact_path_ess.items()})
if rounds[-1].path_ess is not None:
    print(f"of our model, T = {settings.T}: {rounds[-1].path_ess:.0%}")
assert exact_path_ess[20] < 0.75 < 0.9 < exact_path_ess[200] < 1
run.metric("path_ess_exact", exact_path_ess[settings.T], "1", 4000,
           f"path ESS of exact denoisers of ring and payoff, T = {settings.T}: the most that a perfect "
           "fit can have")

# %% [markdown]
# No. A step of the payoff's chain is not Gaussian, a step of the model is, and what that costs adds up along the path.
# Only as $T$ grows and the steps shrink does a perfect fit reach 100 %. So compare a path ESS with that of the exact
# denoisers at the same $T$, not with 1. Below about 5 % the model is lost, its paths carry no usable weights, and
# `rgdm.fit` says so, drops them and finishes on the earlier samples.
#
# Now the samples. They are drawn with `draw`, without noise in the last step; so are the base's and the exact denoiser's. The weighted
# samples are paths' ends, with that noise.

# %%
x_rgdm = draw(net)
floor = metrics.sliced_wasserstein_floor(exact.sample, N)
weighted = rounds[-1].weighted
share_of = weighted.log_weight.exp()
judged = {
    "base model, untouched": lambda n: draw(base, n),
    "exact denoiser of the payoff, same sampler": lambda n: draw(exact.denoiser(schedule), n),
    "the weighted samples that RGDM was trained on": lambda n: weighted.x0[torch.multinomial(share_of, n, True)],
    "RGDM": lambda n: draw(net, n),
}
distances = {}
for name, model in judged.items():
    distances[name] = metrics.over_floor(model, exact.sample, N, settings.draws, floor=floor)
    print(f"{name:<46} {distances[name]:6.2f}")
print(f"{'another exact sample':<46} {1:6.2f}")

# %%
DEFINITION = ("sliced Wasserstein-1 (256 directions) of the RGDM model's samples to the exact payoff of the "
              f"ring under a linear reward at an ESS of 10 %, mean of {settings.draws} draws, over its floor, "
              "the mean of 20 pairs of exact samples")
run.metric("sw_over_floor_ring", distances["RGDM"], "1", N, DEFINITION, floor=1.0)
run.metric("pool_over_floor_ring", distances["the weighted samples that RGDM was trained on"], "1", N,
           "the same distance for draws from the weighted samples that RGDM was trained on: what the base "
           "model's error and the effective samples cost", floor=1.0)
run.metric("sampler_over_floor_ring", distances["exact denoiser of the payoff, same sampler"], "1", N,
           "the same distance for the exact denoiser of the payoff in the same sampler: what the "
           "finite number of steps costs", floor=1.0)
run.metric("reward_evaluations_ring", rounds[-1].evaluations, "1", rounds[-1].evaluations,
           "reward evaluations that RGDM used on the ring")
best, _ = world.frontier(reward, tau)
gained = float(reward(x_rgdm).mean() - reward(x_base).mean()) / (best - float(reward(x_base).mean()))
run.metric("reward_gap_closed_ring", gained, "1", N,
           "share of the reward gap between base model and exact payoff that RGDM closes; 1 is the "
           "goal, more is as wrong as less", floor=0.0, ceiling=1.0)

# %% [markdown]
# The two lines above RGDM's say where its distance comes from: the sampler's finite number of steps, and the samples it
# was trained on. Those carry the base model's error and its sampler's (section 2), which the tilt magnifies, and chance: some
# thousand effective samples are as far from the payoff as any other thousands.
#
# **A second judge.** A distance over all of the ring hardly sees whether the modes *moved*: reweighing them does
# most of the work. So look at the move alone: the mean way of the samples from the nearest mode of the reference,
# along the reward. For the ring it is $s^2 |b| / \tau$. But RGDM's reference is what the network *draws*,
# whose modes are a little narrower (section 2). So compare with the payoff of *its* samples: fresh ones, weighted. Both averages have an error,
# and so had the samples that RGDM was trained on. We count in standard errors of all three together.
#
# The judge must refuse two wrong laws: modes reweighed but not moved, and a temperature that is off by 10 %.

# %%
direction = reward.slope.float() / reward.slope.float().norm()


def way(x):
    """(n,) way from the nearest mode of the ring along the reward."""
    nearest = torch.cdist(x, world.means.float()).argmin(1)
    return (x - world.means.float()[nearest]) @ direction


x_many = torch.cat([draw(base) for _ in range(10)])
of_base = payoff.from_data(x_many, reward, tau)
target = float(of_base.expectation(way))
target_error = float(of_base.expectation(lambda x: (way(x) - target) ** 2) / of_base.ess) ** 0.5


def standard_errors_off(x, aim, aim_error, ess):
    """Mean way minus its aim, over the standard error of x, aim and ess training samples."""
    variance = float(way(x).var())
    error = (variance / len(x) + aim_error**2 + variance / ess) ** 0.5
    return (float(way(x).mean()) - aim) / error


many = 10 * N
off = {
    "RGDM": standard_errors_off(torch.cat([draw(net) for _ in range(10)]), target, target_error, weighted.ess),
}
for name, law in {
    "exact payoff of the ring": exact,
    "reweighed, not moved": mixtures.GaussianMixture(world.means, 0.15, exact.weights),
    "tau 10 % too high": world.tilt(reward, 1.1 * tau),
}.items():
    off[name] = standard_errors_off(law.sample(many), float(moved[0]), target_error, weighted.ess)
narrow = float(moved[0]) * widths["short at little noise"] ** 2
print(f"the ring's modes move by {float(moved[0]):.4f}, modes as narrow as section 2 has it by {narrow:.4f}, "
      f"the network's by {target:.4f} +- {target_error:.4f}")
assert abs(target - narrow) < 0.1 * narrow
for name, z in off.items():
    print(f"{name:<26} {z:+7.1f} standard errors")
run.metric("mode_displacement_error_over_standard_error", abs(off["RGDM"]), "1", many,
           "mean way of the RGDM model's samples from the nearest mode of the ring along the reward, minus "
           "that of the payoff of as many base samples, in standard errors of both and of the samples trained "
           "on, absolute", floor=abs(off["exact payoff of the ring"]))  # fmt: skip
assert abs(off["reweighed, not moved"]) > 3 and abs(off["tau 10 % too high"]) > 3

# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharex=True, sharey=True)
clouds = {"base model": x_base, "exact payoff": exact.sample(N), "RGDM": x_rgdm}
for ax, (title, x) in zip(axes, clouds.items(), strict=True):
    ax.scatter(*x[:4000].T, s=2, alpha=0.35, rasterized=True)
    ax.set(title=title, xlabel="$x_1$", xlim=(-2.3, 2.3), ylim=(-2.3, 2.3))
    ax.set_aspect("equal")
axes[0].set_ylabel("$x_2$")
run.figure(fig, "samples",
           alt="Three clouds of 4,000 points: a full ring of eight blobs, the exact payoff with nearly all points "
               "in the blobs on the right, and RGDM's samples, which look like the exact payoff.",
           see="RGDM's cloud has the payoff's two large blobs and the few points in their neighbours. Stray "
               "points between blobs come from the base model, which has them too.")

# %% [markdown]
# ### The reward-KL plane
#
# A mean reward says little by itself: any reward can be had by moving far enough. The fair picture is the
# reward against what was paid for it, $KL(p \,\|\, p_{ref})$. For the exact payoff both are known, for
#
# <!-- eq: frontier-kl | derived here -->
# $$
# KL(p^* \,\|\, p_{ref}) = \frac{E_{p^*}[r]}{\tau} - \log Z(\tau) , \qquad
# E_{p^*}[r] = \frac{d \log Z}{d (1/\tau)} ,
# $$
#
# and running over all $\tau$ draws the **frontier**: no distribution has more reward at the same KL. For
# RGDM's model we estimate the KL of whole paths, the mean of $\log p_\theta - \log p_{ref}$ on its own paths. That
# is at least the KL of $x_0$ alone, which moves the point to the right.
#
# Mind the reference. The point's KL is to the *network*, its frontier to the *ring*, which the network only
# resembles. Against that curve the point may lie on either side, by the base model's error. The frontier that it
# can only fall short of is the network's own: weights on samples of the network (paths' ends, with the last noise,
# like the point's) give that one too, up to chance.

# %%
with torch.no_grad():
    path = diffusion.trajectory(net, torch.randn(4000, 2))
    kl = float((diffusion.log_prob(net, path) - diffusion.log_prob(base, path)).sum(1).mean())
mean = float(reward(path.x[-1]).mean())
r_base = reward(diffusion.trajectory(base, torch.randn(N, 2)).x[-1]).double()


def own_frontier(t):
    """(mean reward, KL) of the payoff distribution of the network's own samples."""
    weight = log_weights(r_base, t).exp()
    best = float(weight @ r_base)
    return best, best / t - float(torch.logsumexp(r_base / t, 0)) + math.log(N)


grid = [tau * 2 ** (i / 4) for i in range(-6, 26)]
frontier = torch.tensor([world.frontier(reward, t) for t in grid])
enough = [t for t in grid if payoff.effective_sample_size(log_weights(r_base, t)) > 100]
of_network = torch.tensor([own_frontier(t) for t in enough])
at_its_kl = [float(np.interp(kl, f[:, 1].flip(0), f[:, 0].flip(0))) for f in (frontier, of_network)]
print(f"RGDM: mean reward {mean:.3f} at KL {kl:.3f}; frontier there: ring {at_its_kl[0]:.3f}, "
      f"network {at_its_kl[1]:.3f}")

# %%
fig, ax = plt.subplots()
ax.plot(frontier[:, 1], frontier[:, 0], label="exact frontier of the ring")
ax.plot(of_network[:, 1], of_network[:, 0], "--", label="frontier of the network's samples")
ax.plot(kl, mean, "o", label="RGDM")
for k in (1, 2, 3):
    r_k, kl_k = world.frontier(reward, tau / k)
    ax.plot(kl_k, r_k, "kx", label="naive iteration, round 1, 2, 3" if k == 1 else None)
ax.set(xlabel="KL to the reference (nats)", ylabel="mean reward")
ax.legend()
run.figure(fig, "reward_kl_plane",
           alt="Mean reward against KL to the reference: a rising, flattening curve, with a dashed one close "
               "to it; RGDM's dot lies near them at the first of three crosses; the crosses move on "
               "along the curve.",
           see="RGDM lands near the point of its temperature; naive iteration passes through it and moves "
               "on, one temperature lower every round.")

# %% [markdown]
# ### Harder targets
# The ring under a linear reward is kind. Four more, each with an exact answer:
#
# - the ring at three **temperatures**, with effective shares of 80, 40 and 10 %: do the points stay on the frontier?
# - an **indicator**: reward 1 inside a disc that cuts two modes, 0 outside. There is no slope anywhere to follow. How much of the
#   samples ends up inside?
# - a **rare mode** with a thousandth of the reference, at the temperature where it gets half of the payoff.
# - a **mixture** of sixteen modes in eight dimensions, of which the reward wants one (more of it in section 9).
#
# `experiment worlds-rgdm` trains a network on each reference, then RGDM: 20,000 rewards (50,000 for the rare mode), three training seeds.
# Its table ships. Read *floors* as in section 7; *denoiser* is the exact one of the payoff, in the same sampler.
#
# **Predict.** Which of the four will be furthest off, and is it RGDM that is to blame?

# %%
targets = json.loads(data_path("worlds/rgdm.json").read_text())
POINTS = f"{targets['judged']:,} points, mean of {targets['draws']} draws"
steps = {name: fit["steps"] for name, fit in targets["fit"].items()}
print("gradient steps a round:", ", ".join(f"{name} {count:,}" for name, count in steps.items()))
columns = ("reward", "exact", "KL", "exact", "floors", "its pool", "denoiser", "base", "rewards", "effective")
widths = [max(7, len(name) + 2) for name in columns]
print(f"{'':<15}" + "".join(f"{name:>{w}}" for name, w in zip(columns, widths, strict=True)))
for name, by_share in targets["worlds"].items():
    for share, found in sorted(by_share.items(), key=lambda one: -float(one[0])):
        sampler = found.get("exact_denoiser", {}).get("over_floor", math.nan)
        for one in found["runs"]:
            cells = (one["reward"], found["exact_reward"], one["kl"], found["exact_kl"], one["over_floor"],
                     one["pool_over_floor"], sampler, found["base"]["over_floor"], one["evaluations"], one["ess"])  # fmt: skip
            digits = 4 * [3] + 4 * [2] + 2 * [0]
            words = "".join(f"{x:>{w},.{k}f}" for x, w, k in zip(cells, widths, digits, strict=True))
            print(f"{name + ' ' + share + ' %':<15}{words}")

# %% [markdown]
# Read a line from the right. The base was far away. The exact *denoiser* says what the sampler's steps cost (for the indicator it would
# take an hour: nan); *its pool*, the weighted samples that RGDM was trained on, what the base network's own errors and the finite number of
# effective samples cost. A few points of the pool carry much of the weight and come again in every draw; a network smooths that out, and may
# end nearer than its pool. Chance moves all of these by some tenths. (The KL is estimated from neighbours' distances, with an error
# of about 0.03 nats.)
#
# So it is the rare mode in one of three trainings, and the mixture in one of three; and both times the pool is as far off as the
# model. What RGDM had to learn from is to blame, not what it learned. Look at the two. One training of the **mixture** stopped asking for
# rewards half way: the path ESS of its first round's model was below 5 %, `rgdm.fit` said so, dropped that model's samples and trained to
# the end on the first 5,000. Some hundred effective samples are what it had, for some ten thousand in the others. The worst of the **ring** at 10 % follows its pool too.
#
# For the **rare mode** the base decides. The payoff that RGDM aims at is that of the *network*: what the network has too little of a
# mode of one in a thousand, by some percent, the payoff has too little of by as many. A batch of 1,024 points has one of that mode.
# So this base took half of its points from the payoff, each with the weight $p_{ref} / q$, $q$ being the mixture that it was drawn from:
# the optimum stays, the noise goes (`accuracy.weighted_points`). That is a help which section 2 forbids, and which no other row has. Who
# trains a base for a rare event should do the same, if there is a way to draw it.
#
# The **indicator**'s payoff jumps at the edge of the disc, by $e^{1/\tau}$. A network has no jumps: at the last, quiet steps it must
# bend as sharply as the edge, and what it blurs leaks out. Three things help: many times of the loss where there is little noise
# (`worlds-rgdm` draws half of them there), many points in a batch, for few of them are near the edge, and many steps. (With 4,000 a
# round, in a table that no longer ships, the same six trainings were 0.014 to 0.023 short.) Still all six have too little inside, by half a percent
# to nearly two percent of everything. Is it the base, which has too little in the disc already, and whose odds the tilt multiplies? The cell below
# works it out, with its chance: less than the seeds miss by, and no more than two standard errors from 0.
#
# More training is not better everywhere. A round learns from some thousand points, and a network that trains on them for too long
# learns *them*; then the paths of its own samples carry worse weights. (On the ring, 4,000 steps a round left 8,000 effective samples where 1,000
# left 13,800, in a trial that does not ship.) Too little is no better: with 1,000 steps one of three models of the ring was 2.0 floors off, though
# its pool was as good as the others'. Mind how these numbers of steps were found: by distances to the exact payoff, on the very seeds of this table.
# A seed that took no part, run once on the ring at 10 %, ended at 1.2 floors.

# %%
worst = {}
for name in ("ring", "rare"):
    runs = min(targets["worlds"][name].items(), key=lambda one: float(one[0]))[1]["runs"]
    worst[name] = max(one["over_floor"] for one in runs)
    run.metric(f"sw_over_floor_{name}" + ("_worst" if name == "ring" else ""), worst[name], "1", targets["judged"],
               f"sliced Wasserstein-1 to the exact payoff over its floor, {POINTS}; {name} world, "
               f"{runs[0]['evaluations']:,} rewards; the worst of the training seeds that ship"
               + ("; its base was pretrained on more of the mode, with weights" if name == "rare" else ""), floor=1.0)  # fmt: skip
inside = {
    share: [one["reward"] - found["exact_reward"] for one in found["runs"]]
    for share, found in targets["worlds"]["indicator"].items()
}
for share, errors in inside.items():
    found = targets["worlds"]["indicator"][share]
    share_of_base = found["base"]["reward"]  # the payoff has the same odds, times e^(1 / tau)
    of_payoff = share_of_base / (share_of_base + (1 - share_of_base) * math.exp(-1 / found["tau"]))
    of_base = of_payoff - found["exact_reward"]
    chance = (share_of_base * (1 - share_of_base) / (targets["judged"] * targets["draws"])) ** 0.5  # of the base's share
    chance *= of_payoff * (1 - of_payoff) / (share_of_base * (1 - share_of_base))  # log odds move alike
    print(f"indicator, {share} %: mass inside minus the exact {found['exact_reward']:.3f}:",
          ", ".join(f"{error:+.4f}" for error in errors) + f"; the base's part {of_base:+.4f} ± {chance:.4f}")  # fmt: skip
    assert all(-0.02 < error < -0.004 for error in errors)  # what the text above says
    assert min(errors) < of_base < 0 and abs(of_base) < 2 * chance and max(errors) < of_base + chance
broken_off = min(targets["worlds"]["mixture8d"]["10"]["runs"], key=lambda one: one["ess"])
assert broken_off["evaluations"] == 10_000 and broken_off["ess"] < 1000 and broken_off["pool_over_floor"] > 1.9
worst_rare = max(targets["worlds"]["rare"]["0.38"]["runs"], key=lambda one: one["over_floor"])
assert worst_rare["pool_over_floor"] > worst_rare["over_floor"] > broken_off["over_floor"] > 1.9  # the two furthest off
run.metric("pool_over_floor_rare", worst_rare["pool_over_floor"], "1", targets["judged"],
           "the distance of sw_over_floor_rare, for draws from the weighted samples that this model was trained on", floor=1.0)
run.metric("sampler_over_floor_rare", targets["worlds"]["rare"]["0.38"]["exact_denoiser"]["over_floor"], "1", targets["judged"],
           "the distance of sw_over_floor_rare, for the exact denoiser of the payoff in the same sampler", floor=1.0)
at_10 = max(targets["worlds"]["ring"]["10"]["runs"], key=lambda one: one["over_floor"])
assert at_10["pool_over_floor"] > 1.3 and abs(at_10["over_floor"] - at_10["pool_over_floor"]) < 0.1
run.metric("indicator_mass_error", max(abs(e) for errors in inside.values() for e in errors), "1", targets["judged"],
           f"share of samples in the indicator's region minus the exact payoff's, {POINTS}; largest over effective shares of "
           "10 and 40 % and training seeds")  # fmt: skip

# %%
of_ring = targets["worlds"]["ring"]
gaps = [
    metrics.frontier_gap([(found["runs"][k]["kl"], found["runs"][k]["reward"]) for found in of_ring.values()], known.ring_world())
    for k in range(min(len(found["runs"]) for found in of_ring.values()))
]
print("ring: largest way below the exact frontier, over the range of rewards:", ", ".join(f"{gap:.3f}" for gap in gaps))
run.metric("frontier_gap", max(gaps), "1", targets["judged"],
           "largest vertical distance of RGDM's points below the exact reward-KL frontier over the reward range, ring, effective "
           "shares 80, 40, 10 %, the worst of the training seeds that ship; KL to the exact reference")  # fmt: skip

# %% [markdown]
# ### Bug museum: on-policy samples in an off-policy loss
# The weights $e^{r/\tau}$ belong to samples of the *reference*. A loop that redraws its samples from the model it is
# training ("fresher data"), and leaves the loss as it was, still runs. This is that line, on the newest samples
# that RGDM drew, beside the right weights on all of them.
#
# **Predict.** Which of three numbers gives the bug away: the denoising loss, the effective sample size, the reward?

# %%
pool = rounds[-1].weighted
newest = payoff.Draw(pool.x0[-settings.n:], pool.reward[-settings.n:])  # drawn from the trained model
buggy = newest.weigh(tau)  # the bug: these samples come with no log_base
drawn_at = rounds[len(pool.x0) // settings.n - 2].beta  # inverse temperature of the model that drew them
drifted, _ = world.frontier(reward, 1 / (drawn_at + 1 / tau))
for name, w in {"right": pool, "buggy": buggy}.items():
    with torch.no_grad():
        loss = float(diffusion.loss(net, w.resample(4000)).mean())
    print(f"{name}: loss {loss:.3f}, effective share {w.ess / len(w.reward):.0%}, "
          f"mean reward {float(w.expectation(w.reward)):.3f}")
print(f"exact mean reward: {best:.3f} at 1/tau; {drifted:.3f} at the inverse temperature the bug aims at")
run.metric("reward_gap_closed_by_on_policy_bug",
           float((buggy.expectation(buggy.reward) - reward(x_base).mean()) / (best - reward(x_base).mean())),
           "1", settings.n,
           "share of the reward gap between base model and exact payoff that lies below the mean reward of the trained "
           "model's own samples under the reference's weights; 1 is right, more aims past the payoff", ceiling=1.0)

# %% [markdown]
# Loss and effective share look as healthy as the right ones, and the reward looks *better*. It is the drift of section 5:
# the weights multiply what the model already has. What tells is the mean reward under the weights from round to round: of one fixed
# target it stays where it is. The other way round it is as wrong: a loss made for the model's own samples, as
# `rgdm_lib.baselines.bounded`, must not see the reference's.

# %% [markdown]
# ### Exercise 07.3: where naive iteration ends up
# Reward-weighted regression, $k$ rounds at temperature `tau`, each a perfect fit. Write
# `effective_temperature(tau, k)`: the temperature of the payoff distribution (of the *original* reference) that
# the model then has.
#
# <details><summary>Hint</summary>
#
# Section 5 has the exponent after $k$ rounds. For which temperature is it the exponent of one round?
#
# </details>

# %% tags=["exercise"]
# Exercise 07.3
def effective_temperature(tau, k):
    """Temperature after k rounds of naive iteration."""
    # STUB: return None
    ### BEGIN SOLUTION
    return tau / k
    ### END SOLUTION

# %% tags=["check"]
exercises.check("07.3", effective_temperature)

# %% [markdown]
# ## 8. Break it: a temperature that is too low
#
# **Question.** The reward wants the upper right. Why not take a hundredth of the temperature and get more of it?
#
# **Predict.** Of all weighted samples of the base model, how many effective ones are left? And of the exact
# payoff at that temperature, what does such a sample get right?

# %%
cold = tau / 100
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    weighted = payoff.from_data(x_base, reward, cold)
print("the library warns:", caught[0].message)
run.metric("ess_at_a_hundredth", weighted.ess, "1", N,
           "effective sample size of the weighted base samples at a hundredth of the temperature")
cold_mean, _ = world.frontier(reward, cold)
print(f"mean reward: exact payoff {cold_mean:.2f}, weighted samples {float(weighted.expectation(reward)):.2f}, "
      f"best sample {float(reward(x_base).max()):.2f}")

# %% [markdown]
# The weighted set is one point or a few, the most extreme ones the base model happened to draw, and a model
# trained on them learns those points by heart. Nor are they *like* the payoff distribution: its mean
# reward is beyond the best sample we have, because the exact payoff moves every mode by $s^2 b/\tau$, far into
# the Gaussian's tail, where a network has never been. No reweighting of some thousand samples can get there, and
# no loss curve will tell: the training loss on a few memorised points looks wonderful. **The effective sample
# size is the number to watch**, before any training: choose the temperature by it, or temper in rounds, each
# of which keeps it high.

# %% [markdown]
# ## 9. The rivals, at equal terms
#
# **Question.** There are a dozen ways to make a diffusion model follow a reward. Where is RGDM better, and where not?
#
# The world is harder than the ring: eight dimensions, sixteen modes of equal weight. The reward grows along one of them, which is
# to get two thirds of the payoff; and every mode moves. All methods get the same pretrained network, the
# same sampler (T = 100), the same temperature (an effective share of 10 %) and 20,000 reward evaluations. The two settings that
# matter most to each were searched on a grid of three by three values, with seed 0; the pair that ended nearest to the exact payoff
# ran with more seeds, and with other numbers of evaluations. (`best_of_n`, `best_child`, `particles` and `reward_gradient` train nothing and
# have one setting: three values.) That took hours; `experiment worlds-rivals`
# repeats it. Its table ships with the course, and all that follows is computed from it, here. (The search, other sizes and what trains nothing are
# judged on three draws, not ten.)
#
# | name in the table | what it does | source |
# |---|---|---|
# | `rgdm` | this notebook | |
# | `reward_weighted` | weights on the newest model's samples, iterated | Peters & Schaal 2007 |
# | `tilt_matching` | weights with a control variate, samples of the reference | arXiv 2512.21829 |
# | `bounded` | the model's own samples, weights below 1 | derived here, near arXiv 2509.16117 |
# | `conditional` | the network reads the reward; classifier-free guidance | arXiv 1912.13465, 2207.12598 |
# | `value_guidance` | a second network learns the soft value; its gradient steers | arXiv 2304.12824 |
# | `reinforce`, `ddpo_kl` | policy gradients with the price of the KL in the objective, DDPO's with clipped ratios | arXiv 2305.16381 |
# | `ddpo` | clipped ratios, advantages over their standard deviation, no KL | arXiv 2305.13301 |
# | `best_of_n`, `best_child` | the best of n samples; of k children at each step | arXiv 2401.01879, 2408.08252 |
# | `particles` | sequential Monte Carlo down the chain, weights carried | arXiv 2306.17775 |
# | `reward_gradient` | the gradient of r at the denoised guess steers | arXiv 2209.14687 |
#
# **Predict.** Which of them ends nearest to the payoff? Which gets the highest mean reward, and is it the same one?

# %%
table = json.loads(data_path("worlds/rivals.json").read_text())
rivals, judged_on = {name: table["methods"][name] for name in comparison.METHODS}, table["judged"]
POINTS = f"{judged_on:,} points a draw, mean of {table['draws']} draws"


def at_end(runs, what):
    """(mean, least, largest) over seeds of what runs end with; nan where it cannot be estimated."""
    values = [run["curve"][-1][what] for run in runs]
    values = [math.nan if v is None else v for v in values]
    return sum(values) / len(values), min(values), max(values)


def spent(method):
    """Reward evaluations of a training, or of every sample."""
    each = method["kind"] == "sample"
    return f"{method['runs'][0]['curve'][-1]['evaluations']:,}" + (" each" if each else "")


print(f"{'':<16}{'evaluations':>12}{'reward':>9}{'distance, floors':>26}{'mode weights, L1':>24}")
print(f"{'exact payoff':<16}{'':>12}{table['exact_reward']:>9.2f}{1:>8.1f}{0:>26.3f}")
for name in ("exact_denoiser", "base"):
    one = table[name]
    print(f"{name:<16}{'':>12}{one['reward']:>9.2f}{one['over_floor']:>8.1f}{one['mode_l1']:>26.3f}")
for name, method in rivals.items():
    cells = [at_end(method["runs"], what) for what in ("reward", "over_floor", "mode_l1")]
    (r, _, _), (d, d_low, d_high), (m, m_low, m_high) = cells
    print(f"{name:<16}{spent(method):>12}{r:>9.2f}{d:>8.1f} ({d_low:5.1f} to {d_high:5.1f})"
          f"{m:>10.3f} ({m_low:.3f} to {m_high:.3f})")

# %% [markdown]
# The distance is the one of section 7. In brackets: the least and the largest of the seeds. The first two lines are what to aim at: a mean
# reward *above* the exact one is as wrong as one below. No line is set in bold because its reward is high.
#
# Here is the search. Read it before you trust a line above: a method whose numbers differ by a factor of
# ten needs someone to tune it, and here the exact answer did the tuning, which nobody has outside of a world like this.
# A star marks the winner. Where the winner is the least or the largest value that was tried, the line says "edge": beyond it there may be
# a better one, which nobody looked for.

# %%
at_edge = {}
for name, method in rivals.items():
    chosen = method["runs"][0]["setting"]
    tried = {key: [one["setting"][key] for one in method["search"]] for key in chosen}
    edges = [key for key in chosen if chosen[key] in (min(tried[key]), max(tried[key]))]
    at_edge[name] = edges
    print(f"{name}: {', '.join(chosen)}" + (f"; edge: {', '.join(edges)}" if edges else ""))
    ends = []
    for found in method["search"]:
        last = found["curve"][-1]["over_floor"] if found["curve"] and not found["failure"] else None
        mark = "*" if found["setting"] == chosen else " "
        values = ", ".join(f"{value:g}" for value in found["setting"].values())
        ends.append(f"({values}) {'broke' if last is None else f'{last:.1f}'}{mark}")
    for i in range(0, len(ends), 3):
        print("    " + "".join(f"{end:<24}" for end in ends[i:i + 3]).rstrip())
inner = [name for name, edges in at_edge.items() if not edges]
print(f"no winner at an edge: {', '.join(inner)}; all others have one")
assert {len(method["search"]) for method in rivals.values() if method["kind"] == "sample"} == {3}
assert {len(method["search"]) for method in rivals.values() if method["kind"] != "sample"} == {9}

# %% [markdown]
# Most winners lie at an edge, RGDM's both. An edge can be harmless: for `conditional`, `cold` says how many times colder than the payoff's
# the rewards to ask for are drawn, `scale` is that of the guidance, and 1 is what theory asks for in both. And RGDM's nine numbers hardly differ. It can also hide something: `best_of_n` and `best_child` were still getting better.

# %% [markdown]
# ### How many rewards does it take?
# Rewards can be expensive: a laboratory, a quantum-chemistry program, a person. So here is the distance against the number
# of rewards, of trainings of several sizes for those that learn from a pool, and on the way for policy gradients.

# %%
colour = {name: plt.get_cmap("tab20")(i) for i, name in enumerate(rivals)}
fig, ax = plt.subplots(figsize=(8, 4.6))
for name, method in rivals.items():
    if method["kind"] == "pool":
        runs = method["runs"] + method["other_sizes"]
        sizes = sorted({one["evaluations"] for one in runs})
        ends = [at_end([one for one in runs if one["evaluations"] == n], "over_floor")[0] for n in sizes]
        ax.plot(sizes, ends, "o-", lw=3 if name == "rgdm" else 1.2, color=colour[name],
                label=name)
    elif method["kind"] == "policy":
        for i, one in enumerate([method["runs"][0], method["other_sizes"][0]]):  # the same seed
            curve = [p for p in one["curve"] if p["over_floor"] is not None]
            ax.plot([p["evaluations"] for p in curve], [p["over_floor"] for p in curve], "--",
                    color=colour[name], label=None if i else name)
ax.axhline(table["exact_denoiser"]["over_floor"], color="k", lw=0.8, label="exact denoiser")
ax.set(xscale="log", yscale="log", xlabel="reward evaluations", ylabel="distance (floors)")
ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
run.figure(fig, "rewards_needed",
           alt="Distance in floors against reward evaluations, both logarithmic. Value guidance is below 3 floors at every size; "
               "RGDM comes down from 5 to the black line's neighbourhood between 1,250 and 5,000; the policy gradients, dashed, start "
               "at 40 floors; those with a KL come down by 20,000, DDPO's turns and climbs to hundreds.",
           see="few rewards favour a learned value, some thousand are enough for RGDM; a policy gradient spends its "
               "rewards on paths it may use only once, and without a price on the KL it passes by.")

# %%
gap = table["exact_reward"] - table["base"]["reward"]
near_reward = table["base"]["reward"] + 0.95 * gap
near = 2 * at_end(rivals["rgdm"]["runs"], "over_floor")[0]
print(f"reached: mean reward of {near_reward:.2f} or more within {near:.1f} floors of the payoff")
needs = {}
for name, method in rivals.items():
    if method["kind"] == "sample":
        continue
    needs[name] = comparison.reached(method, near_reward, near)
    by_seed = ", ".join(f"{n:,}" if there else f"more than {n:,}" for n, there in needs[name])
    print(f"{name:<16} {by_seed}")


def median(name):
    """(evaluations, whether it gets there) of the middle seed."""
    by_seed = sorted(needs[name], key=lambda one: (not one[1], one[0]))
    return by_seed[len(by_seed) // 2]


assert all(there for _, there in needs["rgdm"])
best_ddpo = min(("ddpo", "ddpo_kl"), key=lambda name: (not median(name)[1], median(name)[0]))
for name, who in {"ddpo": best_ddpo, "ddpo_without_kl": "ddpo", "value_guidance": "value_guidance",
                  "reward_weighted": "reward_weighted", "tilt_matching": "tilt_matching"}.items():
    evaluations, there = median(who)
    run.metric(f"{name}_over_rgdm_reward_evaluations", evaluations / median("rgdm")[0], "1", judged_on,
               "reward evaluations to 95 % of the reward gap within twice RGDM's final distance, 8-D mixture, ESS "
               f"10 %: {who} over RGDM, medians of three seeds"
               + ("" if there else "; a lower bound: the median run never gets there"))

# %% [markdown]
# The sizes of the trainings that learn from a pool are a coarse grid (1,250, 5,000, 20,000, and the rounds between), so
# a ratio between two of them is right to a factor of four at best. "More than" is a lower bound: the longest run never
# got there. A run that passes the place on its way elsewhere counts, though without the exact answer nobody would
# know to stop it there: the first round of `reward_weighted`, which *is* RGDM of one round, does so with luck. The
# settings are those that were best at 20,000.

# %%
of_rgdm = rivals["rgdm"]["runs"]
mean, least, worst = at_end(of_rgdm, "over_floor")
run.metric("sw_over_floor_mixture8d", worst, "1", judged_on,
           f"sliced Wasserstein-1 of RGDM's samples to the exact payoff of the 8-D mixture at an ESS of 10 % over "
           f"its floor, 20,000 reward evaluations, {POINTS}, worst of {len(of_rgdm)} seeds", floor=1.0)
run.metric("sampler_over_floor_mixture8d", table["exact_denoiser"]["over_floor"], "1", judged_on,
           "the same distance for the exact denoiser of the payoff in the same sampler")
of_value, _, worst_value = at_end(rivals["value_guidance"]["runs"], "over_floor")
run.metric("sw_over_floor_mixture8d_value_guidance", worst_value, "1", judged_on,
           "the same distance for value guidance, worst seed")
of_particles, of_tilt, of_ddpo, of_ddpo_kl = (
    at_end(rivals[name]["runs"], "over_floor")[0] for name in ("particles", "tilt_matching", "ddpo", "ddpo_kl"))
# what the text below says
assert of_particles < mean < min(of_value, of_tilt, of_ddpo_kl, of_ddpo / 5)
for name in ("rgdm", "ddpo", "ddpo_kl"):
    run.metric(f"mode_l1_{name}", at_end(rivals[name]["runs"], "mode_l1")[2], "1", judged_on,
               f"L1 distance of the mode weights of {name}'s samples to the exact ones, minus that of exact samples, "
               f"8-D mixture, ESS 10 %, {POINTS}, worst seed")

# %%
with torch.random.fork_rng():
    torch.manual_seed(0)  # the judge's chance is not this run's
    exact8 = known.mixture8d_world().exact(table["share"])
    judge = [metrics.mode_l1(exact8.sample(judged_on), exact8) for _ in range(40)]
chance = float(np.std(judge)) / table["draws"] ** 0.5
print(f"exact samples, {judged_on:,} points: L1 of their mode weights {np.mean(judge):.3f}, which is taken off below; "
      f"standard deviation of a mean of {table['draws']} draws {chance:.4f}")  # fmt: skip
print(f"rgdm, seed by seed (the exact mean reward is {table['exact_reward']:.2f}):")
lasts = [one["curve"][-1] for one in of_rgdm]
for one, last in zip(of_rgdm, lasts, strict=True):
    print(f"  seed {one['seed']}: {last['over_floor']:.2f} floors, mode weights {last['mode_l1']:.3f}, "
          f"mean reward {last['reward']:.3f}, KL {last['kl']:.2f}")  # fmt: skip
assert max(last["mode_l1"] for last in lasts) < 0.02 and chance < 0.002
assert all(last["reward"] < table["exact_reward"] for last in lasts)

# %% [markdown]
# The mode weights of every seed are right within 0.02 (asked: 0.03). They are not exact: the judge's own chance is several times smaller. RGDM
# learns the shares of the modes from a finite number of effective samples. Each seed's mean reward is a little below the payoff's, too.

# %%
def end_at(name, evaluations):
    """Final distance of trainings of another size, mean over seeds."""
    return at_end([one for one in rivals[name]["other_sizes"] if one["evaluations"] == evaluations], "over_floor")[0]


ends = {name: at_end(method["runs"], "over_floor") for name, method in rivals.items()}
print(f"{'floors':<16}{'at the end':>11}{'seeds':>16}{'at 5,000':>10}{'at 1,250':>10}{'rewards needed over RGDM':>26}")
for name, (d, low, high) in sorted(ends.items(), key=lambda one: one[1][0]):
    fewer = "".join(f"{end_at(name, n):>10.1f}" if rivals[name]["kind"] == "pool" else f"{'':>10}" for n in (5000, 1250))
    ratio = ""
    if name in needs:
        n, there = median(name)
        ratio = ("" if there else "more than ") + f"{n / median('rgdm')[0]:.2f}"
    print(f"{name:<16}{d:>11.2f}{f'{low:.2f} to {high:.2f}':>16}{fewer}{ratio:>26}")
# what the text below says
assert ends["particles"][2] < least  # its worst seed is nearer than RGDM's best
assert needs["value_guidance"] == [(1250, True)] * 3  # every pool of 1,250
assert end_at("value_guidance", 1250) < 0.6 * end_at("rgdm", 1250)
by_seed = [sorted(one["curve"][-1]["over_floor"] for one in rivals["value_guidance"][part] if one["evaluations"] in (1250, 20_000))
           for part in ("runs", "other_sizes")]  # fmt: skip
print("value guidance, seed by seed, at 20,000 and at 1,250:", *(", ".join(f"{d:.1f}" for d in part) for part in by_seed), sep="  ")
assert max(by_seed[0]) > max(by_seed[1]) and by_seed[0][1] < min(by_seed[1])  # two seeds nearer, one farther than any
assert end_at("value_guidance", 1250) < end_at("tilt_matching", 1250) < end_at("conditional", 1250) < end_at("rgdm", 1250)
assert end_at("rgdm", 5000) < min(end_at("tilt_matching", 5000), end_at("conditional", 5000))
assert median("tilt_matching")[0] < median("rgdm")[0] < median("conditional")[0]
assert all(abs(ends[name][0] - mean) < 0.1 for name in ("reinforce", "conditional"))
print(f"at 60,000: ddpo_kl {end_at('ddpo_kl', 60_000):.2f} floors, reinforce {end_at('reinforce', 60_000):.2f}")
assert end_at("ddpo_kl", 60_000) < least < end_at("reinforce", 60_000)
assert 3 < median("reinforce")[0] / median("rgdm")[0] < median("ddpo_kl")[0] / median("rgdm")[0] < 5

# %% [markdown]
# **Where a rival wins.** More do than the final distance shows.
#
# - *Particles* get nearest, with no training at all: their worst seed is nearer than RGDM's best. The price is a hundred rewards for each
#   sample, every time, and points that come twice.
# - A *learned soft value* needs the fewest rewards: every pool of 1,250 was enough, where RGDM, with the four rounds that were best at
#   20,000, is twice as far away. It has only a scalar function to learn, $V_t$, whose gradient
#   is added to a score that is already good; RGDM learns all modes anew from some effective samples. With 20,000 rewards two of its
#   three seeds are as near as RGDM's, and one is farther away than any with 1,250: it is not steady. Its price: two
#   networks and a gradient in every step of the sampler, for ever, and a scale that must be 1 (see the search).
# - *Tilt matching* gets to 95 % of the gap with two thirds of RGDM's rewards, by the median of three seeds that lie far apart, and is a
#   little nearer with 1,250. With 5,000 and more RGDM is nearer.
# - A network that *reads the reward* ends as near, if the rewards to ask for are drawn from the payoff's own
#   (`cold` = 1) and nothing is added (`scale` = 1): the payoff distribution is the same conditional law under other rewards. A `scale` of
#   1.5 costs almost a floor, 3 three floors; asked for the best reward (`cold` = 10) it is far away, see the search.
# - *Policy gradients with the price of the KL*, its whole gradient included, aim at the payoff too. They need three to five times RGDM's
#   rewards to get near. With 60,000 DDPO's is nearer than RGDM with 20,000: each round's samples are new, a pool's chance stays.
#
# Of all methods that train, those that end within 0.2 floors of RGDM cannot be told from it by three seeds. RGDM's result is an
# ordinary model: one network, the same sampler, no reward and no gradient at sampling time. So is that of tilt matching and of the policy
# gradients.

# %%
scales = {one["setting"]["scale"]: one["curve"][-1]["over_floor"]
          for one in rivals["conditional"]["search"] if one["setting"]["cold"] == 1}  # fmt: skip
coldest = [one["curve"][-1]["over_floor"] for one in rivals["conditional"]["search"] if one["setting"]["cold"] == 10]
print("conditional, cold 1, by scale:", {scale: round(d, 1) for scale, d in scales.items()}, f"cold 10: {min(coldest):.0f} or more")
assert 0.6 < scales[1.5] - scales[1.0] < 1 and 2.5 < scales[3.0] - scales[1.0] < 3.5 and min(coldest) > 20
asked = 10  # the claim's bound: ten times RGDM's rewards
print(f"rewards over RGDM's, best tuned DDPO: {median(best_ddpo)[0] / median('rgdm')[0]:.1f} (asked: at least {asked})")
assert median(best_ddpo)[0] / median("rgdm")[0] < asked
for name, other in (("reinforce", "n"), ("ddpo_kl", "clip_ratio")):
    chosen = rivals[name]["runs"][0]["setting"]
    for one in sorted(rivals[name]["search"], key=lambda one: (one["setting"][other], one["setting"]["lr"])):
        last, rate = one["curve"][-1], one["setting"]["lr"] / chosen["lr"]
        if one["setting"][other] == chosen[other]:
            print(f"  {name}, {rate:.1f} of the best rate: {last['over_floor']:.1f} floors, mean reward {last['reward']:.2f}")
            if 0.2 < rate < 0.9:
                assert last["over_floor"] > 10 and last["reward"] < 0.8 * table["exact_reward"]
            if rate > 1.1:
                assert last["over_floor"] > 7 and last["reward"] > 1.1 * table["exact_reward"]
of_search = [one["curve"][-1]["over_floor"] for one in rivals["rgdm"]["search"]]
print(f"  rgdm, all nine: {min(of_search):.1f} to {max(of_search):.1f} floors")
assert max(of_search) < 2.3

# %%
around = []  # the judged points just below and just above the payoff's mean reward
for one in rivals["ddpo"]["other_sizes"]:
    above = next(i for i, point in enumerate(one["curve"]) if point["reward"] > table["exact_reward"])
    around += one["curve"][above - 1:above + 1]
print("ddpo, L1 of mode weights around the payoff's mean reward:",
      f"{min(p['mode_l1'] for p in around):.2f} to {max(p['mode_l1'] for p in around):.2f};",
      f"at 60,000 rewards its mean reward is {at_end(rivals['ddpo']['other_sizes'], 'reward')[0]:.1f}")  # fmt: skip
assert min(p["mode_l1"] for p in around) > 0.3 and at_end(rivals["ddpo"]["other_sizes"], "reward")[1] > 5 * table["exact_reward"]

# %% [markdown]
# **Where RGDM wins.** Against DDPO as published, by far: its reward passes the payoff's and goes on, for nothing in its
# objective holds it; and when its mean reward is right, its modes are not. It has moved all of them: a gradient
# moves what is there, weights choose between modes. Against iterated weights, because its target stays. Against a learned value and tilt
# matching at 20,000 rewards, in the mean: their seeds lie further apart than RGDM's. And against bounded weights, which have a section of
# their own below.
#
# **Where we expected more.** We had guessed that the best tuned DDPO needs ten times RGDM's rewards. It needs five times, and that claim fails.
# What policy gradients need is the right step: with a third of it, and the rest as chosen, they are more than ten floors away at
# 20,000, with three times of it DDPO's passes by. (The best step of `reinforce` is the largest that was tried.) RGDM hardly depends on
# its settings.
#
# ### Bounded weights: a second form that is not adopted
# RGDM keeps the pool of all rounds and weighs it back to the reference. There is a form that needs neither old samples nor
# weights that can grow, `rgdm_lib.baselines.bounded`: each round draws from the *current* model, adds noise, and regresses on
#
# <!-- definition -->
# $$
# y = \epsilon_{ref}(x_t, t) + \big(1 - e^{-\beta r(x_0)}\big) \big(\epsilon - \epsilon_{ref}(x_t, t)\big) ,
# \qquad r \ge 0, \quad \beta = 1/\tau .
# $$
#
# The factor lies between 0 and 1, and the payoff is a fixed point, as `tests/test_rivals.py` checks on a finite chain. The reward must not
# be negative: for the table it is shifted by the reference's 1 % quantile, and what lies below counts as 0 (a shift leaves the payoff as it
# is; less than a thousandth of it lies below that quantile).
#
# **Predict.** Near a sample of reward $r$ an exact round closes the share $e^{-\beta r}$ of the gap. How many rounds will it take?

# %%
hard = known.mixture8d_world()
with torch.random.fork_rng():
    least_reward = hard.reward(hard.reference.sample(100_000)).quantile(0.01)
    shifted = hard.reward(exact8.sample(100_000)) - least_reward
below, shifted = float((shifted < 0).float().mean()), shifted.clamp(min=0)
closed = float((-shifted / table["tau"]).exp().median())
of_bounded = rivals["bounded"]["runs"]
n_rounds = of_bounded[0]["setting"]["rounds"]
print(f"the reward is shifted by {-float(least_reward):.2f}; {below:.2%} of the payoff lies below 0 then")
print(f"at the median sample of the payoff an exact round closes {closed:.2%} of the gap, {n_rounds} rounds "
      f"{1 - (1 - closed) ** n_rounds:.0%}")  # fmt: skip
print(f"{n_rounds} rounds: {of_bounded[0]['curve'][-1]['step'] // n_rounds} steps and {20_000 // n_rounds} samples in each")
for name in ("bounded", "rgdm"):
    r, d, k = (at_end(rivals[name]["runs"], what)[0] for what in ("reward", "over_floor", "kl"))
    least_kl = float(np.interp(r, *zip(*[hard.reference.frontier(hard.reward, table["tau"] * 2 ** (i / 8))
                                         for i in range(60, -1, -1)], strict=True)))  # fmt: skip
    print(f"{name:<8} mean reward {r:.2f}, {d:.1f} floors, KL {k:.2f} nats; that reward can be had for {least_kl:.2f}")
print("bounded, KL by rounds and rate at 20,000 rewards:")
by_setting = {(one["setting"]["rounds"], one["setting"]["lr"]): one["curve"][-1]["kl"] for one in rivals["bounded"]["search"]}
for k in (10, 20, 40):
    print(f"  {k} rounds: " + ", ".join(f"{by_setting[k, lr]:.1f} at {lr:g}" for lr in (3e-4, 1e-3, 3e-3)))
for lr in (3e-4, 1e-3, 3e-3):
    assert by_setting[10, lr] < by_setting[20, lr] < by_setting[40, lr]
for one in of_bounded:  # the KL grows from one look to the next
    assert all(a["kl"] < b["kl"] for a, b in zip(one["curve"], one["curve"][1:], strict=False))
    assert 1 < one["curve"][-1]["kl"] < 2 and one["curve"][-1]["reward"] < 0.4
assert closed < 1e-3 and below < 1e-3 and all(end_at("bounded", n) > 3 * end_at("rgdm", n) for n in (5000, 1250)) and ends["bounded"][0] > 10 * mean

# %% [markdown]
# It is slow, *and* it wanders off. Slow: where the payoff has its mass, a round closes less than a thousandth of the gap, so twenty rounds
# are far too few. The large factor that no weight shows is in the number of rounds. That alone would leave it near the base. But its
# samples are 1.4 to 2 nats away, for a mean reward that can be had for some hundredths: each round fits anew, with few steps on few samples,
# and what a fit gets wrong is pulled back by no more than that same share. So errors add up from round to round. The KL grows at every
# look, and with the number of rounds. The pool of all rounds has its target from the first round on.
#
# So bounded weights win at no size of this table, and they are *not* adopted: `rgdm.fit` has no such option. (Whether thousands of
# rounds with a better fit would get there, the table does not say. They would cost thousands of draws.)
#
# ### All of them in the reward-KL plane
# The frontier is exact here. The KL of each method's samples to the exact reference is estimated from distances to
# neighbours. The base model is not quite at 0, for its tails are not the mixture's; so all points that come from it carry about that
# much to the right. `particles` has no point: resampled particles come twice, a distance to the nearest neighbour is then 0, and
# the estimate has no value. Its mean reward is drawn as a line.

# %%
curve = [hard.reference.frontier(hard.reward, table["tau"] * 2 ** (i / 4)) for i in range(-12, 28)]
fig, axes = plt.subplots(1, 2, figsize=(11, 4.6))
without = []
for ax in axes:
    ax.plot([k for _, k in curve], [r for r, _ in curve], "k", lw=1, label="exact frontier")
    ax.plot(table["exact_kl"], table["exact_reward"], "k*", ms=12, label="exact payoff")
    ax.plot(table["base"]["kl"], table["base"]["reward"], "kx", label="base")
    ax.set_xlabel("KL to the exact reference (nats)")
for (name, method), marker in zip(rivals.items(), "oDs^vP<>Xdphx*"[:len(rivals)], strict=True):
    r, k = at_end(method["runs"], "reward")[0], at_end(method["runs"], "kl")[0]
    if math.isnan(k):
        without.append(f"{name} (mean reward {r:.2f})")
        for ax in axes:
            ax.axhline(r, color=colour[name], lw=0.8, ls=":", label=name)
        continue
    assert -0.1 < k < 8 and -0.2 < r < 3.2  # inside the left panel
    for ax in axes:
        ax.plot(k, r, marker, ms=9 if name == "rgdm" else 6, color=colour[name], label=name)
axes[0].set(ylabel="mean reward", xlim=(-0.1, 8), ylim=(-0.2, 3.2), title="all")
axes[1].set(xlim=(1.3, 2.1), ylim=(1.7, 2.1), title="near the payoff")
axes[0].plot([1.3, 2.1, 2.1, 1.3, 1.3], [1.7, 1.7, 2.1, 2.1, 1.7], color="0.6", lw=0.8)
axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
run.figure(fig, "rivals_plane",
           alt="Two panels of mean reward against KL, the right one an enlargement: the exact frontier and a star on it for the exact "
               "payoff. RGDM is the nearest to the star; the policy gradients with a KL and the network that reads the reward lie "
               "around it, value guidance and the gradient of the reward above, best of n and tilt matching to the right of it; "
               "the best child on the frontier at the lower left, iterated weights near it at the upper right; bounded weights "
               "at the bottom, DDPO without a KL furthest to the right.",
           see="what lies on the frontier away from the star is a payoff of another temperature; what lies below it pays "
               "nats for nothing.")
print("no KL, points coincide:", "; ".join(without))
assert [one.split()[0] for one in without] == ["particles"]

# %% [markdown]
# ### Which method when
# Each line with its number, from the table. They are numbers of one world: eight dimensions, a smooth reward, a
# network that fits it. Take the order of the questions from here, not the digits. What the branches rest on is a claim with a bound
# (printed below, judged in notebook 10), but for the one on samples that never meet the reward: at an effective share of 10 % they do meet
# it, so this table does not test it.

# %%
def floors(name):
    """Final distance of a method, mean over its seeds, as text."""
    return f"{at_end(rivals[name]['runs'], 'over_floor')[0]:.1f} floors"


def floors_at(name, evaluations):
    """The same for trainings of another size."""
    return f"{end_at(name, evaluations):.1f}"


first, second = ([one["curve"][k]["over_floor"] for one in rivals["reward_weighted"]["runs"]] for k in (0, 1))
nearest_first, furthest_first = min(first), max(first)
print(f"""Only a few samples are wanted, and rewards are cheap: train nothing.
  particles: {floors("particles")}, at {spent(rivals["particles"])}; for a crowd of samples, not for one
  best_of_n: {floors("best_of_n")}, at {spent(rivals["best_of_n"])}; not the payoff for any n, but one line of code
The reward has a gradient: do not lean on it alone.
  reward_gradient: {floors("reward_gradient")} at the best of three scales; r at the denoised guess is not the soft value
Rewards are very expensive, and slower samples are acceptable: learn the soft value.
  value_guidance: {floors_at("value_guidance", 1250)} at 1,250 rewards (rgdm {floors_at("rgdm", 1250)}), {floors("value_guidance")} at 20,000
Some thousand rewards, and the result must be a plain model: rgdm.
  rgdm: {floors_at("rgdm", 5000)} at 5,000, {floors("rgdm")} at 20,000; the sampler costs what it cost before
Many temperatures or wishes with one training: a network that reads the reward.
  conditional: {floors("conditional")}, if the rewards to ask for are drawn from the payoff's
Samples of the reference never meet the reward (an effective sample size near 1): temper (section 5), or go on-policy. Not tested here;
at an effective share of 10 %:
  {", ".join(f"{name}: {floors(name)}" for name, m in rivals.items() if m["kind"] == "policy")}
Never: iterate weights without their correction.
  reward_weighted: {floors("reward_weighted")} after the second round, {nearest_first:.1f} to {furthest_first:.1f} after the first""")

# %%
WHERE = f"8-D mixture, ESS 10 %, {judged_on:,} points a draw"
for name, value, words in (
    ("particles_over_rgdm_distance", ends["particles"][2] / least,
     "distance to the payoff of particles, the worst seed, over that of RGDM at 20,000 rewards, the best seed"),
    ("best_of_n_over_particles_distance", ends["best_of_n"][0] / ends["particles"][0],
     "distance of the best of n, the best n tried, over that of particles, means over seeds"),
    ("reward_gradient_over_value_guidance_distance", ends["reward_gradient"][0] / ends["value_guidance"][0],
     "distance with the gradient of the reward at the denoised guess over that with a learned soft value's, means over seeds"),
    ("value_guidance_over_rgdm_distance_at_1250", end_at("value_guidance", 1250) / end_at("rgdm", 1250),
     "distance of value guidance over RGDM's, 1,250 rewards each, means over seeds"),
    ("conditional_minus_rgdm_distance", ends["conditional"][0] - mean,
     "distance, in floors, of the network that reads the reward minus RGDM's, 20,000 rewards each, means over seeds"),
    ("second_over_first_round_distance", min(b / a for a, b in zip(first, second, strict=True)),
     "distance after the second round of iterated weights over that after the first, the least of the seeds"),
):  # fmt: skip
    run.metric(name, value, "1", judged_on, f"{words}; {WHERE}")

# %% [markdown]
# ### Bug museum: advantages over their standard deviation
# Policy gradients are often run with advantages divided by their standard deviation in the batch. It spares one the choice of a
# step size when rewards have an unknown scale. Here is the smallest policy there is, a Gaussian whose mean and log width are
# learned by REINFORCE, for the reward $-(x - 1)^2$.
#
# **Predict.** Both curves start alike. What does the division do when the policy has become narrow?

# %%
def climb(scaled, rounds=400, n=64, step_size=0.1):
    """(rounds, 2): exact mean reward and width of a Gaussian policy, REINFORCE from mean -2, width 1."""
    mean, log_width, history = torch.tensor(-2.0), torch.tensor(0.0), []
    for _ in range(rounds):
        noise = torch.randn(n)
        r = -((mean + log_width.exp() * noise - 1) ** 2)
        A = (r - r.mean()) / (r.std() if scaled else 1)
        of_mean = (A * noise).mean() / log_width.exp()  # d log p / d mean is noise / width
        of_width = (A * (noise**2 - 1)).mean()
        mean, log_width = mean + step_size * of_mean, log_width + step_size * of_width
        history.append((float(-((mean - 1) ** 2) - (2 * log_width).exp()), float(log_width.exp())))
    return torch.tensor(history)


climbs = {"raw": climb(False), "over their standard deviation": climb(True)}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for ax, column, label in zip(axes, (0, 1), ("lost reward", "width of the policy"), strict=True):
    for name, history in climbs.items():
        ax.plot(-history[:, 0] if column == 0 else history[:, 1], label=name)
    ax.set(yscale="log", xlabel="round", ylabel=label)
axes[0].legend(fontsize=8)
run.figure(fig, "scaled_advantages",
           alt="Two panels over 400 rounds, logarithmic. Lost reward: the raw curve falls smoothly; the scaled one falls "
               "as far in thirty rounds, then climbs by two orders of magnitude and jumps about there. Width: both shrink, the "
               "scaled one further.",
           see="both climb alike; once its policy is narrow, every round throws the scaled run off again.")
history = climbs["over their standard deviation"][:, 0]
top = int(history.argmax())
run.metric("reward_lost_after_best_scaled_advantages", history[top] - history[top:].min(), "1", 64,
           "exact mean reward at its best minus the worst after it, REINFORCE with advantages over their standard "
           "deviation, Gaussian policy", floor=float(climbs["raw"][:, 0].max() - climbs["raw"][-1, 0]))

# %% [markdown]
# Raw advantages shrink with the policy's width, and the score $noise / width$ grows with its inverse: the step of the mean
# stays what it was. Divided advantages do not shrink, so the step grows as the policy narrows, until it is longer than the policy is wide. With a
# price on the KL the same division moves the target: it becomes the payoff of $\tau$ times the standard deviation, a temperature
# that falls with every success. Three lines find it: print the width, print the step over the width, and
# keep the best round's reward beside the last one's.

# %% [markdown]
# ## Recap
#
# - The target of reward-guided training is the payoff distribution $p_{ref}\, e^{r/\tau}/Z$. It is fixed.
# - Weights $e^{r/\tau}$ on samples of the reference reach it; their effective sample size says what they
#   are worth, and it is the way to choose a temperature.
# - Fitting a diffusion model to the weighted samples is plain denoising: no gradient of the reward, none
#   through the sampler, and one batch of rewards serves all steps.
# - Several rounds need weights back to the *same* target: reference over mixture of all models, by exact
#   path log-probabilities. Without them the temperature falls with every round.
# - Closeness to the payoff is the goal, not reward: a share of the reward gap above 1 is an error too.
# - RGDM is not the best at everything: particles get nearer, a learned soft value needs fewer rewards, and both make each sample dearer.

# %% [markdown]
# ## Results

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - **The effective sample size collapses** (section 8). Raise the temperature, draw more, or temper.
# - **The weights grow with the dimension.** At a fixed temperature the effective share falls exponentially with
#   the number of independent things the reward depends on. Two dimensions are kind.
# - **Path weights are noisier than weights of $x_0$ would be.** A fit that is good in $x_0$ can still differ at
#   many small steps, each costing path ESS. Watch that number beside the exact denoisers'; `fit` falls back below 5 %.
# - **The base model's errors are amplified.** The tilt multiplies the tail of $p_{ref}$; where the network's
#   tail is wrong, so is the payoff it leads to. Weights are exact for the *network's* reference, not for the
#   data's.
# - **The reward is hacked.** Here it cannot be; with molecules it can. Report what the reward does not see.
# - **Too few sampler steps.** The exact denoiser in the same sampler is printed beside the result for that reason.

# %% [markdown]
# ## Further reading
#
# - Zhang & Xu, *Towards Controllable Diffusion Models via Reward-Guided Exploration*, arXiv 2304.07132: the method's
#   name and idea. Its published derivation and its tables are not used here.
# - Norouzi et al., *Reward Augmented Maximum Likelihood*, arXiv 1609.00150: the swap of the KL's arguments.
# - Owen, *Monte Carlo theory, methods and examples*, chapter 9: importance sampling and effective sample sizes.
# - Veach & Guibas, *Optimally Combining Sampling Techniques for Monte Carlo Rendering*, SIGGRAPH 1995: the
#   balance heuristic.
# - Black et al., *Training Diffusion Models with Reinforcement Learning*, arXiv 2305.13301: reward-weighted
#   regression and DDPO, the rivals.

# %% [markdown]
# ## Next
#
# [08 · Point clouds](08_point_clouds.ipynb): the same weights and the same loss on 3-D shapes, rewarded for a class and for standing. Then
# [09 · Molecules](09_molecules.ipynb): real molecules, with drug-likeness computed by RDKit as the reward.

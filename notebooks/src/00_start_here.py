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
# # 00 · Start here
#
# What does a diffusion model do? Noise is added to data in many small steps, until nothing but noise is left. A
# network learns to undo one step: shown a noisy point and how far along it is, it guesses the noise in it. To make
# something new, start from pure noise and walk the steps back, one guess at a time.
#
# So it makes more of what its data hold. This course teaches how to make it produce what a *reward* asks for
# instead: any function of a finished sample, with or without a gradient. This notebook shows the central
# idea in one picture. Then you steer a shipped model of real molecules with a single dial, before any training.
# It also holds the map of the course, its budget and its notation.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 20 | 20 | 20 |
# | minutes to run (2 CPU cores) | 0.3 | 0.3 | 0.3 |
# | memory | 1 GB | 1 GB | 1 GB |
# | GPU | not used | not used | not used |
#
# Prerequisites: Python, a little PyTorch, what a probability density is. The presets do not differ here.

# %% [markdown]
# ## Goals
#
# - **say** what a reward at a temperature does to a distribution
# - **compute** payoff weights, and **judge** by the effective sample size what they are worth
# - **steer** the samples of a molecule model by reweighting, and see what it costs
# - **find** your way through the course
#
# ## Map
#
# | notebook | you will |
# |---|---|
# | 00 start here | steer with a temperature |
# | [01 adding noise](01_adding_noise.ipynb) | destroy data in small steps, know the perfect denoiser |
# | [02 DDPM from scratch](02_ddpm_from_scratch.ipynb) | write loss, training loop and samplers, and score them |
# | [03 conditional control](03_conditional_control.ipynb) | steer by conditions and guidance: the usual way |
# | [04 denoising as an MDP](04_denoising_as_an_mdp.ipynb) | see sampling as decisions, with the reinforcement learning needed |
# | [05 the maximum-entropy link](05_max_entropy_link.ipynb) | derive why the payoff distribution is the right target |
# | [06 payoff sampling](06_payoff_sampling.ipynb) | draw from it: weights, particles, the local ball taken apart |
# | [07 RGDM](07_rgdm.ipynb) | train a model towards it, against an exact answer |
# | [08 point clouds](08_point_clouds.ipynb) | do so for 3-D shapes: a class, and chairs that stand |
# | [09 molecules](09_molecules.ipynb) | do so for molecules, with a reward that has no gradient |
# | [10 results](10_results.ipynb) | read every claim, and forecast a reward of your own |
#
# In a hurry: 00, 01, 02, 07, 10. For molecules add 09, for shapes 08. Each notebook runs by itself, top to bottom, with its exercises
# unsolved; its table names the notebooks to read before it.
#
# **Budget.** Every notebook has three presets. `quick` takes about 40 seconds on 2 CPU cores (08, 09: 90), `laptop` at most
# 10 minutes (07: 20, 08: 15), `full` is meant for a GPU. The second code cell sets the preset. What took hours was run once
# with `python -m rgdm_lib.course experiment NAME`; its results ship with the course.
#
# **How to read.** Before most results you are asked for a number. Write it down first: being wrong is
# how the picture in your head gets corrected. Exercises answer back: run the check below them. Results are
# printed as *metrics*: a number, $n$ (how many samples are behind it), and where it helps its *floor*, the value that an
# untouched model or an exact sample of the same size has, and its *ceiling*, the most there is.

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
import numpy as np
import torch

from rgdm_lib import payoff
from rgdm_lib._data import data_path
from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.molecules import data, views

run = notebook.start("00_start_here", PRESET, SEED, OUT_DIR)

# %% [markdown]
# ## 1. The idea in one picture
#
# **Question.** A model draws samples $x$ from a distribution $p_\text{ref}$, the *reference*. A function $r(x)$, the
# *reward*, says how much we like a sample. Which distribution do we want?
#
# Not the single best sample: that throws the model away. Not the reference: that ignores the reward. A
# compromise is the *payoff distribution*,
#
# <!-- definition -->
# $$
# p^*(x) = \frac{1}{Z}\, p_\text{ref}(x)\, e^{r(x) / \tau}, \qquad Z = \int p_\text{ref}(x)\, e^{r(x)/\tau}\, dx .
# $$
#
# The *temperature* $\tau > 0$ is the dial, in units of the reward. A sample whose reward is higher by $\tau$
# becomes $e \approx 2.7$ times as likely, relative to another. Hot ($\tau$ large): the reference hardly changes.
# Cold ($\tau$ small): only the best survive. (Notebook 05 derives why this compromise and no other: it has
# the most reward for its distance from the reference.)
#
# A case to do by hand: the reference is $\mathcal N(m, s^2)$ and the reward is $r(x) = x$. Completing the square
# gives
#
# <!-- eq: linear-tilt-of-a-gaussian | derived here -->
# $$
# p^* = \mathcal N\!\left(m + \frac{s^2}{\tau},\; s^2\right) :
# $$
#
# the reward moves the mean and leaves the width alone. Note $s^2/\tau$: *what the reference never does cannot be
# asked of it.* Without spread there is nothing to select from.
#
# **Predict.** $m = 0$, $s = 1$, $\tau = 0.5$. What is the mean of $p^*$?

# %%
guess = None  # your number

# %%
x = torch.linspace(-9, 9, 9001, dtype=torch.float64)
dx = x[1] - x[0]


def tilt(density, reward, tau):
    """The payoff density on the grid: reference times exp(reward / tau), normalised."""
    weight = density * torch.exp((reward - reward.max()) / tau)
    return weight / (weight.sum() * dx)


normal = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
tilted = tilt(normal, x, 0.5)
mean = float((tilted * x).sum() * dx)
variance = float((tilted * (x - mean) ** 2).sum() * dx)
print(f"mean {mean:.3f}, variance {variance:.3f}; your guess for the mean: {guess}")
run.metric("linear_tilt_error", abs(mean - 2) + abs(variance - 1), unit="1", n=len(x),
           definition="error of mean plus error of variance of N(0, 1) tilted by r(x) = x at "
                      "tau = 0.5, on a grid, against N(2, 1)")

# %% [markdown]
# Now a reference with three modes and a reward with a jump, which no gradient method would like.

# %%
means, widths = (-3.0, 0.0, 2.5), (0.6, 0.5, 0.7)
bumps = [torch.exp(-(((x - m) / s) ** 2) / 2) / s for m, s in zip(means, widths, strict=True)]
reference = 0.5 * bumps[0] + 0.35 * bumps[1] + 0.15 * bumps[2]
reference = reference / (reference.sum() * dx)
reward = torch.where(x > 1, 1.0, 0.0) - 0.1 * (x - 2) ** 2 / 4

fig, axes = plt.subplots(1, 3, figsize=(10, 2.9), sharey=True)
for ax, tau in zip(axes, (2.0, 0.5, 0.1), strict=True):
    ax.fill_between(x, reference, color="0.85", label=r"$p_\mathrm{ref}$")
    ax.plot(x, tilt(reference, reward, tau), label="$p^*$")
    ax.plot(x, 0.3 * reward, color="#009E73", lw=1, ls="--", label="0.3 r")
    ax.set(title=rf"$\tau$ = {tau}", xlabel="x", xlim=(-6, 6), ylim=(-0.3, 0.7))
axes[0].set_ylabel("density (per unit of x)")
axes[0].legend(fontsize=8, loc="upper left")
run.figure(
    fig,
    "payoff_in_one_picture",
    alt="Three panels. A grey reference with modes at -3, 0 and 2.5, the last one small; a dashed "
    "reward that jumps up at x = 1. The payoff density is near the reference at tau = 2, favours the "
    "small right mode at 0.5, and is that mode alone at 0.1.",
    see="cooling moves mass to where the reward is high, but only where the reference has mass.",
)

# %% [markdown]
# ## 2. Weights, and what they are worth
#
# **Question.** A model gives us samples, not a density. How do we get $p^*$?
#
# Weigh each sample $x_i$ by $e^{r(x_i)/\tau}$ and normalise. Averages under these weights are averages under $p^*$. It
# needs no gradient of $r$, and $r$ is computed once for each sample. A sample on which the reward has no value
# (a "molecule" that falls into pieces) gets weight 0.
#
# ### Exercise 00.1: payoff weights
# Write `payoff_weights(reward, tau)`. `reward` is (n,) and may hold NaN for "no value". Return (n,)
# weights that sum to 1. Rewards may be large, of either sign: $e^{r/\tau}$ must not overflow, nor be 0 for all.
#
# <details><summary>Hint 1</summary>
#
# Only differences of rewards matter. Subtracting the largest one changes nothing but the overflow.
#
# <details><summary>Hint 2</summary>
#
# `torch.nan_to_num(reward, nan=-math.inf)` and then `torch.softmax`.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 00.1
def payoff_weights(reward, tau):
    """Normalised weights exp(reward / tau); NaN gets weight 0."""
    # STUB: return None
    ### BEGIN SOLUTION
    reward = torch.where(torch.isnan(reward), -math.inf, reward)
    return torch.softmax(reward / tau, 0)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("00.1", payoff_weights)

# %% [markdown]
# Weights have a price. If a few samples hold nearly all the weight, the average is an average of a few. The
# *effective sample size* counts how many samples of equal weight would be as good:
#
# <!-- eq: effective-sample-size | Owen, Monte Carlo theory, methods and examples, eq. 9.13 -->
# $$
# \mathrm{ESS} = \frac{\big(\sum_i w_i\big)^2}{\sum_i w_i^2} .
# $$
#
# **Predict.** Of 1000 samples, half have weight $w$ and half have weight 0. What is the ESS?
#
# ### Exercise 00.2: effective sample size
# Write `effective_sample_size(weight)` for weights (n,) that need not sum to 1. Return a number.
#
# <details><summary>Hint 1</summary>
#
# Equal weights must give n, a single weight must give 1.
#
# <details><summary>Hint 2</summary>
#
# The square of the sum, over the sum of the squares.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 00.2
def effective_sample_size(weight):
    """How many equal weights these are worth."""
    # STUB: return None
    ### BEGIN SOLUTION
    return float(weight.sum() ** 2 / (weight**2).sum())
    ### END SOLUTION

# %% tags=["check"]
exercises.check("00.2", effective_sample_size)

# %% [markdown]
# ## 3. Steer a shipped model of molecules
#
# **Question.** What does a real model give when we turn the dial?
#
# The course ships samples of a diffusion model that was trained on small molecules (QM9, at most seven *heavy*
# atoms, which are all but hydrogen). It places atoms in space, hydrogens included. Notebook 09 trains it. The
# reward is QED, a score between 0 and 1 for how much a molecule looks like a drug, computed by RDKit from the
# bonds. It has no gradient with respect to the atoms.
#
# Not every sample is a molecule. QED has a value only where a sample is *stable*: its bonds, read off from the
# distances between its atoms, give every atom its valence and hold all atoms together. Otherwise it is NaN.
#
# One rule: *the number of atoms keeps its distribution.* Small molecules have low QED for their size alone, and we
# do not want "larger" to pass for "better". So weights are normalised inside each size.

# %%
samples = data.load_set(data_path("molecules/base_heavy7_samples.npz"))
qed = torch.as_tensor(samples.property("qed"), dtype=torch.float64)
sizes = torch.from_numpy(samples.n_atoms)
valued = torch.isfinite(qed)
base_mean = float(qed[valued].mean())
print(f"{len(samples):,} samples, {int(valued.sum()):,} of them with a QED: mean {base_mean:.3f}, "
      f"standard deviation {float(qed[valued].std()):.3f}")


def steer(tau):
    """Mean QED and effective sample size (share of the samples with a value) at tau."""
    log_weight = payoff.log_weights(qed, tau, strata=sizes)
    mean = (log_weight.exp()[valued] * qed[valued]).sum()
    return float(mean), payoff.effective_sample_size(log_weight) / int(valued.sum())


# %% [markdown]
# **Predict:** the mean QED when the dial is turned so far that 40 % of the samples are still effective. (For a
# Gaussian reward of standard deviation $s$, 40 % is reached near $\tau = s$. Then use section 1: $m + s^2/\tau$.)

# %%
guess = None  # your number

# %%
tau_40 = payoff.temperature_for_ess(qed, 0.4, sizes)
mean_40, share_40 = steer(tau_40)
print(f"tau = {tau_40:.3f}: mean QED {mean_40:.3f}, ESS {share_40:.0%}; your guess: {guess}")
run.metric("qed_base", base_mean, unit="1", n=int(valued.sum()),
           definition="mean QED of the shipped base samples that have a value")
run.metric("qed_payoff_ess40", mean_40, unit="1", n=int(valued.sum()), floor=base_mean,
           ceiling=float(qed[valued].max()),
           definition="mean QED under payoff weights, sizes kept, at the temperature where 40 % of "
                      "the valued base samples are effective")

# %%
taus = np.geomspace(0.01, 1, 41)
curve = np.array([steer(float(tau)) for tau in taus])
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
left.semilogx(taus, curve[:, 0], label="payoff")
left.axhline(base_mean, color="grey", lw=0.8, ls=":", label="base model, all with a QED")
left.set(xlabel=r"temperature $\tau$ (QED)", ylabel="mean QED")
left.legend()
right.semilogx(taus, 100 * curve[:, 1])
right.set(xlabel=r"temperature $\tau$ (QED)", ylabel="ESS (% of valued samples)", ylim=(0, 105))
for ax in (left, right):
    ax.axvline(tau_40, color="#D55E00", lw=0.8, ls="--")
run.figure(
    fig,
    "dial",
    alt="Mean QED falls with the temperature towards the base model's; the effective sample size "
    "rises and levels off. A dashed line marks the temperature of ESS 40 percent.",
    see="the colder, the higher the mean QED, and the fewer samples it rests on (dashed: ESS 40 %).",
)

# %% [markdown]
# At the hot end the curve need not meet the dotted line: samples without a value are more frequent at some sizes
# than at others, and the weights restore every size's share.
#
# Which molecules are these? Draw ten of the base model's that have a value, and ten from the payoff distribution
# at that temperature: samples drawn again with their weights as probabilities (*resampling*). Some may look odd to
# a chemist. To have the right number of bonds everywhere is not yet to be a molecule that one could make.

# %%
def pick(tau, n=10):
    """Indices of n samples: valued ones (tau None), or drawn from the payoff distribution."""
    log_weight = torch.where(valued, 0.0, -math.inf).double()
    if tau is not None:
        log_weight = payoff.log_weights(qed, tau, strata=sizes)
    chosen = payoff.systematic_resample(log_weight, n)
    return chosen[torch.argsort(qed[chosen])]


def draw_molecules(index):
    """A figure of these samples with their QED."""
    words = [f"QED {q:.2f}" for q in qed[index].tolist()]
    return views.grid(samples.subset(index.numpy()), words, file_format="png").figure()


base_ten, payoff_ten = pick(None), pick(tau_40)
run.figure(
    draw_molecules(base_ten),
    "molecules_base",
    alt="Drawings of ten stable molecules of the base model, ordered by QED.",
    see=f"ten of the base model's stable molecules; mean QED {float(qed[base_ten].mean()):.2f}.",
)

# %%
run.figure(
    draw_molecules(payoff_ten),
    "molecules_payoff",
    alt="Drawings of ten molecules drawn from the payoff distribution, ordered by QED.",
    see=f"ten from the payoff distribution; mean QED {float(qed[payoff_ten].mean()):.2f}.",
)

# %% [markdown]
# ### Play
#
# Turn the dial yourself. Watch three things: the histogram, the ESS, and the molecules. Of 100 draws from the payoff
# distribution the five samples that came most often are shown, with how often they came. When does one
# sample begin to come again and again?

# %%
def most_drawn(tau, n=100, shown=5):
    """Of n draws at tau: the samples that came most often, how often, and how many differ."""
    with torch.random.fork_rng():  # moving the slider must not move the notebook's numbers
        torch.manual_seed(0)
        log_weight = payoff.log_weights(qed, tau, strata=sizes)
        index, count = payoff.systematic_resample(log_weight, n).unique(return_counts=True)
    top = count.argsort(descending=True, stable=True)[:shown]
    return index[top], count[top], len(index)


def draw_dial(log10_tau):
    """Histogram of QED, base and payoff, and the samples drawn most often at this temperature."""
    tau = 10**log10_tau
    weight = payoff.log_weights(qed, tau, strata=sizes).exp()
    mean, share = steer(tau)
    index, count, different = most_drawn(tau)
    words = [f"QED {q:.2f}, {c} of 100" for q, c in zip(qed[index], count, strict=True)]
    picture = views.grid(samples.subset(index.numpy()), words, file_format="png").figure()
    pixels = picture.axes[0].images[0].get_array()
    plt.close(picture)

    fig, (top, bottom) = plt.subplots(2, 1, figsize=(8, 4.4), height_ratios=(3, 2))
    bins = np.linspace(float(qed[valued].min()), float(qed[valued].max()), 41)
    top.hist(qed[valued], bins, density=True, color="0.85", label="base model")
    top.hist(qed[valued], bins, weights=weight[valued], density=True, histtype="step", label="payoff")
    top.set(xlabel="QED", ylabel="density (per unit of QED)",
            title=rf"$\tau$ = {tau:.3f}: mean QED {mean:.3f}, ESS {share:.0%}, "
                  f"{different} of 100 draws differ")
    top.legend(loc="upper left")
    bottom.imshow(pixels)
    bottom.axis("off")
    return fig


run.figure(
    draw_dial(math.log10(tau_40)),
    "dial_and_molecules",
    alt="Histogram of QED of the base model in grey and of the payoff distribution as a line, moved "
    "to the right; below, the five molecules drawn most often from the payoff distribution.",
    see="the whole histogram moves right; nothing appears that the base model never made.",
)

# %%
widgets.explore(
    draw_dial,
    log10_tau=ipywidgets.FloatSlider(math.log10(tau_40), min=-3, max=0, step=0.05),
)

# %% [markdown]
# **Break it.** Turn the dial to $\tau = 0.002$, which is `log10_tau` = -2.7. The mean QED is splendid. How many
# samples is it made of?

# %%
for tau in (1.0, tau_40, 0.01, 0.002):
    mean, share = steer(tau)
    _, count, different = most_drawn(tau)
    print(f"tau = {tau:.3f}: mean QED {mean:.3f}, {share * int(valued.sum()):7,.1f} effective samples of "
          f"{int(valued.sum()):,}; of 100 draws {different} differ, one came {int(count[0])} times")
assert most_drawn(0.002)[2] < most_drawn(1.0)[2] and most_drawn(0.002)[1][0] > 1

# %% [markdown]
# Cold, what is left is hardly more than the best sample of every size, drawn again and again. (Every size keeps its
# share, so each keeps one at least.)
#
# A splendid mean on a handful of samples is luck, not a distribution. And the weights only *select*: however
# cold, no new molecule appears. That is why the course goes on. Training towards $p^*$ (notebook 07) gives a model
# that draws from it directly, as many samples as you like, and fresh ones.

# %% [markdown]
# ## Notation
#
# | symbol | meaning | first used |
# |---|---|---|
# | $x_0$, $x_t$ | a data point; the same after $t$ steps of noise | 01 |
# | $t = 1, \dots, T$ | time of the noising chain; 0 is the data | 01 |
# | $\beta_t$, $\alpha_t = 1 - \beta_t$ | variance that step $t$ adds; share that it keeps | 01 |
# | $\bar\alpha_t = \alpha_1 \cdots \alpha_t$ | share of the data's variance left at $t$; $\bar\alpha_0 = 1$ | 01 |
# | $\tilde\beta_t$ | variance of one step back when $x_0$ is known | 01 |
# | $q$ | law of the noising chain, fixed | 01 |
# | $\varepsilon$, $\varepsilon_\theta(x_t, t)$ | noise; a network's guess of it, the *denoiser* | 02 |
# | $\hat x_0$ | the guess of $x_0$ that belongs to it | 02 |
# | $p_\theta$, $p_\text{ref}$ | law of a model; of the reference, before steering | 02, 00 |
# | $r$, $\tau$ | reward; temperature, in the reward's unit | 00 |
# | $p^*$, $Z$ | payoff distribution; its normaliser | 00 |
# | ESS | effective sample size | 00 |
# | $V_t(x_t)$ | soft value: the reward to be expected from $x_t$, in the sense of $p^*$ | 05 |
#
# In code: arrays over time have length $T + 1$ and are indexed by $t$ itself; a denoiser is a function
# `(x_t, t, cond) -> eps`; a reward is a function from a batch to one number for each sample, NaN for "no value".

# %% [markdown]
# ## Recap
#
# - The payoff distribution is the reference times $e^{r/\tau}$, normalised; $\tau$ is the dial.
# - Weights reach it from samples, without any gradient. ESS says what they are worth.
# - Selecting is limited to what the reference made. Training towards $p^*$ lifts that limit.

# %% [markdown]
# ## Results
#
# All metrics of this run, also written to `results.json`.

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - *A temperature without a scale.* $\tau = 0.1$ is hot for QED and freezing for an energy in kJ/mol. Choose it by ESS.
# - *Size in disguise.* If the reward grows with size, a free tilt mostly makes things larger.
# - *Silent failures.* A reward that returns 0 in place of "no value" competes with real samples. Return NaN.
# - *A reward without an opponent.* Show validity and diversity beside it; notebook 09 does.
#
# ## Further reading
#
# - Zhang, Xu 2023, [Towards Controllable Diffusion Models via Reward-Guided Exploration](https://arxiv.org/abs/2304.07132): the method this course re-derives
# - Norouzi et al. 2016, [Reward Augmented Maximum Likelihood](https://arxiv.org/abs/1609.00150): the payoff distribution as a training target
# - Uehara et al. 2024, [Understanding RL-based fine-tuning of diffusion models](https://arxiv.org/abs/2407.13734): a survey
# - Bickerton et al. 2012, [Quantifying the chemical beauty of drugs](https://doi.org/10.1038/nchem.1243): QED
#
# ## Next
#
# [01 · Adding noise](01_adding_noise.ipynb): how a diffusion model takes data apart.

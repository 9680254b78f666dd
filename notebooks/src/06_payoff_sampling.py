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
# finished samples, several rounds of them, particles inside the chain, and the paper's search in a small ball.
# You take the ball apart into its biases, exactly and without a single random number, and find out when reweighing
# beats playing: first for one Gaussian, then for a network.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 55 | 55 | 55 |
# | minutes to run (2 CPU cores) | 1 | 5 | 5 |
# | memory | 1 GB | 1 GB | 1 GB |
# | GPU | not needed | not needed | not needed |
#
# Prerequisites: 05 (payoff distribution, soft values).

# %% [markdown]
# ## Goals
#
# - **weigh** samples, and **read** the effective sample size before believing any of it
# - **temper** in several rounds, and **measure** how far each way of doing it drifts
# - **steer** particles through the chain, and **derive** the weights that make them exact for any value
# - **separate** the biases of the local payoff, and **repair** them one by one
# - **give** the radius of the ball that has a limit
# - **compute** whose gradient is noisier: REINFORCE's or that of the payoff's weights, and **say** why

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
from rgdm_lib.baselines import policy_gradient
from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.training import Trainer
from rgdm_lib.worlds import mixtures
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.nets import MLPDenoiser
from rgdm_lib.worlds.rewards import Linear, Quadratic
from rgdm_lib.worlds.strings import Strings

run = notebook.start("06_payoff_sampling", PRESET, SEED, OUT_DIR)
settings = run.settings(
    quick={"samples": 40_000, "runs": 8, "draws": 200_000, "repeats": 20, "T": 50, "base_steps": 500, "batches": 32},
    laptop={"samples": 200_000, "runs": 16, "draws": 1_000_000, "repeats": 100, "T": 200, "base_steps": 5000,
            "batches": 128},
    full={"samples": 200_000, "runs": 16, "draws": 1_000_000, "repeats": 100, "T": 200, "base_steps": 5000,
          "batches": 128},
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
# In practice the samples come from a *model* of the data. The weights are the same; what they lead to is the payoff of the model's law. So
# here are a small network, trained on the two modes for a moment, and its own samples (`payoff.model_sampler`), beside the data.
#
# **Predict.** The network is not quite right. Will the effective sample sizes say so?

# %%
with torch.random.fork_rng():  # the numbers of the other cells do not move
    small = Diffusion(schedules.cosine(50))
    model = MLPDenoiser(2, small.schedule.alpha_bar, hidden=64, layers=2)
    trainer = Trainer(model, lambda f: small.loss(f, law.sample(512)), 500, lr=2e-3, ema_decay=0.99)
    model.load_state_dict(trainer.run(progress=False).state_dict())
    drawn = payoff.model_sampler(small, lambda n: torch.randn(n, 2), bowl, len(x))(model)
rows = []
for tau in (4.0, 1.0, 0.25, 0.05, 0.01):
    both = [payoff.from_data(x, bowl, tau), drawn.weigh(tau)]
    means = [float(weighted.expectation(weighted.reward)) for weighted in both]
    rows.append([tau, *(f"{weighted.ess:,.0f}" for weighted in both), *(f"{mean:.4f}" for mean in means)])
    if tau >= 0.25:  # with fewer effective samples chance decides
        assert abs(both[1].ess / both[0].ess - 1) < 0.2 and abs(means[1] - means[0]) < 0.1
table(["tau", "ESS, data", "ESS, model samples", "mean reward, data", "mean reward, model"], rows)

# %% [markdown]
# They do not: the two columns are alike wherever hundreds of samples are left. The ESS knows the samples, not where they come from. The
# mean rewards differ by some hundredths, for the weights lead to the payoff of the *model's* law, what it gets wrong included.

# %% [markdown]
# ### What it refuses
#
# Weights fail silently if one lets them. The library stops where there is no answer, and warns where it is a poor one.
#
# **Predict.** Eight cases: rewards that are not finite, a temperature of 0, an empty batch, a reward function that returns
# too few values, one sample, all the weight on one of 100, and a search down the chain (section 4) that keeps the best of one child a step,
# $K = 1$, or of none. Which stop, which warn, which are fine?

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

exact_net, many = law.denoiser(small.schedule), 4000
with torch.random.fork_rng():
    *_, plain = small.sample(exact_net, torch.randn(many, 2))
    for k in (1, 0):
        try:
            kept = stepwise.best_of_k(exact_net, small, torch.randn(many, 2), bowl, 1.0, k).reward
            apart = float(kept.mean() - bowl(plain.x).mean())
            error = float(((kept.var() + bowl(plain.x).var()) / many) ** 0.5)
            assert abs(apart) < 4 * error
            outcome = f"fine: the reference itself, mean reward {apart:+.3f} +- {error:.3f} from the plain sampler's"
        except ValueError as error:
            outcome = f"stops: {error}"
        rows.append([f"K = {k} {'child' if k == 1 else 'children'}", outcome])
table(["case", "answer"], rows)

# %% [markdown]
# One sample has ESS 1 of 1: every expectation is its own value, and no warning can know better. A *single* reward
# that is not finite is no error: that sample has no value, gets weight 0, and is counted. The only child of $K = 1$ is kept whatever
# its value: no search, no error, and no tilt.
#
# ### A box: strings
#
# Nothing so far needs a continuous $x$. The payoff distribution was used for sentences first: *reward augmented maximum likelihood*
# (Norouzi et al. 2016) trains on strings drawn from $e^{r/\tau}$ about the right answer. Here are 12 letters of an alphabet of 4, all
# strings alike under the reference, the reward minus the number of wrong places (the Hamming distance) to one target. Then all strings at
# distance $e$, the *stratum* of $e$, have one weight, there are $\binom{12}{e}\, 3^e$ of them, and the law of the distance is known.
#
# **Predict.** The target has the largest weight of all strings. Is its distance, 0, the most frequent one?

# %%
strings = Strings([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3], 4)
tau_strings, n_strings = strings.temperature(0.1), 20_000
share = strings.log_strata(tau_strings).exp()  # exact
with torch.random.fork_rng():
    by_strata = -strings.reward(strings.sample(n_strings, tau_strings))  # RAML: first the distance, then a string
    uniform = strings.draw(n_strings)
weighted = uniform.weigh(tau_strings)
count = {
    "drawn by strata": torch.bincount(by_strata.long(), minlength=13).double() / n_strings,
    "weights on uniform strings": torch.bincount((-uniform.reward).long(), weighted.log_weight.exp(), minlength=13),
}
# exact variances of the shares: of counts, and of weights (all strings of a stratum have one weight)
expected = n_strings * (strings.log_sizes() - strings.log_sizes().logsumexp(0)).exp()  # uniform strings at each distance
square = share**2 / expected
variance = {
    "drawn by strata": share * (1 - share) / n_strings,
    "weights on uniform strings": square * (1 - 2 * share) + share**2 * square.sum(),
}
seen = (expected > 5) & (n_strings * share > 5)
fig, ax = plt.subplots(figsize=(5.8, 3.2))
ax.bar(range(13), share, color="0.8", label="exact")
for (name, found), marker in zip(count.items(), "ox", strict=True):
    ax.plot(range(13), found, marker, label=name)
    off = float(((found - share).abs() / variance[name].sqrt())[seen].max())
    print(f"{name}: largest error of a share {off:.1f} standard errors, "
          f"total variation {float((found - share).abs().sum() / 2):.4f}")  # fmt: skip
    assert off < 4.5
ax.set(xlabel="distance to the target", ylabel="share under the payoff")
ax.legend(fontsize=8)
run.figure(
    fig,
    "strings",
    alt="Bars of the exact shares of the distances 0 to 12 under the payoff, one hump in the middle, with two sets of markers on their tops.",
    see="both ways of sampling have the exact law; few of the near strings are ever drawn, for there are few of them.",
)
most = int(share.argmax())
print(f"tau = {tau_strings:.3f}, {weighted.ess:,.0f} effective of {n_strings:,}: "
      f"the target alone has {float(share[0]):.1e}, the most frequent distance is {most}")  # fmt: skip
assert most > 0 and abs(weighted.ess / n_strings - 0.1) < 0.03

# %% [markdown]
# ## 2. Three ways to temper
#
# **Question.** Few effective samples are left. A model fitted to them is already nearer to $p^*$: draw from *it*, and weigh
# again. But by what?
#
# - **one-shot**: all $n$ samples from $p_{ref}$, weights $e^{r/\tau}$. No second round.
# - **chained**: $n/K$ samples a round, each from the model of the round before, and nothing corrects for that. With the full
#   weights $e^{r/\tau}$ in every round (reward-weighted regression, iterated), or with $e^{r/(K\tau)}$, a $K$-th of the way each.
# - **balanced**: $n/K$ samples a round too, but *all* rounds are kept, weighed back to $p_{ref}$ by the density of the mixture
#   that drew them (the balance heuristic):
#
# <!-- eq: balance-weights-of-models | Veach & Guibas 1995; derived here -->
# $$
# w_i \propto \frac{p_{ref}(x_i)}{\sum_j \frac{n_j}{n}\, p_j(x_i)}\; e^{r_i/\tau} , \qquad
# \frac{p_{ref}}{\sum_j \frac{n_j}{n}\, p_j} \le \frac{n}{n_0} .
# $$
#
# (This is the last round. Round $k$ of $K$ aims at $e^{k\,r/(K\tau)}$ only, so that enough samples count.)
#
# If every fit were perfect, full weights would end at
#
# <!-- eq: naive-iteration-drifts | derived here -->
# $$
# p_k \propto p_{k-1}\, e^{r/\tau} \quad\Longrightarrow\quad p_k \propto p_{ref}\, e^{k\, r/\tau} ,
# $$
#
# the payoff of another temperature, and $K$-th steps at the right place. But no fit is perfect. Say that each widens
# what it fits by $h^2$ (a diffusion's last noise does that). A mode of variance $s^2$ under the reward $b \cdot x$ is moved by
# its variance *of that round*, so after $K$ rounds of a $K$-th each it has
#
# <!-- eq: chained-fit-error-adds-up | derived here -->
# $$
# \text{variance } s^2 + K h^2 , \qquad \text{shift } \frac{b}{\tau} \Big( s^2 + \frac{K - 1}{2} h^2 \Big) .
# $$
#
# Balanced weights see densities: what a model of an earlier round got wrong, they undo. One $h^2$, that of the last fit, is left.
#
# The world is notebook 07's: a ring of eight modes of width 0.15, a linear reward, and the temperature that leaves 10 % of
# one-shot's samples. The model is a mixture of eight, its fit widens by $h = 0.05$. All that is known exactly: the
# lines below are the limits of endless samples, the dots 4,000 rewards in all, whatever the number of rounds.
#
# **Predict.** Which of the four will be at the right temperature after six rounds? Whose modes will be too wide?

# %%
ring, pull_up = mixtures.ring(modes=8, radius=1.5, std=0.15), Linear([math.cos(math.pi / 8), math.sin(math.pi / 8)])
tau_ring = ring.temperature(pull_up, 0.1)
H, REWARDS = 0.05, 4000


def fit(x, weight, model):
    """Shares and means of eight modes and one width, from weighted points; then widened by H."""
    share = weight[:, None] * model.responsibilities(x)
    total = share.sum(0)
    means = torch.where(total[:, None] > 1e-9, share.T @ x / total[:, None].clamp_min(1e-9), model.means)
    spread = (share * (x[:, None] - means).square().sum(-1)).sum() / 2
    return GaussianMixture(means, (spread + H**2).sqrt(), total)


def temper(way, rounds, n=REWARDS):
    model, models, points = ring, [], []
    for k in range(1, rounds + 1):
        models.append(model)
        points.append(model.sample(n // rounds).double())
        x, correction, part = points[-1], None, 1 / rounds if way == "chained, K-th steps" else 1
        if way == "balanced":
            x, part = torch.cat(points), k / rounds
            log_p = torch.stack([m.log_prob(x) for m in models])
            correction = log_p[0] - torch.logsumexp(log_p, 0)
        model = fit(x, payoff.log_weights(pull_up(x), tau_ring / part, correction).exp(), model)
    return model


def limit(way, rounds):
    """The same with endless samples."""
    model, chained = ring, way.startswith("chained")
    part = 1 / rounds if way == "chained, K-th steps" else 1
    for _ in range(rounds if chained else 1):
        tilted = model.tilt(pull_up, tau_ring / part)
        model = GaussianMixture(tilted.means, (tilted.std**2 + H**2).sqrt(), tilted.weights)
    return model


def mean_reward(model):
    return float(model.weights @ pull_up(model.means))


def temperature_reached(mean):
    """tau over the temperature at which the payoff has this mean reward: 1 is on target."""
    low, high = 0.01, 100.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if ring.frontier(pull_up, tau_ring / middle)[0] < mean else (low, middle)
    return middle


# %%
ways = {"one-shot": "C6", "chained, full weights": "C1", "chained, K-th steps": "C4", "balanced": "C0"}
target, rows, found = mean_reward(ring.tilt(pull_up, tau_ring)), [], {}
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4))
for way, colour in ways.items():
    rounds = [1] if way == "one-shot" else [1, 2, 4, 6]
    limits = [limit(way, k) for k in rounds]
    drift = [temperature_reached(mean_reward(m)) for m in limits]
    dashed = "--" if way == "chained, K-th steps" else "-"  # in the right panel it lies on the full weights' line
    style = {"color": colour, "ls": dashed, "label": way, "marker": "s" if way == "one-shot" else ""}
    axes[0].semilogy(rounds, drift, **style)
    axes[1].plot(rounds, [float(m.std[0]) / 0.15 for m in limits], **style)
    for k in rounds[-2:]:
        models = [temper(way, k) for _ in range(settings.repeats)]
        means = torch.tensor([mean_reward(m) for m in models], dtype=F64)
        width = sum(float(m.std[0]) for m in models) / len(models) / 0.15
        reached = temperature_reached(float(means.mean()))
        axes[0].plot(k, reached, "o", color=colour)
        axes[1].plot(k, width, "o", color=colour)
        error = float((means - target).square().mean() ** 0.5)
        found[way, k] = reached, width, error
        rows.append([way, k, f"{drift[rounds.index(k)]:.3f}", f"{reached:.3f}", f"{width:.3f}",
                     f"{float(means.mean()) - target:+.4f} +- {float(means.std()) / len(models) ** 0.5:.4f}",
                     f"{error:.4f}"])  # fmt: skip
axes[0].set(xlabel="rounds $K$", ylabel="$\\tau$ over the temperature reached", yticks=[1, 2, 4, 6], yticklabels=[1, 2, 4, 6])
axes[0].minorticks_off()
axes[1].set(xlabel="rounds $K$", ylabel="width of a mode over the payoff's")
axes[0].legend(fontsize=8)
run.figure(
    fig,
    "three_ways",
    alt="Two panels against the number of rounds. Left, the target temperature over the one reached: full weights climb beyond "
    "6, K-th steps to 1.3, balanced stays at 1. Right, the width of a mode: both chained forms grow with the rounds, on one "
    "line, balanced stays at 1.05.",
    see="lines: endless samples; dots: 4,000 rewards in all. Only the balanced weights neither drift nor widen.",
)
table(["way", "rounds", "tau over that reached, limit", "4,000 rewards", "width", "mean reward, error", "root mean square"], rows)
for name, way, what in (("naive", "chained, full weights", "chained, full weights in each"),
                        ("chained", "chained, K-th steps", "chained, a quarter of the way in each"),
                        ("balanced", "balanced", "balance weights over all")):  # fmt: skip
    run.metric(f"tau_over_reached_{name}_4_rounds", found[way, 4][0], "1", REWARDS,
               f"target temperature over that of the payoff with the model's mean reward, ring, 4 rounds, {what}, "
               f"mean of {settings.repeats} repeats", floor=1.0)  # fmt: skip
    run.metric(f"mode_width_{name}_4_rounds", found[way, 4][1], "1", REWARDS,
               "width of a mode of the same model over the payoff's", floor=limit("one-shot", 1).std[0] / 0.15)  # fmt: skip

# %% [markdown]
# Full weights drift as the formula says, and the widening pushes them further still: after four rounds more than four times too
# cold. (By the sixth they run out of samples, and fall short even of their own limit.) $K$-th steps end near the target, but
# each round is laid on top of the last one's error: the modes widen, and with them the reward. The balanced weights keep the
# target *and* the width of a single fit, and their last column shows what the rounds bought: the same 4,000 rewards, a third
# of one-shot's error.
#
# ## 3. Particles inside the chain
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
# rest of the walk is spent on the promising ones. Then the tilt is exact in the limit of many particles; a finite number $n$ leaves a
# bias of order $1/n$. A good $v$ leaves many effective samples, a bad one few.
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
# ## 4. The paper's local payoff, taken apart
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
# One row more makes the last repair alone: the published ball, with soft values.
#
# **Predict.** Which repair helps most? Does the soft value help by itself? And must the last two both be made?

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
        "published, with the soft value": walk(start, ball_about_sample(soft[:-1])),
        "p_ref in the ball": walk(start, ball_with_reference(guess[:-1])),
        "about the mean": walk(start, tilted_kernels(guess[:-1])),
        "soft value": walk(start, tilted_kernels(soft[:-1])),
        "or: carried": carried(guess, start, kernels),
    }
    apart[name] = {k: distance(p, laws[name]["exact"]) for k, p in laws[name].items() if k != "exact"}
variants = list(apart["linear"])
table(["distance to the payoff", *rewards], [[v, *(f"{apart[r][v]:.4f}" for r in rewards)] for v in variants])
alone = {r: apart[r]["published, with the soft value"] - apart[r]["published"] for r in rewards}  # for the text below
assert abs(alone["linear"]) < 0.001 and alone["concave"] > 0.1 and alone["oscillating"] > 0.05 and alone["indicator"] > -0.03
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
# - **The soft value alone is no cure.** In the published ball it moves the first number in its third digit, and makes two of the four worse. The
#   centre comes first.
# - Centred on the mean, only $r(\hat x_0)$ is left to blame: little under a linear reward, most where the reward bends or jumps.
# - **The third and the fourth bias are one.** With the soft value the row's sum *is* $e^{V_t/\tau}$: nothing is lost by normalising. With any
#   other value, carrying the sums repairs it. One of the two will do; without both, nothing does.
#
# (The soft value's law keeps the start, notebook 05: here that costs less than can be seen.)
#
# ### Best of K
#
# A plainer search: at each step draw $K$ children of the reference, keep one in proportion to $g = e^{v/\tau}$. No radius to
# choose. Its law can be had exactly, too. Of $K$ children the kept one has the density $K p(z) g(z)\, \mathbb E[1/(g(z) + g_2 + \dots + g_K)]$, and
# $1/S = \int_0^\infty e^{-uS} du$ makes of the mean of a ratio a product:
#
# <!-- eq: best-of-k-law | derived here -->
# $$
# q_K(z) = K\, p(z)\, g(z) \int_0^\infty e^{-u g(z)}\, \mathbb E_p\big[e^{-u g}\big]^{K - 1} du .
# $$
#
# One more sum, over 129 values of $u$: still no random number.
#
# **Predict.** How does the distance to the payoff fall with $K$, given the soft value? Given $r(\hat x_0)$?

# %%
LOG_U = torch.linspace(-22, 10, 129, dtype=F64)


def best_of_k_kernels(v, ks, last=0):
    """{K: kernels}; ``v`` as above. The first ``last`` of them (the last steps) stay the reference's."""
    made, u = {k: list(kernels[:last]) for k in ks}, LOG_U.exp()
    for kernel, g in zip(kernels[last:], v[last:], strict=True):
        g = g / (kernel @ g)[len(g) // 2]  # any scale gives the same law
        decay = (-u[:, None] * g).exp()  # (u, z)
        mean = kernel @ decay.T  # (x_t, u)
        for k in ks:
            integral = (mean ** (k - 1) * u * (LOG_U[1] - LOG_U[0])) @ decay
            made[k].append(k * kernel * g * integral)
    return made


K_VALUES, best = (1, 2, 4, 8, 16), {}
for name in ("linear", "oscillating"):
    r, tau = rewards[name]
    for value, v in (
        ("soft value", soft_values(r(y), tau, kernels)),
        ("r of the guess", [(r(g) / tau).exp() for g in guesses]),
    ):
        made = best_of_k_kernels(v[:-1], K_VALUES)
        ends = [walk(start, made[k]) for k in K_VALUES]
        assert max(abs(float(end.sum()) - 1) for end in ends) < 1e-6
        best[name, value] = [distance(end, laws[name]["exact"]) for end in ends]
fig, ax = plt.subplots(figsize=(5.8, 3.4))
for (name, value), d in best.items():
    ax.loglog(K_VALUES, d, "o-" if value == "soft value" else "s--", color={"linear": "C0", "oscillating": "C1"}[name],
              label=f"{name}, {value}")  # fmt: skip
ax.set(xlabel="children a step, $K$", ylabel="total variation to the payoff")
ax.set_xticks(K_VALUES, K_VALUES)
ax.set_yticks([0.02, 0.05, 0.1, 0.2, 0.4], [0.02, 0.05, 0.1, 0.2, 0.4])
ax.minorticks_off()
ax.legend(fontsize=8)
run.figure(
    fig,
    "best_of_k",
    alt="Distance to the payoff against K on logarithmic axes: with the soft value both lines fall like 1/K; with the guess's "
    "reward the linear one levels off, and the oscillating one rises again after K = 2.",
    see="solid: the bias falls like 1/K. Dashed: what the value gets wrong stays, or grows, however many children.",
)
table(["reward, value", *(f"K = {k}" for k in K_VALUES)], [[", ".join(n), *(f"{d:.4f}" for d in row)] for n, row in best.items()])
for (name, value), d in best.items():
    for k in (4, 16):
        run.metric(f"best_of_{k}_tv_{name}_{value.replace(' ', '_')}", d[K_VALUES.index(k)], "1", len(y),
                   f"total variation between the law of x_0 and the payoff on the grid, {name} reward, best of {k} "
                   f"children in each of 40 steps, value: {value}")  # fmt: skip

# %% [markdown]
# Under the soft value a doubled $K$ is half the bias. Under $r(\hat x_0)$ the bias does not go: it ends at the row "about the mean" of
# the first table, which is $K = \infty$. With the oscillating reward two children are better than sixteen: the more one searches, the
# more one finds what is wrong with the value. Weights, not children, repair it. And the library's sampler does have this law
# (it keeps one child in the last step, which has no noise):

# %%
line = GaussianMixture([[-1.0], [1.0]], 0.4, [0.6, 0.4])
drawn = stepwise.best_of_k(line.denoiser(schedules.cosine(40)), Diffusion(schedules.cosine(40)),
                           torch.randn(settings.samples, 1, dtype=F64), Linear([1.0]), 1.0, 4)  # fmt: skip
kept = best_of_k_kernels([(g / 1.0).exp() for g in guesses][:-1], (4,), last=1)[4]
expected = float(walk(start, kept[1:]) @ guesses[1])
mean, error = band(drawn.x0[:, 0].reshape(20, -1).mean(1))
print(f"mean of x_0, best of 4, r of the guess: {mean:.4f} +- {error:.4f}, on the grid {expected:.4f}, "
      f"payoff {float(laws['linear']['exact'] @ y):.4f}")  # fmt: skip
assert abs(mean - expected) < 5 * error + 2e-3  # the grid's own error

# %% [markdown]
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
def walk_by_the_rule(v, chain):
    """Laws of x_0 (k, n) under k values, v[t - 1] (k, n): on the rule's ball, in proportion to them."""
    points, start, _, means, widths, _ = chain
    p = start.expand_as(v[0])
    for mean, width, g in reversed(list(zip(means, widths, v, strict=True))):
        inside = ((points - mean).abs() <= 3**0.5 * width).to(F64)  # row: x_t
        p = (p / (g @ inside.T)) @ inside * g
    return p


rows = []
for T, n in ((20, 401), (40, 401), (80, 801)):
    chain = grid_chain(T, n)
    unguided, found = walk(*chain[1:3]), {"soft value": [], "r of the guess": [], "no guidance": []}
    for r, tau in rewards.values():
        exact = unguided * (r(chain[0]) / tau).exp()
        soft, guess = soft_values(r(chain[0]), tau, chain[2]), [(r(g) / tau).exp() for g in chain[5]]
        ends = walk_by_the_rule([torch.stack(pair) for pair in zip(soft[:-1], guess[:-1], strict=True)], chain)
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
# ## 5. Whose gradient is noisier?
#
# **Question.** The paper says that imitating payoff samples "alleviates the high gradient variances" of policy gradients. When?
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
    "also wins at small pull, at every distance of the map. At large pull playing wins, sooner the larger the distance; in one "
    "dimension at small distance that is beyond the map.",
    see="blue: imitation is quieter; red: playing is; black: the border.",
)
for (baseline, d), (most, best) in wins.items():
    reach = "up to the map's edge" if most >= float(far[-1]) - 1e-9 else f"up to delta = {most:.2f}"
    print(f"baseline {baseline:.0f}, d = {d}: imitation wins {reach} (the map ends at {float(far[-1]):.0f}), "
          f"at best by a factor {10**best:.1f}")  # fmt: skip

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
# ### With a network
#
# **Question.** A Gaussian has one step and no weighting of times. What of a trained denoiser, and all its parameters?
#
# Both gradients have the *same form*. A step of the chain is a Gaussian whose mean is linear in the predicted noise. So its
# log-probability is a noise error as well, about the noise that would make the model take exactly this step:
#
# <!-- eq: path-noise-target | derived here -->
# $$
# \log p_\theta(x_{t-1} \mid x_t) = -w_t\, \big|\epsilon_\theta(x_t, t) - \epsilon_{path}\big|^2 + \text{const} , \qquad
# \epsilon_{path} = \epsilon_{ref}(x_t, t) - \frac{z_t}{\sqrt{2 w_t}} .
# $$
#
# Here $z_t$ is the noise that was drawn, and $w_t$ the weight of the likelihood's bound (`loss_weight("vlb")`). So, with
# $A$ for how good the sample was:
#
# | | state $x_t$ | target | $A$ | times weighed by |
# |---|---|---|---|---|
# | REINFORCE | of the path that was walked | $\epsilon_{path}$ | $r - \bar r$ | $w_t$ |
# | payoff, as trained | $x_0$ noised anew | $\epsilon$, the noise added | $e^{r/\tau}/Z$ | 1 ("simple") |
#
# They differ in *three* things, and "the payoff gradient is quieter" does not say which of them does it. So: every combination. The
# **target**, REINFORCE's or denoising; the **weighting**, simple or likelihood; and the **draws** a sample, one random time or every
# time once. All see the same samples of the model, hence the same rewards. The measure is again the relative variance a
# sample. With thousands of parameters the squared mean of a batch is mostly noise, so it is taken between batches, with $g_i$ the gradient of batch $i$ and $B$
# the number of batches:
#
# <!-- eq: unbiased-square-of-mean | derived here -->
# $$
# |\mathbb E g|^2 \approx \frac{\big|\sum_i g_i\big|^2 - \sum_i |g_i|^2}{B (B - 1)} .
# $$
#
# First the two targets alone. How noisy is each, at each time?

# %%
chain = Diffusion(schedules.cosine(settings.T))
net = MLPDenoiser(2, chain.schedule.alpha_bar, hidden=64, layers=2)
trainer = Trainer(net, lambda f: chain.loss(f, ring.sample(512)), settings.base_steps, lr=2e-3, ema_decay=0.99)
net.load_state_dict(trainer.run(progress=False).state_dict())
net.eval()

BATCH = 64
paths = chain.trajectory(net, torch.randn(BATCH * settings.batches, 2))
ends, good = paths.x[-1], pull_up(paths.x[-1])
w_t = chain.loss_weight("vlb").float()
with torch.no_grad():
    z = policy_gradient._noise(chain, net, paths)  # (T, n, 2), the noise of each step
    of_denoising = []
    for t in range(1, settings.T + 1):
        noise, at = torch.randn_like(ends), torch.full((len(ends),), t)
        of_denoising.append(float((net(chain.q_sample(ends, at, noise), at, None) - noise).square().mean()))
times = range(1, settings.T + 1)
fig, ax = plt.subplots(figsize=(5.8, 3.4))
ax.semilogy(times, 1 / (2 * w_t[1:]), color="C1", label="REINFORCE: $1/(2 w_t)$")
ax.semilogy(times, of_denoising, color="C0", label="denoising: error that is left")
ax.set(xlabel="time $t$", ylabel="variance of the target, a coordinate", ylim=(1e-3, None))
ax.legend(fontsize=8)
run.figure(
    fig,
    "target_noise",
    alt="Variance of the target against time. REINFORCE's rises from about 1 to about ten in the middle, and falls at the "
    "end; denoising's falls from 1 toward 0.",
    see="near the data both targets are equally noisy; far from it REINFORCE's is noisier by orders of magnitude.",
)

# %% [markdown]
# A step tells REINFORCE how the walk went on by *one* of $T$ steps; denoising is told where it *ended*, the mean over all ways in
# between. (Integrating what need not be drawn is called Rao-Blackwell.) But the likelihood weighs by $w_t$: it listens least just where
# REINFORCE's target is noisiest.
#
# **Predict.** By what factor does each of the three changes reduce the relative variance, at an ESS of 40 %? Under which
# weighting does the target matter less?

# %%
parameters = list(net.parameters())
shares = (0.8, 0.4, 0.1)
taus = {share: payoff.temperature_for_ess(good, share) for share in shares} | {"hot": 20.0}
advantage = {"play": good - good.mean(), "1": torch.ones_like(good)}
advantage |= {share: torch.softmax(good.double() / tau, 0).float() * len(good) for share, tau in taus.items()}


def gradients(x_t, t, target, names, i, scale):
    """Flat gradients of the mean over samples i of A times the noise error: {(weighting, name): (p,)}."""
    error = (net(x_t, t, None) - target).square().sum(1)
    repeats = len(t) // len(i)
    found = {}
    for weighting, weight in (("simple", 1.0), ("likelihood", w_t[t])):
        for name in names:
            total = scale * (advantage[name][i].repeat(repeats) * weight * error).sum() / len(i)
            parts = torch.autograd.grad(total, parameters, retain_graph=True)
            found[weighting, name] = torch.cat([part.flatten() for part in parts])
    return found


def at_times(i, one):
    """Times (m,), and the samples' positions in i: one random time each, or every time once."""
    if one:
        return torch.randint(1, settings.T + 1, (len(i),)), torch.arange(len(i))
    return torch.arange(1, settings.T + 1).repeat_interleave(len(i)), torch.arange(len(i)).repeat(settings.T)


def play(i, one):
    t, at = at_times(i, one)
    step = settings.T - t  # paths start at T
    x_t, drawn = paths.x[step, i[at]], z[step, i[at]]
    with torch.no_grad():
        target = net(x_t, t, None) - drawn / (2 * w_t[t, None]).sqrt()
    return gradients(x_t, t, target, ["play"], i, settings.T if one else 1)


def imitate(i, one):
    t, at = at_times(i, one)
    noise = torch.randn(len(t), 2)
    return gradients(chain.q_sample(ends[i[at]], t, noise), t, noise, [*taus, "1"], i, settings.T if one else 1)


draws = {}
for one in (True, False):
    per_batch = [play(i, one) | imitate(i, one) for i in torch.arange(len(ends)).split(BATCH)]
    for key in per_batch[0]:
        draws[(*key, one)] = torch.stack([batch[key] for batch in per_batch]).double()
for weighting in ("simple", "likelihood"):
    for one in (True, False):
        for name in taus:  # the baseline: weights less 1
            draws[weighting, f"{name} - 1", one] = draws[weighting, name, one] - draws[weighting, "1", one]

# %% [markdown]
# One draw a sample or all: the mean is the same, and only the draws of all times are quiet enough to measure it. So both share
# its estimate. Errors are jackknife's: leave out one batch after the other, in both parts of a ratio at once.

# %%
def square_of_mean(total, squares, n):
    return (total - squares) / (n * (n - 1))


def relative(weighting, name, one):
    """Relative variance a sample, and its values with each batch left out."""
    every, used = draws[weighting, name, False], draws[weighting, name, one]
    n, of_every, of_used = len(every), every.square().sum(1), used.square().sum(1)

    def value(every_total, every_squares, used_total, used_squares, n):
        variance = used_squares / n - square_of_mean(used_total, used_squares, n)
        return BATCH * variance / square_of_mean(every_total, every_squares, n)

    sums = [(g.sum(0), q) for g, q in ((every, of_every), (used, of_used))]
    whole = value(*(v for s, q in sums for v in (s.square().sum(), q.sum())), n)
    left = [
        value(*(v for (s, q), g in zip(sums, (every, used), strict=True)
                for v in ((s - g[k]).square().sum(), q.sum() - q[k])), n - 1)
        for k in range(n)
    ]  # fmt: skip
    return whole, torch.stack(left)


def jackknife(value, left):
    n = len(left)
    return float(value), float(((n - 1) / n * (left - left.mean()).square().sum()).sqrt())


cells = {key: relative(*key) for key in draws if key[1] != "1"}
rows = []
for weighting in ("simple", "likelihood"):
    for one in (True, False):
        row = [weighting, "one" if one else f"{settings.T}"]
        for name in ("play", *shares, *(f"{share} - 1" for share in shares)):
            value, error = jackknife(*cells[weighting, name, one])
            row.append(f"{value:,.0f} +- {error:,.0f}")
        rows.append(row)
table(["weighting", "draws", "REINFORCE", *(f"payoff, ESS {share:.0%}" for share in shares),
       *(f"w - 1, ESS {share:.0%}" for share in shares)], rows)  # fmt: skip


def ratio(over, under):
    (a, a_left), (b, b_left) = cells[over], cells[under]
    return jackknife(a / b, a_left / b_left)


# %%
rows = []
for share in shares:
    row = [f"{share:.0%}"]
    for over, under in (
        (("likelihood", "play", False), ("simple", share, False)),
        (("likelihood", "play", False), ("simple", f"{share} - 1", False)),
        (("likelihood", "play", False), ("likelihood", share, False)),
        (("simple", "play", False), ("simple", share, False)),
        (("likelihood", "play", True), ("simple", share, True)),
    ):
        value, error = ratio(over, under)
        row.append(f"{value:.1f} +- {error:.1f}")
        if over[2] is False and under == ("simple", share, False) and over[0] == "likelihood":
            kept_value = value
    rows.append(row)
    run.metric(f"gradient_variance_ratio_ess{100 * share:.0f}", kept_value, "1", len(ends),
               "trace(Cov) / |mean|^2 of REINFORCE's gradient (mean reward as baseline, likelihood weighting, all steps of a "
               "path) over that of the payoff gradient (weights, no baseline, simple loss, every time once a sample), ring, at "
               f"the reference, equal reward evaluations, ESS {share:.0%}")  # fmt: skip
table(["ESS", "REINFORCE over payoff, simple", "the same, w - 1", "over payoff, likelihood", "both simple",
       "one draw each: likelihood over simple"], rows)  # fmt: skip

# %%
for name, over, under, text in (
    ("one_draw", ("likelihood", "play", True), ("simple", 0.4, True), "the first ratio, one random time a sample in both"),
    ("likelihood", ("likelihood", "play", False), ("likelihood", 0.4, False), "both with likelihood weighting, all times"),
    ("simple", ("simple", "play", False), ("simple", 0.4, False), "both with simple weighting, all times"),
    ("with_baseline", ("likelihood", "play", False), ("simple", "0.4 - 1", False), "the first ratio, weights less 1"),
):
    run.metric(f"gradient_variance_ratio_ess40_{name}", ratio(over, under)[0], "1", len(ends), f"ESS 40 %, {text}")

# %% [markdown]
# Is it the same gradient at all? At a hot temperature, with the baseline, the two *means* must point the same way (under the
# likelihood's weighting their relative variances are near each other as well, though the targets differ: it listens least where they
# differ most).

# %%
for weighting in ("simple", "likelihood"):
    a, b = draws[weighting, "play", False], draws[weighting, "hot - 1", False]
    inner = square_of_mean(a.sum(0) @ b.sum(0), (a * b).sum(), len(a))
    lengths_squared = [square_of_mean(g.sum(0).square().sum(), g.square().sum(), len(g)) for g in (a, b)]
    cosine = float(inner / (lengths_squared[0] * lengths_squared[1]) ** 0.5)
    value, error = ratio((weighting, "play", False), (weighting, "hot - 1", False))
    print(f"{weighting}: cosine of the mean gradients {cosine:.3f}, ratio of the relative variances {value:.2f} +- {error:.2f}")
    assert cosine > 0.85

# %% [markdown]
# Read the tables as a way from REINFORCE as it is used (likelihood, all steps of a path) to the payoff gradient as it is used
# (simple loss).
#
# - **The weighting does most of it.** Simple weights alone more than halve REINFORCE's own relative variance: the likelihood listens most
#   to times near the data, where both targets are equally noisy. Denoising may weigh times as it likes, since its optimum
#   stays. A policy gradient that does so no longer climbs $\mathbb E[r]$.
# - **The target does little**: at an ESS of 40 % and simple weights a factor about 1 (0.9 to 1.5 in quick, by the seed, and 1.1 to 1.3 in laptop), and under
#   the likelihood's nothing to count on (0.5 to 1.4). The baseline, weights less 1, gives another factor of 1.5 to 1.9.
# - **The draws help REINFORCE most.** Using all times gains it nearly the factor $T$, since the noises of its steps are independent.
#   Imitation gains less: a sample's weight is the same at all times. So with one random time each the ratio looks grander, and
#   the more so the longer the chain. But nobody walks a path of $T$ steps and then uses one.
# - **The temperature decides what is left.** At an ESS of 80 % nearly all weights are 1, and the plain form drowns in the score's
#   noise, as it did for the Gaussian; the baseline $w - 1$ gives the factor back. At 10 % the weights' own variance takes
#   some of it: a tenth to two fifths in laptop, a third to three quarters in quick.
#
# A first look had promised a factor of 10 to 30 at an ESS of 40 %. As both are used it is a single digit: 2 to 5 in quick, 3.2 to 4.3 in laptop. With one
# random time a sample it is 9 to 22 in quick, whose chain has 50 steps, and 39 to 66 in laptop, whose chain has 200: such a number says how long the chain
# is. (All these: `data/reference/06_payoff_sampling.quick.json`, and `.laptop.json`, three seeds each.)
#
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
# - Rounds that reweigh the last model drift: full weights to $\tau/K$, $K$-th steps by adding up what each fit gets wrong. Balance
#   weights over all rounds do neither.
# - Carried weights telescope: particles are right for any value, with the initial factor. A good value leaves more of them.
# - The local payoff drops $p_{ref}$, counts the noise twice, and takes $r(\hat x_0)$ for $V$ while normalising each ball by itself. The
#   soft value or the carried sums repair the last two at once.
# - Best of $K$ is $O(1/K)$ from the payoff under the soft value. Under $r(\hat x_0)$ no $K$ is enough.
# - A fixed radius has no limit in $T$; $\rho_t^2 = (d + 2)\,\mathrm{Var}$ about the mean has.
# - Imitation is not always quieter than playing. With a baseline they agree at high temperature. Of a network's gradients the
#   simple weighting quietens more than the denoising target does.

# %% [markdown]
# ## Results

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - **An ESS taken for coverage**: a mode that no sample reached is missing from it.
# - **Rounds that weigh the last model's samples as if they were the reference's**: too cold, round by round.
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
# - Veach & Guibas 1995, *Optimally combining sampling techniques for Monte Carlo rendering*: the balance heuristic
# - Owen, *Monte Carlo theory, methods and examples*, chapter 9: weights and effective sample size
#
# ## Next
#
# `07_rgdm`: the samples are there; now a network learns to imitate them.

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
# # 04 · Denoising as a decision process
#
# A diffusion model makes a sample by a chain of random steps. Read each step as a *decision*, and the whole
# toolbox of reinforcement learning (RL) applies: it can push the model toward any reward, with or without a
# gradient. This notebook contains all the RL that the course needs. At the end you will have a gradient
# estimator for a reward, its confidence band, an exact answer beside each of its numbers, and a check that
# tells a working DDPO from one whose clip does nothing.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 40 | 40 | 40 |
# | minutes to run (2 CPU cores) | 0.6 | 2 | 2 |
# | memory | 1 GB | 1 GB | 1 GB |
# | GPU | not used | not used | not used |
#
# Prerequisites: [02 · DDPM from scratch](02_ddpm_from_scratch.ipynb): the reverse step. No RL.

# %% [markdown]
# ## Goals
#
# - **name** state, action, policy, reward, return and value of a denoising chain
# - **derive** the policy gradient, and **compare** its estimate with an exact gradient
# - **choose** a baseline, and **count** the samples it saves
# - **reweight** old paths for a new policy, and **see** where that ends
# - **compute** log-probabilities of diffusion paths, the last step included
# - **write** DDPO's clipped objective, and **test** that its ratio moves and its clip bites

# %% tags=["bootstrap"]
# rgdm_lib.course.bootstrap.CELL

# %% tags=["parameters"]
PRESET = "quick"
SEED = 0
OUT_DIR = "runs"

# %%
from dataclasses import dataclass

import ipywidgets
import matplotlib.pyplot as plt
import torch

from rgdm_lib import schedules
from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds.chain import small_chain
from rgdm_lib.worlds.mixtures import GaussianMixture

run = notebook.start("04_denoising_as_an_mdp", PRESET, SEED, OUT_DIR)
torch.set_num_threads(1)  # the arrays are small: a second thread costs more than it brings
torch.set_default_dtype(torch.float64)  # exact answers stand beside every estimate
settings = run.settings(
    quick={"paths": 20_000, "diffusion_paths": 4000, "rounds": 12},
    laptop={"paths": 200_000, "diffusion_paths": 40_000, "rounds": 24},
    full={"paths": 200_000, "diffusion_paths": 40_000, "rounds": 24},
)

# %% [markdown]
# ## 1. The same chain, in other words
#
# **Question.** What has drawing a sample to do with making decisions?
#
# In RL an *agent* sees a *state*, picks an *action*, and gets a *reward*. Its rule, a probability for every
# action in every state, is its *policy*. A denoising chain has all of these:
#
# | RL | denoising |
# |---|---|
# | state | $(x_t, t)$: the noisy sample, and the time |
# | action | $x_{t-1}$: the slightly less noisy sample |
# | policy | $p_\theta(x_{t-1} \mid x_t)$: one reverse step of the model |
# | transition | none: the action *is* the next state |
# | reward | 0 at every step, $r(x_0)$ at the end |
# | episode | one path $x_T, x_{T-1}, \dots, x_0$ |
#
# The start $x_T$ is drawn before the first decision; no parameter touches it. A problem of this kind is called
# a *Markov decision process* (MDP): what comes next depends on the present state alone. So the probability of
# a path is a product,
#
# <!-- eq: mdp-path-probability | Ho et al. 2020, eq. 1 -->
# $$
# \log p_\theta(x_{0:T}) = \log p(x_T) + \sum_{t=1}^{T} \log p_\theta(x_{t-1} \mid x_t) ,
# $$
#
# and what RL maximises is the mean reward of a finished path:
#
# <!-- definition -->
# $$
# J(\theta) = E_{p_\theta}\big[ r(x_0) \big] .
# $$
#
# We begin with a chain so small that every path can be listed. It has 4 states and 6 steps. Noising keeps a
# state with probability 0.6 and else draws any state. The chain below is the exact reversal of
# that. Four states at seven times make $4^7 = 16{,}384$ paths, and every expectation is a finite sum.

# %%
world = small_chain()
policy, reward = world.reference, world.reward
T, S = policy.T, policy.states
paths = policy.paths()  # (16384, 7): all of them; column t is x_t
probability = policy.log_prob(paths).exp()
path_reward = reward[paths[:, 0]]
print(f"{len(paths):,} paths; their probabilities sum to {float(probability.sum()):.12f}")
print("reward of the states:       ", [round(r, 2) for r in reward.tolist()])
print("how often each is produced: ", [round(p, 2) for p in policy.marginals()[0].tolist()])

# %% [markdown]
# The state that the reward likes most, number 3, is the rarest. Now the usual way: draw paths, and average.
# An average of $n$ independent terms has a *standard error*, their standard deviation divided by $\sqrt n$.
#
# **Predict.** Is the exact mean reward inside the interval "estimate plus or minus two standard errors"?
# How often should it be, over many repetitions?

# %%
def sample_paths(chain, n):
    """(n, T + 1) paths, drawn step by step; column t is x_t."""
    state = torch.multinomial(chain.log_start.exp(), n, replacement=True)
    path = [state]
    for kernel in chain.log_kernel.exp().flip(0):  # from t = T down to t = 1
        state = torch.multinomial(kernel[state], 1)[:, 0]
        path.append(state)
    return torch.stack(path[::-1], 1)


N = settings.paths
drawn = sample_paths(policy, N)
drawn_reward = reward[drawn[:, 0]]
exact_mean = float(probability @ path_reward)
error = float(drawn_reward.std() / N**0.5)
print(f"exact {exact_mean:.5f}; from {N:,} paths {float(drawn_reward.mean()):.5f} +- {error:.5f}")

# %% [markdown]
# It should be inside in 95 % of all repetitions. All bands in this notebook are of that kind.
#
# ## 2. Return and value
#
# **Question.** The reward comes at the end only. What is a state worth on the way?
#
# The *return* of a step is the sum of all rewards that follow it. There is only one, and we do not discount
# it, so the return of every step of a path is $r(x_0)$. The *value* of a state is its mean return,
# $U_t(x) = E[r(x_0) \mid x_t = x]$. One step of the chain ties the values of neighbouring times:
#
# <!-- eq: value-recursion | Sutton & Barto 2018, eq. 3.14 -->
# $$
# U_0(x) = r(x) , \qquad U_t(x) = \sum_{z} p_\theta(x_{t-1} = z \mid x_t = x)\; U_{t-1}(z) .
# $$
#
# This is *Bellman's equation*. The value of the action $z$ is simply $U_{t-1}(z)$, as the action is the next
# state. (Notebook 05 needs *soft* values, which average $e^{r/\tau}$. These here are plain ones.)
#
# **Predict.** Sketch $U_t$ of the four states over $t = 0, \dots, 6$. Where do the curves go?

# %%
value = [reward]
for kernel in policy.log_kernel.exp():  # from t = 1 up to t = T
    value.append(kernel @ value[-1])
value = torch.stack(value)  # (T + 1, S)
by_enumeration = torch.stack([
    torch.stack([
        (probability * path_reward)[paths[:, t] == s].sum() / probability[paths[:, t] == s].sum()
        for s in range(S)
    ])
    for t in range(T + 1)
])
run.metric("value_error", (value - by_enumeration).abs().max(), "1", (T + 1) * S,
           "largest difference between the values by Bellman's recursion and the mean reward of all "
           "enumerated paths through a state")

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.4))
for s, marker in enumerate("os^D"):
    ax.plot(range(T + 1), value[:, s], marker + "-", color=f"C{s}", label=f"state {s}")
    for t in range(1, T + 1):
        visits = drawn_reward[drawn[:, t] == s]
        ax.errorbar(t + 0.12, visits.mean(), 1.96 * visits.std() / len(visits) ** 0.5, color="0.4",
                    fmt=".", ms=3, capsize=2)
ax.set(xlabel="time t (steps)", ylabel="value $U_t$ (mean reward)")
ax.legend(ncols=2)
run.figure(
    fig, "values",
    alt="Value of four states over t = 0 to 6. At t = 0 they are the rewards, from -0.3 to 1; with growing t "
        "they draw together to about 0.16. Grey error bars of sampled paths lie on the exact lines.",
    see="far from the data all states are worth about the same: early decisions hardly matter. The grey bars "
        "are sampled paths, 95 % bands.",
)

# %% [markdown]
# ## 3. The policy gradient
#
# **Question.** How does $J$ change with $\theta$, if the reward cannot be differentiated?
#
# Write $J$ as a sum over paths. Only the probabilities depend on $\theta$. Multiply and divide by $p_\theta$, and use
# $\nabla p / p = \nabla \log p$:
#
# <!-- eq: score-function-identity | Williams 1992, theorem 1 -->
# $$
# \nabla_\theta J = \sum_{paths} r\, \nabla_\theta p_\theta
# = \sum_{paths} p_\theta\, r\, \nabla_\theta \log p_\theta
# = E_{p_\theta}\Big[ r(x_0) \sum_{t=1}^{T} \nabla_\theta \log p_\theta(x_{t-1} \mid x_t) \Big] .
# $$
#
# That is all. $\nabla_\theta \log p_\theta$ of a path is called its *score*. (Not the score of notebook 02, which is a
# gradient in $x$.) The reward is a number that multiplies; nobody differentiates it. Averaging over $n$ drawn
# paths gives the estimator called **REINFORCE**.
#
# Our policy is a table of *logits* $\theta_t(x, z)$, and $p_\theta(x_{t-1} = z \mid x_t = x)$ is their softmax over $z$: $6 \cdot 4
# \cdot 4 = 96$ parameters. The score of a softmax is, in the row that the path visits, "one-hot minus
# probability":
#
# <!-- eq: softmax-score | Sutton & Barto 2018, eq. 13.9 -->
# $$
# \frac{\partial \log p_\theta(x_{t-1} \mid x_t)}{\partial \theta_t(x, z)}
# = 1[x_t = x]\, \big( 1[x_{t-1} = z] - p_\theta(x_{t-1} = z \mid x_t = x) \big) .
# $$
#
# **Check.** Three ways to the gradient: the identity, summed over all paths; automatic differentiation of $J$;
# and the library's formula, which uses values instead of paths.

# %%
score = policy.score(paths).flatten(1)  # (16384, 96)
gradient = (probability * path_reward) @ score

logits = policy.log_kernel.clone().requires_grad_()
mean_reward = policy.with_kernel(logits).marginals()[0] @ reward
(by_autograd,) = torch.autograd.grad(mean_reward, logits)
by_formula = world.objective_gradient(policy)  # at the reference its KL term has gradient 0
worst = max(float((gradient - other.flatten()).abs().max()) for other in (by_autograd, by_formula))
run.metric("policy_gradient_error", worst, "1", len(paths),
           "largest difference, over 96 logits, of the score-function identity summed over all paths to "
           "automatic differentiation and to the policy gradient theorem")

# %% [markdown]
# Now REINFORCE from drawn paths. We look at four *directions* in the space of logits, each a unit vector,
# chosen before any number was seen:
#
# - *gradient*: along the exact gradient
# - *last step*: raise the logit of state 3 at $t = 1$, in all rows
# - *first step*: the same at $t = 6$
# - *stay*: raise the logit of "stay where you are" at all times
#
# The quantity to watch is $|$estimate $-$ exact$|$ over the standard error. For one direction it exceeds 3 by chance
# once in 370 runs, for four about once in 90. (Over all 96 logits the largest would exceed 3 by chance in about one run of
# four.) A wrong formula, as we will see, is off by far more.
#
# **Predict.** Which direction has the largest *relative* error? Think of the figure of values.

# %%
direction = torch.zeros(4, T, S, S)
direction[0] = gradient.reshape(T, S, S)
direction[1, 0, :, 3] = 1
direction[2, T - 1, :, 3] = 1
direction[3] = torch.eye(S)
direction = direction.flatten(1) / direction.flatten(1).norm(dim=1, keepdim=True)
NAMES = ["gradient", "last step", "first step", "stay"]
exact = direction @ gradient
drawn_score = policy.score(drawn).flatten(1) @ direction.T  # (N, 4)


def in_standard_errors(terms, truth):
    """|mean - truth| / standard error of each column of terms (n, k)."""
    return (terms.mean(0) - truth).abs() / (terms.std(0) / len(terms) ** 0.5)


terms = drawn_reward[:, None] * drawn_score
z = in_standard_errors(terms, exact)
for i, name in enumerate(NAMES):
    print(f"{name:>10}: exact {float(exact[i]):8.5f}, REINFORCE {float(terms[:, i].mean()):8.5f} "
          f"+- {float(terms[:, i].std() / N**0.5):.5f}, off by {float(z[i]):.2f} standard errors")
run.metric("reinforce_gradient_error_over_standard_error", z.max(), "1", N,
           "largest over four fixed unit directions in the chain's 96 logits (exact gradient, last step, first "
           "step, stay) of |REINFORCE estimate - exact derivative| / standard error, no baseline; a right "
           "estimator exceeds 3 about once in 90 runs")

# %%
count = torch.unique(torch.logspace(1.5, torch.log10(torch.tensor(float(N))).item(), 60).long())
along = terms[:, 0]
mean = along.cumsum(0)[count - 1] / count
square = along.square().cumsum(0)[count - 1] / count
band = 1.96 * ((square - mean.square()) / count).sqrt()
fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.semilogx(count, mean, label="REINFORCE")
ax.fill_between(count, mean - band, mean + band, alpha=0.25, label="95 % band")
ax.axhline(float(exact[0]), color="#D55E00", ls="--", label="exact")
ax.set(xlabel="paths n", ylabel="derivative along the gradient", ylim=(-0.02, 0.2))
ax.legend()
run.figure(
    fig, "running_estimate",
    alt="Running REINFORCE estimate over the number of paths, log axis, with a band that narrows around "
        "the dashed exact value of 0.079.",
    see="the band narrows like one over the root of n. At 100 paths it still reaches a third of the value to "
        "each side, and this is the easiest of the four directions.",
)

# %% [markdown]
# ### Break it: leave out one step
# A tempting shortcut: "the last step hardly adds noise, so drop its term from the sum". **Predict.** By how many
# standard errors is each direction off then? And if the softmax's probability is left out, so that the score
# is the one-hot alone?

# %%
every_step = policy.score(drawn)  # (N, T, S, S)
no_last = every_step.clone()
no_last[:, 0] = 0
no_probability = every_step + policy.log_kernel.exp() * (every_step != 0).any(-1, keepdim=True)
broken = {"last step dropped": no_last, "one-hot alone": no_probability}
for name, wrong in broken.items():
    off = in_standard_errors(drawn_reward[:, None] * (wrong.flatten(1) @ direction.T), exact)
    print(f"{name:>18}:", ", ".join(f"{NAMES[i]} {float(off[i]):.1f}" for i in range(4)))
    run.metric(f"broken_{name.replace(' ', '_').replace('-', '_')}", off[0], "1", N,
               "off along the exact gradient, in standard errors, of REINFORCE with this mistake: "
               f"{name}")

# %% [markdown]
# The `inf` is honest: without its term, the estimate of *last step* is exactly 0, and so is its error bar. And note *first
# step* in the first line: no worse than before. A mistake at one step is invisible in a direction that does not touch that
# step. Test in several directions.

# %% [markdown]
# ## 4. A baseline
#
# **Question.** REINFORCE is right on average. How many paths does it need, and can we do with fewer?
#
# Add 10 to every reward. Nothing has changed: all policies gained 10. Yet every term of the estimator is now
# multiplied by a number near 10. The remedy is to subtract a number $b$, a *baseline*, from the reward. It leaves
# the mean alone, because probabilities sum to 1 whatever $\theta$ is:
#
# <!-- eq: score-has-mean-zero | Williams 1992 -->
# $$
# E_{p_\theta}\big[ \nabla_\theta \log p_\theta \big] = \sum_{paths} \nabla_\theta p_\theta = \nabla_\theta 1 = 0
# \quad\Longrightarrow\quad E_{p_\theta}\big[ (r - b)\, \nabla_\theta \log p_\theta \big] = \nabla_\theta J .
# $$
#
# It does move the variance. The variance summed over all parameters is a parabola in $b$:
#
# <!-- eq: best-constant-baseline | derived here; see Greensmith et al. 2004 -->
# $$
# V(b) = E\big[ (r - b)^2\, |s|^2 \big] - |\nabla J|^2 , \qquad
# b^* = \frac{E[\, r\, |s|^2 ]}{E[\, |s|^2 ]} , \qquad s = \nabla_\theta \log p_\theta .
# $$
#
# In words: $b^*$ is the mean reward, where paths with a large score count more. Turn the variance into a price.
# The estimator's typical error from $n$ paths is $\sqrt{V/n}$. For it to be 10 % of $|\nabla J|$ we need
#
# <!-- definition -->
# $$
# n_{10\%} = \frac{V}{(0.1\, |\nabla J|)^2} .
# $$
#
# The baseline may depend on the state as well, $b = U_t(x_t)$, since the step's score has mean 0 given $x_t$. And one can
# go further and replace the return itself by its mean given the action, $U_{t-1}(x_{t-1})$. What is left is
# the *advantage*: how much better the action is than the state promised.
#
# <!-- eq: policy-gradient-by-advantage | Sutton et al. 2000, theorem 1 -->
# $$
# \nabla_\theta J = E_{p_\theta}\Big[ \sum_{t=1}^{T} \big( U_{t-1}(x_{t-1}) - U_t(x_t) \big)\,
# \nabla_\theta \log p_\theta(x_{t-1} \mid x_t) \Big] .
# $$
#
# **Predict.** Order by paths needed: no baseline; the mean reward; $b^*$; $U_t(x_t)$; the advantage.

# %%
score_square = score.square().sum(1)
gradient_square = gradient.square().sum()
best = float((probability * path_reward) @ score_square / (probability @ score_square))
step_square = policy.score(paths).square().sum((2, 3))  # (16384, T)
best_by_state = torch.zeros(len(paths), T)
for t in range(T):
    for s in range(S):
        here = paths[:, t + 1] == s
        mass = probability[here] * step_square[here, t]
        best_by_state[here, t] = mass @ path_reward[here] / mass.sum()


def paths_needed(weight):
    """n_10% of the estimator sum_t weight_t score_t; weight (16384, 1 or T), exact."""
    term = (weight[:, :, None] * score.reshape(len(paths), T, S * S)).flatten(1)
    assert ((probability @ term) - gradient).abs().max() < 1e-12  # all are unbiased
    variance = probability @ term.square().sum(1) - gradient_square
    return float(variance / (0.01 * gradient_square))


on_path = value[torch.arange(T + 1), paths]  # (16384, T + 1): U_t(x_t) along each path
one = path_reward[:, None]
weights = {
    "reward plus 10": one + 10,
    "no baseline": one,
    "mean reward": one - exact_mean,
    "best constant": one - best,
    "value of the state": one - on_path[:, 1:],
    "best by state": one - best_by_state,
    "advantage": on_path[:, :-1] - on_path[:, 1:],
}
needed = {name: paths_needed(weight) for name, weight in weights.items()}
for name, n in needed.items():
    print(f"{name:>18}: {n:12,.0f} paths for an error of 10 %")
for name in ("no baseline", "mean reward", "advantage"):
    run.metric(f"paths_needed_{name.replace(' ', '_')}", needed[name], "paths", len(paths),
               f"paths for a root mean square error of 10 % of the gradient's norm, {name}, exact")

# %% [markdown]
# Two surprises. First, on *this* reward the mean reward saves little: its mean was near 0 already. Its point is
# insurance. With it the reward's zero does not matter, and "reward plus 10" needs no more paths than before: 6,819,
# not 4.7 million. Second, $U_t(x_t)$ is a *worse* baseline than one constant. Unlikely actions have large scores, and so
# they rule the variance, while $U_t$ is an average over the likely ones. The best baseline for each state (its mean
# reward with $|s_t|^2$ as weight, last but one line) is better than all constants. The advantage pays most, threefold. But it needs
# the values, here exact; a learned value network (a *critic*) that is wrong makes the gradient wrong.

# %%
grid = torch.linspace(-1, 1.3, 60)
parabola = [paths_needed(one - b) for b in grid]
sampled_square = policy.score(drawn).flatten(1).square().sum(1)
dots = torch.linspace(-1, 1.3, 9)
by_sample = [float((((drawn_reward - b).square() * sampled_square).mean() - gradient_square)
                   / (0.01 * gradient_square)) for b in dots]
fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.plot(grid, parabola, label="all paths, exact")
ax.plot(dots, by_sample, "k.", label=f"{N:,} drawn paths")
ax.axvline(exact_mean, ymax=0.6, color="#009E73", ls=":", label="mean reward")
ax.axvline(best, ymax=0.6, color="#D55E00", ls="--", label="$b^*$")
ax.set(xlabel="baseline b (unit of the reward)", ylabel="paths for an error of 10 %",
       ylim=(0, 100_000))
ax.legend(ncols=2, loc="upper center")
run.figure(
    fig, "baseline",
    alt="Paths needed over the baseline: a parabola with its minimum of about 6,800 near b = 0.17, where mean "
        "reward and best constant almost coincide; black dots of drawn paths lie on it.",
    see="the mean reward is almost the best constant; a baseline that is off by 1 costs eight times as many "
        "paths.",
)

# %% [markdown]
# The same with a slider: 300 REINFORCE estimates from 500 paths each. Move the baseline: the centre
# stays, the width changes.

# %%
chosen = torch.multinomial(probability, 150_000, replacement=True)
by_path = (score @ direction[0])[chosen]


def show_baseline(b):
    """Histogram of REINFORCE estimates along the gradient with this baseline."""
    estimates = ((path_reward[chosen] - b) * by_path).reshape(300, 500).mean(1)
    fig, ax = plt.subplots(figsize=(5, 3))
    ax.hist(estimates, bins=torch.linspace(-0.2, 0.36, 57).tolist())
    ax.axvline(float(exact[0]), color="#D55E00", ls="--")
    ax.set(title=f"standard deviation {float(estimates.std()):.4f}", xlabel="estimated derivative",
           ylabel="estimates (count)")
    return fig


slider = ipywidgets.FloatSlider(value=0.2, min=-5.0, max=5.0, step=0.1)
widgets.explore(show_baseline, b=slider)

# %% [markdown]
# ### Exercise 04.1: REINFORCE with its error
# Write `reinforce(score, reward)`: `score` is (n, k), the scores of n paths in k parameters; `reward` is (n,). As the
# baseline of path $i$ take the mean reward of the *other* $n - 1$ paths: then baseline and score are
# independent, and the estimate is exactly unbiased. Return the pair (estimate of the gradient (k,), its
# standard error (k,)), the standard error as if the n terms were independent.
#
# <details><summary>Hint 1</summary>
#
# The mean of the others is `(reward.sum() - reward) / (n - 1)`.
#
# <details><summary>Hint 2</summary>
#
# Form the (n, k) terms first. The estimate is their mean over paths, the standard error their standard
# deviation (with n - 1) over the root of n.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 04.1
def reinforce(score, reward):
    """REINFORCE with a leave-one-out baseline: (gradient (k,), standard error (k,))."""
    # STUB: return None
    ### BEGIN SOLUTION
    n = len(reward)
    baseline = (reward.sum() - reward) / (n - 1)
    terms = (reward - baseline)[:, None] * score
    return terms.mean(0), terms.std(0) / n**0.5
    ### END SOLUTION

# %% tags=["check"]
exercises.check("04.1", reinforce)

# %% [markdown]
# ## 5. Old paths, new policy
#
# **Question.** Drawing paths is expensive. Can the paths of yesterday's policy serve today's?
#
# Yes, with a weight. For any function $f$ of a path,
#
# <!-- eq: path-importance-ratio | Owen, Monte Carlo theory, methods and examples, eq. 9.3 -->
# $$
# E_{new}[f] = E_{old}[w f] , \qquad
# w = \frac{p_{new}(x_{0:T})}{p_{old}(x_{0:T})}
# = \prod_{t=1}^{T} \frac{p_{new}(x_{t-1} \mid x_t)}{p_{old}(x_{t-1} \mid x_t)} .
# $$
#
# The start's probability cancels. The price is in the product: factors that are each near 1 multiply to a weight
# that is not. A weighted sample of $n$ paths is worth about $n / E_{old}[w^2]$ equal ones: its *effective sample size*,
# which notebook 07 lives on. Move the policy along the exact gradient and look.
#
# **Predict.** At which gain in reward is half of the sample lost?

# %%
sizes = torch.linspace(0, 6, 25)
rows = []
for size in sizes:
    new = policy.with_kernel(policy.log_kernel + size * direction[0].reshape(T, S, S))
    w = (new.log_prob(paths) - policy.log_prob(paths)).exp()
    w_drawn = (new.log_prob(drawn) - policy.log_prob(drawn)).exp()
    rows.append((new.marginals()[0] @ reward, 1 / (probability @ w.square()),
                 w_drawn.sum() ** 2 / w_drawn.square().sum() / N, probability @ (w * path_reward)))
gained, share, share_drawn, reweighted = torch.tensor(rows).T
run.metric("reweighting_error", (gained - reweighted).abs().max(), "1", len(paths),
           "largest difference between the new policy's mean reward and the old paths' reweighted mean, "
           "all paths, 25 new policies")
half = int((share < 0.5).nonzero()[0])
print(f"half of the sample is lost at a mean reward of {float(gained[half]):.2f}, "
      f"from {exact_mean:.2f}; the best possible is 1")

fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.plot(gained, share, label="all paths, exact")
ax.plot(gained[::3], share_drawn[::3], "k.", label=f"{N:,} drawn paths")
ax.set(xlabel="mean reward of the new policy", ylabel="effective share of the sample", ylim=(0, 1.05))
ax.legend()
run.figure(
    fig, "reuse",
    alt="Effective share of old paths over the new policy's mean reward: it starts at 1 for a reward of 0.16 and "
        "falls steadily, black dots on the line.",
    see="old paths serve small steps well. The further the policy moves, the fewer of them count.",
)

# %% [markdown]
# ## 6. A real diffusion chain
#
# **Question.** What changes when states are points in the plane and steps are Gaussian?
#
# Only the step's probability. For $d$ coordinates and the standard deviation $\sigma_t$,
#
# <!-- eq: gaussian-step-log-prob | derived here -->
# $$
# \log p_\theta(x_{t-1} \mid x_t) = - \frac{\lVert x_{t-1} - \mu_\theta(x_t, t) \rVert^2}{2 \sigma_t^2}
# - \frac d2 \log (2 \pi \sigma_t^2) ,
# \qquad \sigma_t^2 = \begin{cases} \tilde\beta_t & t > 1 \\ \beta_1 & t = 1 . \end{cases}
# $$
#
# Look at the last case. Notebook 02's sampler adds no noise in the last step, for $\tilde\beta_1 = 0$. Such a step has
# no density: it is a spike, the logarithm is infinite, and no ratio of two policies exists. So wherever
# log-probabilities are used, the last step has the variance $\beta_1$ (Ho et al. 2020, section 3.2, call $\beta_t$ and $\tilde\beta_t$ the
# two extreme choices). This must hold for *drawing* the path as well as for scoring it: `Diffusion.trajectory` and `Diffusion.log_prob` use the same
# $\sigma_t$. The price: $x_0$ has a little more noise than the sampler's.
#
# Our world keeps everything exact. Data are $\mathcal N(0, 0.25\, I)$, and the denoiser is the best possible one. The
# policy has two parameters: it shifts the guess of the data, $\hat x_0$, by $\theta$ at every step. The reward is minus the squared
# distance to a target $a$. All means are linear in $x_t$, so $x_0$ is Gaussian; one chain without noise gives its
# mean, the sum of the noise's echoes its variance $v$, and
#
# <!-- eq: quadratic-reward-of-gaussian | derived here -->
# $$
# J(\theta) = - \lVert m(\theta) - a \rVert^2 - d\, v , \qquad x_0 \sim \mathcal N\big(m(\theta),\, v I\big) .
# $$

# %%
target = torch.tensor([1.0, 0.5])
data = GaussianMixture(torch.zeros(1, 2), 0.5)


def gaussian_world(steps):
    """A diffusion and its policy: theta (2,), or one theta for each path (n, 2) -> denoiser."""
    diffusion = Diffusion(schedules.cosine(steps))
    alpha_bar, best = diffusion.schedule.alpha_bar, data.denoiser(diffusion.schedule)

    def policy_of(theta):
        def eps(x, t, cond=None):
            per_shift = (alpha_bar[t] / (1 - alpha_bar[t])).sqrt()[:, None]
            return best(x, t) - per_shift * theta  # x0_hat moves by theta

        return eps

    return diffusion, policy_of


def end_of_chain(diffusion, policy_of, theta):
    """Exact mean (2,) and variance of x_0; every step's mean is linear in x."""
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    mean, variance = torch.zeros(1, 2), torch.ones(())
    for t in range(diffusion.T, 0, -1):
        eps = policy_of(theta)(points, torch.full((2,), t))
        at_0, at_1 = diffusion.step(points, t, t - 1, eps)[0]
        gain = (at_1 - at_0)[0]
        mean, variance = gain * mean + at_0, gain**2 * variance + diffusion.path_std(t, t - 1) ** 2
    return mean[0], variance


def distance_reward(x0):
    """Minus the squared distance to the target, (n,)."""
    return -(x0 - target).square().sum(1)

# %% [markdown]
# **Predict.** With $\tilde\beta_1$ replaced by $\beta_1$, how much wider is a finished sample, in per cent of its standard deviation?

# %%
diffusion, policy_of = gaussian_world(20)
theta = torch.zeros(2, requires_grad=True)
mean, variance = end_of_chain(diffusion, policy_of, theta)
exact_J = -(mean - target).square().sum() - 2 * variance
(exact_gradient,) = torch.autograd.grad(exact_J, theta)
n = settings.diffusion_paths
path = diffusion.trajectory(policy_of(torch.zeros(2)), torch.randn(n, 2))
x0, r = path.x[-1], distance_reward(path.x[-1])
print(f"mean reward: exact {float(exact_J.detach()):.4f}, {n:,} paths {float(r.mean()):.4f} "
      f"+- {float(r.std() / n**0.5):.4f}")
without = float(variance.detach()) - diffusion.path_std(1, 0) ** 2
wider = (float(variance.detach()) / without) ** 0.5 - 1
run.metric("last_step_widening", wider, "1", 20,
           "relative increase of the standard deviation of x_0 from noise of variance beta_1 in the last "
           "step, 20 steps, exact")

# %% [markdown]
# And a sampler without any noise, $\eta = 0$ in notebook 02? Its paths have no density at all:

# %%
try:
    diffusion.log_prob(policy_of(torch.zeros(2)), path, eta=0.0)
except ValueError as refusal:
    print(refusal)

# %% [markdown]
# Now REINFORCE. `log_prob` gives $\log p_\theta$ of each step, and its gradient in $\theta$ is the score. We want the score of
# *each* path, so every path gets a $\theta$ of its own, all equal.

# %%
def path_scores(diffusion, policy_of, theta, path):
    """(n, 2) gradient of each path's log-probability in theta (2,)."""
    each = theta.detach().expand(path.x.shape[1], 2).clone().requires_grad_()
    log_prob = diffusion.log_prob(policy_of(each), path).sum()
    return torch.autograd.grad(log_prob, each)[0]


s = path_scores(diffusion, policy_of, theta, path)
for name, b in (("no baseline", 0.0), ("mean reward", r.mean())):
    terms = (r - b)[:, None] * s
    off = in_standard_errors(terms, exact_gradient)
    print(f"{name}: {terms.mean(0).round(decimals=3).tolist()} +- "
          f"{(terms.std(0) / n**0.5).round(decimals=3).tolist()}, "
          f"exact {exact_gradient.round(decimals=3).tolist()}")
run.metric("reinforce_2d_error_over_standard_error", off.max(), "1", n,
           "larger over the two coordinates of theta of |REINFORCE estimate - exact derivative| / standard "
           "error, Gaussian diffusion of 20 steps, mean reward as baseline")

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.4))
for ax, shift, title in zip(axes, (0.0, 0.2), (r"$\theta = 0$", r"$\theta = (0.2, 0.1)$"), strict=True):
    shifted = diffusion.trajectory(policy_of(shift * target), torch.randn(300, 2))
    ax.plot(shifted.x[:, :12, 0], shifted.x[:, :12, 1], lw=0.7, alpha=0.6, color="0.5")
    ax.plot(*shifted.x[-1].T, ".", ms=4, label="$x_0$")
    ax.plot(*target, "*", ms=12, color="#D55E00", label="target")
    ax.set(title=title, xlabel="$x_1$ (no unit)", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
axes[0].set_ylabel("$x_2$ (no unit)")
axes[0].legend()
run.figure(
    fig, "diffusion_paths",
    alt="Grey paths and blue end points of the diffusion. Left they end around the origin, away from the orange "
        "star at (1, 0.5); right, with theta = (0.2, 0.1), they end closer to the star.",
    see="a small shift at every step adds up: theta = (0.2, 0.1) moves the cloud most of the way to the target.",
)

# %% [markdown]
# **Predict.** Double the number of steps. The finished samples are almost the same. How many paths does REINFORCE need now, for
# the same relative error: as many, half, twice?

# %%
lengths = [10, 20, 40]
price = []
for steps in lengths:
    d, p = gaussian_world(steps)
    zero = torch.zeros(2, requires_grad=True)
    m, v = end_of_chain(d, p, zero)
    (g,) = torch.autograd.grad(-(m - target).square().sum() - 2 * v, zero)
    drawn_2d = d.trajectory(p(torch.zeros(2)), torch.randn(n, 2))
    r_2d = distance_reward(drawn_2d.x[-1])
    s_2d = path_scores(d, p, zero, drawn_2d)
    e = (r_2d - r_2d.mean())[:, None] * s_2d
    price.append(float(e.var(0).sum() / (0.01 * g.square().sum())))
    explained = float(torch.corrcoef(torch.stack([s_2d[:, 0], drawn_2d.x[-1][:, 0]]))[0, 1] ** 2)
    print(f"T = {steps}: {price[-1]:6,.0f} paths for an error of 10 %; "
          f"{explained:.0%} of the score's variance is explained by x_0")
run.metric("price_of_twice_the_steps", price[2] / price[1], "1", n,
           "paths that REINFORCE (mean reward as baseline) needs for an error of 10 % with 40 steps, over "
           "those with 20, Gaussian diffusion")

# %% [markdown]
# About twice. Every step adds a term to the score, and most of its noise never reaches $x_0$: later steps wash it out.
# The last column shows it: the finished sample explains a smaller and smaller part of the path's score. The rest is noise
# that the reward cannot know of, and the estimator carries it all the same. *A denoising loss does not*: it never looks at whole
# paths. That is one reason why this course trains on weighted samples (notebook 07).

# %% [markdown]
# ### Exercise 04.2: log-probability of a path
# Write `path_log_prob(x, mean, beta, beta_tilde)`. `x` is (T+1, B, d), and `x[t]` is $x_t$ (the library's
# `Trajectory` runs the other way: its `x[0]` is $x_T$). `mean` is (T+1, B, d), and
# `mean[t]` is the mean of $x_{t-1}$ given $x_t$ (`mean[0]` is not used). `beta` and `beta_tilde` are (T+1,). Return (B,):
# the sum of $\log p(x_{t-1} | x_t)$ over $t = 1, \dots, T$, constants included, without the start's.
#
# <details><summary>Hint 1</summary>
#
# The variances are `beta_tilde[1:]` with their first entry replaced by `beta[1]`.
#
# <details><summary>Hint 2</summary>
#
# `x[:-1]` and `mean[1:]` belong together. The constant $-\frac12 \log(2\pi\sigma^2)$ counts once for each of the $d$
# coordinates.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 04.2
def path_log_prob(x, mean, beta, beta_tilde):
    """log p of the steps of a path, (B,)."""
    # STUB: return None
    ### BEGIN SOLUTION
    variance = beta_tilde[1:].clone()
    variance[0] = beta[1]
    std = variance.sqrt()[:, None, None]
    return torch.distributions.Normal(mean[1:], std).log_prob(x[:-1]).sum((0, 2))
    ### END SOLUTION

# %% tags=["check"]
exercises.check("04.2", path_log_prob)

# %% [markdown]
# ### Break it: sharpen the last step
# $\beta_1$ is a choice. What if we take a hundredth of its standard deviation, to stay close to the noise-free sampler? All formulas
# stay right. **Predict.** How many paths does the gradient need then: 10 % more, ten times, a thousand times?

# %%
@dataclass(frozen=True)
class SharpEnd(Diffusion):
    """The last step's standard deviation, multiplied by ``factor``."""

    factor: float = 1.0

    def path_std(self, t, s, eta=1.0):
        return super().path_std(t, s, eta) * (self.factor if s == 0 else 1.0)


factors = [1.0, 0.3, 0.1, 0.03, 0.01]
sharp_price = []
for factor in factors:
    sharp = SharpEnd(diffusion.schedule, factor=factor)
    drawn_2d = sharp.trajectory(policy_of(torch.zeros(2)), torch.randn(n, 2))
    r_2d = distance_reward(drawn_2d.x[-1])
    e = (r_2d - r_2d.mean())[:, None] * path_scores(sharp, policy_of, theta, drawn_2d)
    sharp_price.append(float(e.var(0).sum() / (0.01 * exact_gradient.square().sum())))
run.metric("price_of_a_sharp_end", sharp_price[-1] / sharp_price[0], "1", n,
           "paths that REINFORCE needs when the last step's standard deviation is a hundredth of "
           "sqrt(beta_1), over those it needs at sqrt(beta_1), Gaussian diffusion of 20 steps")
fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.loglog(factors, sharp_price, "o-")
ax.set(xlabel=r"last step's standard deviation over $\sqrt{\beta_1}$", ylabel="paths for an error of 10 %")
run.figure(
    fig, "sharp_end",
    alt="Paths needed over the last step's standard deviation, both axes logarithmic: flat near 1, then rising "
        "with slope -2 to millions at 0.01.",
    see="the score of the last step is proportional to one over its width, so the price grows with its square.",
)

# %% [markdown]
# ## 7. DDPO in five lines
#
# **Question.** One gradient step per batch of paths wastes them. How far can one batch take us?
#
# DDPO (Black et al. 2023) takes several steps per batch. It gives each *step* of the chain the ratio of the new
# to the old policy, $\rho_t$, and not each path their product. And it takes from PPO (Schulman et al.
# 2017) a *clip*: beyond $1 \pm \epsilon$ a ratio earns nothing more. With the advantage $A$, here the reward minus the batch's
# mean, over its standard deviation, one maximises
#
# <!-- eq: ddpo-clipped-objective | Schulman et al. 2017, eq. 7; Black et al. 2023, section 4.3 -->
# $$
# L(\theta) = E_{old}\Big[ \sum_{t=1}^{T} \min\big( \rho_t A,\; \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\, A \big) \Big] ,
# \qquad \rho_t = \frac{p_\theta(x_{t-1} \mid x_t)}{p_{old}(x_{t-1} \mid x_t)} .
# $$
#
# Why the minimum? It makes the clip one-sided. A step that moved the *wrong* way keeps its full gradient and can
# come back. At $\theta = old$ all ratios are 1, and the gradient of $L$ is REINFORCE's. Further away it is biased: ratios of
# single steps do not reweight whole paths. On the finite chain we can say by how much, for the policies of
# section 5, and without a clip.
#
# **Predict.** When old paths are worth half their number (mean reward about 0.46, the last line), by how many per cent is DDPO's
# gradient off?

# %%
for size in (0.0, 0.5, 1.0, 2.0, 4.0):
    new = policy.with_kernel(policy.log_kernel + size * direction[0].reshape(T, S, S))
    visited = (torch.arange(T), paths[:, 1:], paths[:, :-1])
    rho = (new.log_kernel[visited] - policy.log_kernel[visited]).exp()  # (16384, T)
    terms = ((path_reward - exact_mean)[:, None] * rho)[:, :, None, None] * new.score(paths)
    of_steps = probability @ terms.flatten(1)
    truth = (new.log_prob(paths).exp() * path_reward) @ new.score(paths).flatten(1)
    bias = float((of_steps - truth).norm() / truth.norm())
    print(f"mean reward {float(new.marginals()[0] @ reward):.2f}, ratios {float(rho.min()):.2f} to "
          f"{float(rho.max()):.2f}: off by {bias:.1%}")
run.metric("step_ratio_bias", bias, "1", len(paths),
           "norm of DDPO's unclipped gradient minus the exact gradient over the latter's norm, exact, policy "
           "moved by 4 logits along the reference's gradient")

# %% [markdown]
# The bias is not noise: more paths do not help. In the second line all ratios are within about $1 \pm 0.2$, PPO's usual clip
# (DDPO's own code takes $10^{-4}$), and it is 10 % already. The clip keeps the policy near the place where ratios are 1, and the bias small; it does not remove it.
#
# ### Exercise 04.3: the clipped objective
# Write `clipped_objective(log_new, log_old, advantage, clip)`. `log_new` and `log_old` are (B, T), log-probabilities
# of each step under the new and the old policy; `advantage` is (B,). Return the number $L$ to be *maximised*: the sum
# over steps, the mean over paths.
#
# <details><summary>Hint 1</summary>
#
# The ratio is `(log_new - log_old).exp()`, one for each step; the advantage is that of the path.
#
# <details><summary>Hint 2</summary>
#
# `torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)` with `A = advantage[:, None]`.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 04.3
def clipped_objective(log_new, log_old, advantage, clip):
    """DDPO's objective, to be maximised."""
    # STUB: return None
    ### BEGIN SOLUTION
    ratio = (log_new - log_old).exp()
    A = advantage[:, None]
    return torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A).sum(1).mean()
    ### END SOLUTION

# %% tags=["check"]
exercises.check("04.3", clipped_objective)

# %% [markdown]
# Here it is at work: ten gradient steps on each batch of 300 paths. The function can also make a mistake, for the
# museum below: with `stale=False` it compares the policy with *itself*.

# %%
def ddpo(step_size, clip, stale=True, rounds=settings.rounds, inner=10, n=300):
    """Train theta; return its distance to the best theta by round, and the last batch's ratios."""
    theta, history = torch.zeros(2), []
    for _ in range(rounds):
        path = diffusion.trajectory(policy_of(theta), torch.randn(n, 2))
        r = distance_reward(path.x[-1])
        A = ((r - r.mean()) / r.std())[:, None]
        old = diffusion.log_prob(policy_of(theta), path)
        history.append((float(r.mean()), distance(theta)))
        used = []
        for _ in range(inner):
            theta = theta.detach().requires_grad_()
            new = diffusion.log_prob(policy_of(theta), path)
            ratio = (new - (old if stale else new.detach())).exp()
            objective = torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A).sum(1).mean()
            theta = theta + step_size * torch.autograd.grad(objective, theta)[0]
            used.append(ratio.detach())
        theta = theta.detach()
    return torch.tensor(history), torch.stack(used)


def distance(theta):
    """Distance of the policy's exact mean to the target."""
    return float((end_of_chain(diffusion, policy_of, theta)[0] - target).norm())


CLIP = 0.2
methods = {
    "clipped": {"clip": CLIP},
    "not clipped": {"clip": float("inf")},
    "ratio always 1": {"clip": CLIP, "stale": False},
}
slow, fast = ({name: ddpo(size, **options) for name, options in methods.items()}
              for size in (0.002, 0.006))

# %% [markdown]
# Two facts have to hold, or the clip does nothing: after the first of the ten steps the ratio is not 1 everywhere, and some
# ratios are beyond the clip.
#
# **Predict.** The share of ratios outside $1 \pm 0.2$ after nine steps on one batch: 0.1 %, 5 %, half?

# %%
_, used = slow["clipped"]
assert (used[0] == 1).all()  # new = old at the first step: here the gradient is REINFORCE's
outside = ((used[-1] - 1).abs() > CLIP).double().mean()
print(f"last batch, last step: ratios from {float(used[-1].min()):.2f} to {float(used[-1].max()):.2f}")
run.metric("ddpo_share_beyond_clip", outside, "1", used[-1].numel(),
           "share of single-step ratios outside 1 +- 0.2 at the last of ten gradient steps on the last batch, "
           "DDPO with clip 0.2, step size 0.002")
bins = torch.linspace(0.4, 1.8, 71)
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for name, color in (("not clipped", "#D55E00"), ("clipped", "#0072B2")):
    last = fast[name][1][-1].flatten()
    ax.hist(last.clamp(0.4, 1.8), bins=bins.tolist(), histtype="step", color=color, label=name)
for edge in (1 - CLIP, 1 + CLIP):
    ax.axvline(edge, color="0.5", ls=":")
ax.set(xlabel="ratio of one step, new over old policy (ends collect what is beyond)",
       ylabel="steps of paths (count)", yscale="log")
ax.legend()
run.figure(
    fig, "ratios",
    alt="Histograms, log counts, of single-step ratios after nine gradient steps of size 0.006. Clipped: a peak at "
        "1, most between the dotted lines at 0.8 and 1.2. Not clipped: spread over the whole axis.",
    see="the clip does not forbid ratios beyond the lines, it stops rewarding them; without it the policy runs away "
        "from the paths it was computed on.",
)

# %% [markdown]
# ### Bug museum: the ratio that is always 1
# A real mistake, found in public code more than once: the "old" log-probability is recomputed with the *current*
# network. The line looks right, runs, and trains. Its ratio is 1 at all times, so the clip never acts.
#
# **Predict.** Will the reward curve give the bug away?

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
for ax, result, size in zip(axes, (slow, fast), (0.002, 0.006), strict=True):
    for name, style in zip(methods, ("-", "--", ":"), strict=True):
        ax.plot(result[name][0][:, 0], style, lw=2, label=name)
    ax.axhline(-2 * float(variance.detach()), color="0.6", lw=0.8)
    ax.set(title=f"step size {size}", xlabel="batch of 300 paths")
axes[0].set_ylabel("mean reward")
axes[0].legend()
run.figure(
    fig, "museum",
    alt="Mean reward over batches, two panels. Left, small steps: all three curves rise to the grey line of the "
        "best reward, the buggy and the unclipped one within two or three batches, the clipped one within ten. Right, "
        "three times the step size: the clipped curve rises as before, the other two jump up and down.",
    see="on the left the bug looks better than the real thing, whose price is speed. On the right the clip, where "
        "it works, is what keeps training stable.",
)

# %% [markdown]
# The picture on the left would pass any review. Three lines do not:

# %%
for name in ("clipped", "ratio always 1"):
    _, used = slow[name]
    moved = float((used[1:] - 1).abs().max())  # 1: the ratio moves after the first step
    acted = float(((used - 1).abs() > CLIP).double().mean())  # 2: the clip has something to do
    print(f"{name:>14}: largest |ratio - 1| {moved:.3f}, share beyond the clip {acted:.4f}", end=" -> ")
    print("works" if moved > 0 and acted > 0 else "BROKEN: the clip does nothing")  # 3: say so
for name in methods:
    swing = fast[name][0][:, 1].diff().clamp(min=0).max()
    run.metric(f"largest_step_back_{name.replace(' ', '_')}", swing, "1", 300,
               "largest increase, from one batch to the next, of the exact distance of the policy's mean to the "
               f"target, DDPO with step size 0.006, {name}")

# %% [markdown]
# All three aim at the mean reward alone. The best $\theta$ puts the cloud's mean on the target, wherever the target is, and
# nothing reminds the policy of the data. A model trained so forgets what real samples look like. The
# answer is a price for leaving the reference, and it turns the moving goal into a fixed distribution: notebook 05.

# %% [markdown]
# ## Recap
#
# - A denoising chain is a decision process: state $(x_t, t)$, action $x_{t-1}$, policy the reverse step, reward at the end.
# - $\nabla J = E[r \cdot \text{score}]$: no gradient of the reward is needed, but whole paths are, and many of them.
# - A baseline leaves the mean and moves the variance. Its main use is to make the reward's zero irrelevant.
# - An estimate has a band. "Within 3 standard errors of the exact value, in directions fixed beforehand" is a test
#   that wrong formulas fail.
# - Path weights reuse old paths exactly, and cost effective samples. DDPO's ratios of single steps are biased, and
#   a clip keeps the bias small.
# - Wherever log-probabilities are used, the last step has variance $\beta_1$. Sharpening it makes the gradient useless.

# %% [markdown]
# ## Results

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - **The path was drawn by one sampler and is scored by another** (noise-free last step, another $\eta$). Then no ratio means
#   anything. Draw with `trajectory`, score with `log_prob`, with the same arguments.
# - **Log-probabilities averaged over coordinates** instead of summed: the ratio becomes its $d$-th root, and the clip sleeps.
# - **Advantages divided by their spread**: when all paths of a batch are equally good, the spread is noise, and so is
#   the gradient.
# - **A maximum over many coordinates.** Among 96 numbers the largest deviation is near 3 standard errors by chance.
# - **More steps, more noise.** REINFORCE pays for every step of the chain.

# %% [markdown]
# ## Further reading
#
# - Sutton & Barto, *Reinforcement Learning: An Introduction*, 2nd edition 2018, chapters 3 and 13.
# - Williams, *Simple statistical gradient-following algorithms*, Machine Learning 1992: REINFORCE.
# - Greensmith, Bartlett & Baxter, *Variance reduction techniques for gradient estimates*, JMLR 2004: baselines.
# - Black et al., *Training Diffusion Models with Reinforcement Learning*, arXiv 2305.13301: DDPO.
# - Schulman et al., *Proximal Policy Optimization Algorithms*, arXiv 1707.06347: the clip.
# - Fan et al., *DPOK*, arXiv 2305.16381: a policy gradient with a price for leaving the reference.

# %% [markdown]
# ## Next
#
# [05 · The maximum-entropy link](05_max_entropy_link.ipynb): a price for leaving the reference turns the moving goal into a fixed
# distribution. In a hurry: [07 · RGDM](07_rgdm.ipynb) trains towards it, and never looks at paths' scores.

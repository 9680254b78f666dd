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
# # 05 · The maximum-entropy link
#
# Reward on one side, closeness to the reference on the other. This notebook shows that their sum has one
# optimum, that the optimum can be written down, and that there are two ways to walk to it: play and learn from
# the outcome, or reweigh and imitate. You compute every quantity on a chain so small that all of its paths
# can be listed, and see where the two ways part.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 40 | 40 | 40 |
# | minutes to run (2 CPU cores) | 1 | 1 | 1 |
# | memory | 1 GB | 1 GB | 1 GB |
# | GPU | not needed | not needed | not needed |
#
# Prerequisites: 04 (the chain as a decision process, policy gradient). KL divergence.

# %% [markdown]
# ## Goals
#
# - **derive** the payoff distribution as the optimum of reward minus temperature times KL
# - **compute** soft values by a recursion, and **read off** the best policy
# - **write** both KL divergences' gradients as expectations, and **check** them against automatic differentiation
# - **see** when the two optima coincide and when they do not
# - **say** what a start that cannot be tilted costs, and why samplers without noise cannot be steered this way

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
from IPython.display import Markdown, display

from rgdm_lib import schedules
from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds import mixtures
from rgdm_lib.worlds.chain import small_chain
from rgdm_lib.worlds.misspecified import OneGaussian, two_modes
from rgdm_lib.worlds.rewards import Quadratic

run = notebook.start("05_max_entropy_link", PRESET, SEED, OUT_DIR)
settings = run.settings(
    quick={"samples": 200_000, "steps": 300},
    laptop={"samples": 1_000_000, "steps": 1000},
    full={"samples": 1_000_000, "steps": 1000},
)
F64 = torch.float64


def table(header, rows):
    """Show rows of text as a table."""
    lines = [header, ["---"] * len(header), *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


# %% [markdown]
# ## 1. What should be maximised?
#
# **Question.** Reward alone is a bad goal: its optimum is a single point. What goal keeps the rest?
#
# The world is notebook 04's: a diffusion over four states, noised in six steps. Its exact time reversal is
# the **reference** $p_{ref}$: a start $s_6$, then kernels $p_{ref}(s_{t-1} \mid s_t)$ down to $s_0$. The
# end gets a reward $r(s_0)$. A **policy** $p_\theta$ has the same start and other kernels. There are
# $4^7 = 16{,}384$ paths, so every expectation below is a finite sum.

# %%
world = small_chain(tau=0.5)
reference, reward, tau = world.reference, world.reward, world.tau
paths = reference.paths()
log_ref = reference.log_prob(paths)
of_path = reward[paths[:, 0]]  # the reward of each path: that of its end
print(f"{len(paths):,} paths, probabilities add up to {float(log_ref.exp().sum()):.12f}")
print("reward of the four states:", reward.tolist())
print("p_ref(s_0):", [round(p, 3) for p in reference.marginals()[0].tolist()])

# %% [markdown]
# The goal of maximum-entropy reinforcement learning, with a reference: reward, minus a price of $\tau$ for each
# nat by which the law of *paths* moves away.
#
# <!-- definition -->
# $$
# J(\theta) = \mathbb E_{p_\theta}[r(s_0)] - \tau\, KL(p_\theta \,\|\, p_{ref}) .
# $$
#
# (For a law of $s_0$ alone and a flat reference, the KL is minus the entropy up to a constant. That is the setting of
# the paper and of RAML, and where the name comes from.)
#
# Define the **payoff distribution** over paths, $p^* = p_{ref}\, e^{r(s_0)/\tau} / Z$, with
# $Z = \mathbb E_{p_{ref}}[e^{r/\tau}]$. Write $r = \tau \log (p^* Z / p_{ref})$ into $J$; the reference cancels:
#
# <!-- eq: maxent-over-paths | derived here -->
# $$
# J(\theta) = \mathbb E_{p_\theta}\Big[\tau \log \frac{p^* Z}{p_{ref}} - \tau \log \frac{p_\theta}{p_{ref}}\Big]
# = \tau \log Z - \tau\, KL(p_\theta \,\|\, p^*) .
# $$
#
# A KL is never negative and 0 only for equal laws. So among all laws of paths $J$ has one optimum, $p_\theta = p^*$, of
# height $\tau \log Z$. No algorithm was needed to find it. (A policy keeps the reference's start and comes only close: section 3.)
#
# **Predict.** A random policy, the reference itself, and a greedy one that always moves to the state of the highest
# value: which has the largest $J$?

# %%
log_payoff = log_ref + of_path / tau
log_Z = torch.logsumexp(log_payoff, 0)
log_payoff = log_payoff - log_Z


def objective(log_policy):
    """J by its definition, as a sum over all paths."""
    p = log_policy.exp()
    return float((p * of_path).sum() - tau * (p * (log_policy - log_ref)).sum())


def by_kl(log_policy):
    """J by the identity."""
    p = log_policy.exp()
    return float(tau * log_Z - tau * (p * (log_policy - log_payoff)).sum())


logits = torch.randn(reference.T, 4, 4, dtype=F64)
greedy = reference.log_kernel + 8 * reward  # nearly all mass on the best state
policies = {
    "the reference": reference,
    "random": reference.with_kernel(logits),
    "greedy": reference.with_kernel(greedy),
    "the payoff": world.exact(),
}
rows, worst = [], 0.0
for name, policy in policies.items():
    log_p = policy.log_prob(paths)
    j, k = objective(log_p), by_kl(log_p)
    worst = max(worst, abs(j - k))
    mean = float((log_p.exp() * of_path).sum())
    rows.append([name, f"{mean:.4f}", f"{(mean - j) / tau:.4f}", f"{j:.6f}", f"{k:.6f}"])
table(["policy", "mean reward", "KL to the reference, nats", "J by definition", "J by the identity"], rows)
print(f"tau log Z = {float(tau * log_Z):.6f}; largest difference of the two columns {worst:.0e}")
assert worst < 1e-10

# %% [markdown]
# The greedy policy collects the most reward and pays too much for it. Nothing beats $\tau \log Z$.
#
# ### Exercise 05.1: the height of the optimum
# Write `best_objective(p_ref, reward, tau)`: `p_ref` (n,) are probabilities, `reward` (n,) the rewards of the n
# outcomes. Return the largest $J$ there is, a number.
#
# <details><summary>Hint</summary>
#
# $\tau \log Z$. For large rewards $e^{r/\tau}$ overflows; `torch.logsumexp` does not.
#
# </details>

# %% tags=["exercise"]
# Exercise 05.1
def best_objective(p_ref, reward, tau):
    """Return the maximum of E[r] - tau KL(p || p_ref) over all p."""
    # STUB: return None
    ### BEGIN SOLUTION
    return tau * torch.logsumexp(p_ref.log() + reward / tau, 0)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("05.1", best_objective)

# %% [markdown]
# ## 2. Soft values: the best policy, one step at a time
#
# **Question.** The optimum is a law of whole paths. A policy acts step by step. What should it do in a given
# state?
#
# Give every state at every time a **soft value**: what $e^{r/\tau}$ is worth on average from here, in units of
# reward.
#
# <!-- definition -->
# $$
# V_t(s) = \tau \log \mathbb E_{p_{ref}}\big[e^{r(s_0)/\tau} \mid s_t = s\big] , \qquad V_0 = r .
# $$
#
# Condition on the next state, and it becomes a recursion, backwards from the end:
#
# <!-- eq: soft-value-recursion | Levine 2018, sec. 2; Uehara et al. 2024 -->
# $$
# e^{V_t(s)/\tau} = \sum_z p_{ref}(z \mid s)\; e^{V_{t-1}(z)/\tau} .
# $$
#
# Now condition $p^*$ itself. The path's past cancels, its future sums to $e^{V/\tau}$, and the kernel of the
# payoff distribution is left:
#
# <!-- eq: soft-optimal-kernel | Uehara et al. 2024; derived here -->
# $$
# p^*(s_{t-1} \mid s_t) = p_{ref}(s_{t-1} \mid s_t)\;
# \exp\!\Big(\frac{V_{t-1}(s_{t-1}) - V_t(s_t)}{\tau}\Big) .
# $$
#
# Each step of the reference is tilted by the value it gains. For $\tau \to 0$ the soft value is the best
# reward that can still be reached; for $\tau \to \infty$ it is the mean reward.
#
# **Predict.** State 3 has reward 1, the others less. At $t = 6$, after six steps of noise, how much does the value
# still depend on the state?

# %%
value = [reward]
for log_kernel in reference.log_kernel:
    value.append(tau * torch.logsumexp(log_kernel + value[-1] / tau, 1))
value = torch.stack(value)

# the same by listing paths: sum p_ref exp(r / tau) over the paths through s, over the mass through s
listed = torch.stack(
    [
        torch.stack([
            tau * (torch.logsumexp((log_ref + of_path / tau)[paths[:, t] == s], 0)
                   - torch.logsumexp(log_ref[paths[:, t] == s], 0))
            for s in range(4)
        ])
        for t in range(reference.T + 1)
    ]
)  # fmt: skip
print(f"recursion against the list of all paths: {float((value - listed).abs().max()):.0e}")
assert (value - listed).abs().max() < 1e-10

fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4))
for s in range(4):
    left.plot(range(reference.T + 1), value[:, s], "o-", label=f"state {s}")
left.axhline(float(tau * log_Z), color="0.6", ls=":", label="$\\tau \\log Z$")
left.set(xlabel="t (noise grows to the right)", ylabel="soft value $V_t$ (in reward)")
left.legend(fontsize=8)
width = 0.27
laws = {"reference": reference, "payoff": world.exact(), "payoff's kernels, start kept": world.kept_start()}
for k, (name, law) in enumerate(laws.items()):
    right.bar(torch.arange(4) + (k - 1) * width, law.marginals()[0], width, label=name)
right.set(xlabel="state $s_0$", ylabel="probability", xticks=range(4), ylim=(0, 0.55))
right.legend(fontsize=8)
run.figure(
    fig,
    "soft_values",
    alt="Left: soft values of four states against time; far apart at t = 0, close together at t = 6, near tau log "
    "Z. Right: probabilities of the four states under the reference, the payoff, and the payoff's kernels from "
    "the reference's start; state 3 gains.",
    see="noise hides what will be rewarded, so the values run together.",
)
apart = (world.exact().marginals()[0] - world.kept_start().marginals()[0]).abs().max()
print(f"orange and green bars differ by up to {float(apart):.4f}")

# %% [markdown]
# ### Exercise 05.2: one backup
# Write `backup(log_kernel, value, tau)`: `log_kernel` (S, S) has $\log p_{ref}(z \mid s)$ in row s, column z;
# `value` (S,) is $V_{t-1}$. Return $V_t$, (S,).
#
# <details><summary>Hint</summary>
#
# The sum runs over $z$, the columns. A log of a sum of exponentials: `torch.logsumexp`.
#
# </details>

# %% tags=["exercise"]
# Exercise 05.2
def backup(log_kernel, value, tau):
    """One step of the soft value recursion."""
    # STUB: return None
    ### BEGIN SOLUTION
    return tau * torch.logsumexp(log_kernel + value / tau, 1)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("05.2", backup)

# %% [markdown]
# > **Bug museum: the mean reward for the soft value.** A common shortcut takes $\mathbb E[r \mid s_t]$, or the
# > reward of the denoised guess, $r(\hat x_0)$, for $V_t$. The plot looks alike: curves that run together with
# > noise. But $e^{V_t/\tau}$ must be a *martingale*: its mean over the next step is its value now. Three lines:

# %%
mean_reward = [reward]
for log_kernel in reference.log_kernel:
    mean_reward.append(log_kernel.exp() @ mean_reward[-1])
for name, v in (("mean reward", torch.stack(mean_reward)), ("soft value", value)):
    next_step = torch.einsum("tsz,tz->ts", reference.log_kernel.exp(), (v[:-1] / tau).exp())
    off = float((next_step / (v[1:] / tau).exp() - 1).abs().max())
    print(f"{name}: mean of exp(V / tau) after a step is off by {off:.1%}: {'ok' if off < 1e-9 else 'WRONG'}")

# %% [markdown]
# The soft value is above the mean reward (Jensen), most where the future is most uncertain. The error does not
# shrink with smaller steps. What it does to samples is measured in notebook 06.
#
# ### In continuous space
#
# Nothing changes but the sums. On noised points, $p^*_t = p_t\, e^{V_t/\tau} / Z$, so scores add:
#
# <!-- eq: tilted-score | derived here -->
# $$
# \nabla \log p^*_t(x_t) = \nabla \log p_t(x_t) + \tfrac1\tau \nabla V_t(x_t) .
# $$
#
# $V_t$ is smooth for $t > 0$ even where $r$ jumps: it is an average over what $x_0$ may still become. This is the
# potential of notebook 03, and now we know that nothing else would do. A check on the ring, with a quadratic reward:
# its payoff distribution is a mixture again, with an exact denoiser of its own. The reference's denoiser, corrected
# by the gradient of the soft value, must be the same.

# %%
ring = mixtures.ring(std=0.3)
bowl = Quadratic([1.0, 0.4], 1.5)
diffusion = Diffusion(schedules.cosine(100))
t = torch.randint(1, 101, (500,))
x_t = diffusion.q_sample(ring.sample(500).double(), t, torch.randn(500, 2, dtype=F64))
below = ring.denoiser(diffusion.schedule)(x_t, t)
x = x_t.clone().requires_grad_()
(gradient,) = torch.autograd.grad(ring.soft_value(x, t, diffusion.schedule, bowl, 0.4).sum(), x)
noise = (1 - diffusion.schedule.alpha_bar[t]).sqrt()[:, None]
exact = ring.tilt(bowl, 0.4).denoiser(diffusion.schedule)(x_t, t)
print(f"largest difference: {float((below - noise * gradient / 0.4 - exact).abs().max()):.0e}")
assert torch.allclose(below - noise * gradient / 0.4, exact, atol=1e-10)

# %% [markdown]
# ## 3. A start that cannot be tilted
#
# **Question.** The orange and the green bars above look alike, and are not the same. Why?
#
# $p^*$ tilts the whole path, its start too: $p^*(s_T) = p_{ref}(s_T)\, e^{V_T(s_T)/\tau} / Z$. A sampler draws its
# start from pure noise and cannot do that. The best policy then has the right kernels and the wrong start.
# What is lost is the KL of the starts:
#
# <!-- eq: start-kept | derived here -->
# $$
# \max_\theta J = \mathbb E_{p_{ref}(s_T)}[V_T(s_T)] = \tau \log Z - \tau\, KL\big(p_{ref}(s_T) \,\|\, p^*(s_T)\big) .
# $$

# %%
start, tilted = reference.log_start, world.exact().log_start
kl_of_starts = float((start.exp() * (start - tilted)).sum())
best = float(start.exp() @ value[-1])
print(f"E[V_T] = {best:.8f}")
print(f"tau log Z - tau KL of the starts = {float(tau * log_Z) - tau * kl_of_starts:.8f}")
print(f"J of the payoff's kernels from the reference's start = {objective(world.kept_start().log_prob(paths)):.8f}")
loss_in_mean = float(world.exact().marginals()[0] @ reward - world.kept_start().marginals()[0] @ reward)
print(f"mean reward lost by keeping the start: {loss_in_mean:.4f}")

# %% [markdown]
# Here 4.7 % of the data is left in $s_6$, on purpose. In a real diffusion $\bar\alpha_T$ is below 0.001, and with
# DDPM's noise the loss is negligible. **With less noise in the sampler it is not.** Take data $N(m, \varsigma^2)$ on the
# line, a linear reward $r(x_0) = b\,x_0$ (so that the payoff is $N(m^*, \varsigma^2)$ with $m^* = m + \varsigma^2 b/\tau$), and
# a reference chain that is linear and Gaussian, with any amount of noise. Let $\rho$ be the correlation of $x_0$ and
# $x_T$ under it. Then the best policy from the kept start moves the mean by
#
# <!-- eq: kept-start-mean-shift | derived here -->
# $$
# m_{kept} - m = (1 - \rho^2)\, (m^* - m) .
# $$
#
# (Each step adds variance $\sigma_t^2$ to $x_0$, scaled by the slopes after it, and moves its mean by that
# variance times $b/\tau$. The variances add up to all of $\varsigma^2$ but for what comes from the start,
# $\rho^2 \varsigma^2$.) With DDPM's noise $\rho^2$ is about $\bar\alpha_T\, \varsigma^2$. DDIM without noise maps $x_T$ to $x_0$:
# $\rho = 1$, and **the mean does not move at all**, however good the policy.
#
# **Predict.** A sampler with a tenth of DDPM's noise ($\eta = 0.1$): what share of the way will the mean go?

# %%
def share_of_the_way(eta, steps=100, spread=0.5):
    """1 - rho^2 of the sampler's chain for N(0, spread^2) and its exact denoiser."""
    alpha_bar, slope, variance = diffusion.schedule.alpha_bar, 1.0, 1.0
    times = diffusion.timesteps(steps)
    for t, s in zip(times[:-1], times[1:], strict=True):
        a = float(alpha_bar[t])
        eps = torch.tensor([[(1 - a) ** 0.5 / (a * spread**2 + 1 - a)]], dtype=F64)  # of x_t = 1
        factor = diffusion.step(torch.ones(1, 1, dtype=F64), t, s, eps, eta)[0].item()
        slope, variance = factor * slope, factor**2 * variance + diffusion.step_std(t, s, eta) ** 2
    return 1 - slope**2 / variance


etas = torch.linspace(0, 1, 21)
way = [share_of_the_way(float(eta)) for eta in etas]
fig, ax = plt.subplots(figsize=(5.6, 3.3))
ax.plot(etas, way, "o-")
ax.set(xlabel="noise of the sampler $\\eta$ (1: DDPM, 0: DDIM)", ylabel="share of the way to $m^*$")
run.figure(
    fig,
    "initial_value_bias",
    alt="The share of the way to the payoff's mean that the best policy can go, against the sampler's noise eta: 0 "
    "without noise, rising steeply, near 1 at eta = 1.",
    see="with little noise even the best policy cannot reach the payoff: the start decides.",
)
print(f"eta = 1: {way[-1]:.4f}, eta = 0.1: {share_of_the_way(0.1):.4f}, eta = 0: {way[0]:.0e}")
assert way[-1] > 0.99 and abs(way[0]) < 1e-9

# %% [markdown]
# Whoever optimises $J$ *through* a sampler of little noise is biased, even with $\bar\alpha_T$ near 0. (Domingo-Enrich
# et al. 2024, arXiv 2409.08861, call it the initial value function bias.) Weighted imitation (next section) of *that
# sampler's own* paths has the same bias, for its best kernels are the same. It goes away when the path to each payoff sample
# $x_0$ is drawn afresh by the forward process, as in notebook 07: then $x_T$ has forgotten $x_0$, and the sampler's
# noise plays no part in training.
#
# ## 4. Two KLs, two ways to learn
#
# **Question.** $p^*$ is known up to $Z$. How does a policy get there?
#
# **Way one: play.** Maximise $J$, that is, minimise $KL(p_\theta \| p^*)$. Its gradient is an expectation under the
# policy itself (notebook 04's policy gradient, with the price of moving in the reward):
#
# <!-- eq: reverse-kl-gradient | derived here -->
# $$
# \nabla_\theta J = \mathbb E_{p_\theta}\Big[\Big(r(s_0) - \tau \log \frac{p_\theta}{p_{ref}}\Big)\,
# \nabla_\theta \log p_\theta \Big] .
# $$
#
# The samples come from a law that moves. Every step needs new ones, with new rewards.
#
# **Way two: reweigh and imitate.** Swap the arguments: minimise $KL(p^* \| p_\theta)$. The policy now stands inside a
# logarithm only, under a law that is fixed, and $p^*$ is reached from $p_{ref}$ by weights:
#
# <!-- eq: weighted-log-likelihood | derived here; RAML, Norouzi et al. 2016, eq. 5 -->
# $$
# KL(p^* \,\|\, p_\theta) = - \mathbb E_{p_{ref}}\Big[\frac{e^{r/\tau}}{Z} \sum_{t} \log p_\theta(s_{t-1} \mid s_t)\Big]
# + \text{const} .
# $$
#
# It is a **weighted log-likelihood**: draw from the reference, weigh by the payoff, imitate. Its gradient:
#
# <!-- eq: forward-kl-gradient | derived here -->
# $$
# \nabla_\theta\, KL(p^* \,\|\, p_\theta) = - \mathbb E_{p_{ref}}\Big[\frac{e^{r/\tau}}{Z}\,
# \nabla_\theta \log p_\theta \Big] .
# $$
#
# Nothing is differentiated through sampling, nor through the reward. One batch of rewards serves any number of
# steps. For a diffusion the log-likelihood of a step is, up to constants, the denoising loss: this is RGDM, and the
# subject of notebook 07.
#
# **Predict.** Compute both gradients for a random policy: as expectations over all paths, and by automatic
# differentiation of the two KLs. How many digits agree?

# %%
weights = torch.randn(reference.T, 4, 4, dtype=F64, requires_grad=True)
policy = reference.with_kernel(weights)
log_p = policy.log_prob(paths)
exact_path = log_payoff.exp()

(reverse,) = torch.autograd.grad((log_p.exp() * (of_path - tau * (log_p - log_ref))).sum(), weights, retain_graph=True)
(forward,) = torch.autograd.grad((exact_path * (log_payoff - log_p)).sum(), weights)

with torch.no_grad():
    score = policy.score(paths).flatten(1)  # gradient of log p_theta of each path
    p = log_p.exp()
    played = (p * (of_path - tau * (log_p - log_ref))) @ score
    imitated = -(log_ref.exp() * (of_path / tau).exp() / log_Z.exp()) @ score
for name, a, b in (("reverse", played, reverse), ("forward", imitated, forward)):
    error = float((a.reshape_as(b) - b).abs().max())
    print(f"{name} KL: expectation against automatic differentiation {error:.0e}, largest entry {float(b.abs().max()):.3f}")
    assert error < 1e-10

# %% [markdown]
# ### Exercise 05.3: the gradient of imitation
# One step, four outcomes. The policy is $p = \mathrm{softmax}(\text{logits})$. Write
# `imitation_gradient(logits, p_ref, reward, tau)`: the gradient of $KL(p^* \| p)$ in the logits, (n,), by formula.
#
# <details><summary>Hint 1</summary>
#
# $\partial \log p_i / \partial\, \text{logit}_j = [i = j] - p_j$. Take the mean over $p^*$.
#
# <details><summary>Hint 2</summary>
#
# $p - p^*$.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 05.3
def imitation_gradient(logits, p_ref, reward, tau):
    """Gradient of KL(p* || softmax(logits)) in the logits."""
    # STUB: return None
    ### BEGIN SOLUTION
    payoff = torch.softmax(p_ref.log() + reward / tau, 0)
    return torch.softmax(logits, 0) - payoff
    ### END SOLUTION

# %% tags=["check"]
exercises.check("05.3", imitation_gradient)

# %% [markdown]
# ## 5. Where the two part
#
# **Question.** If the policy can be $p^*$, the two KLs have the same minimum, 0, at the same place. Do they always lead there?
#
# Only if the policy *can* be $p^*$. On the chain it can, but for the start (section 3), which adds to both KLs a constant that
# no kernel changes. A network is a smaller family. Take the smallest interesting one: a single Gaussian for a payoff with two modes.
#
# - Imitation must put mass wherever $p^*$ has some: $\log p_\theta$ may not become $-\infty$ there. It **covers**.
#   Its optimum has the mean and the variance of $p^*$.
# - Playing pays for mass where $p^*$ has none, and nothing for what is missed. It **seeks a mode**, and has another
#   local optimum at the other mode.
#
# **Predict.** The reward prefers the right mode a little. Where will the two Gaussians sit, and which is wider?

# %%
law, slope = two_modes()
TAU = 1.0
target = law.tilt(slope, TAU)
judge = OneGaussian(target)

# way two, with weights on samples of the reference: nothing but moments
x = law.sample(settings.samples).double()[:, 0]
w = torch.softmax(slope(x[:, None]) / TAU, 0)
mean = float(w @ x)
imitated = (mean, float(w @ (x - mean).square()) ** 0.5)

# way one: gradient steps on sampled J, from the better mode, through the sample: this reward has a gradient
z = torch.randn(min(settings.samples, 50_000), dtype=F64)
z = torch.cat([z, -z])  # pairs of opposite noise
z = z / z.std(correction=0)
where = torch.tensor([2.0, math.log(0.6)], dtype=F64, requires_grad=True)
optimizer = torch.optim.Adam([where], lr=0.02)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, settings.steps)
for _ in range(settings.steps):
    sample = where[0] + where[1].exp() * z
    kl = -where[1] - target.log_prob(sample[:, None]).mean()  # up to a constant
    optimizer.zero_grad()
    kl.backward()
    optimizer.step()
    schedule.step()
played = (float(where[0].detach()), float(where[1].exp().detach()))

fits = {"imitate": (imitated, judge.forward_fit()), "play": (played, judge.reverse_fits()[0])}
rows, errors = [], {}
for name, (mine, exact_fit) in fits.items():
    errors[name] = max(abs(mine[0] / exact_fit.mean - 1), abs(mine[1] / exact_fit.std - 1))
    rows.append([name, f"{mine[0]:.4f}", f"{mine[1]:.4f}", f"{exact_fit.mean:.4f}", f"{exact_fit.std:.4f}"])
table(["", "mean, from samples", "width", "mean, by quadrature", "width"], rows)

# %%
for name, label in (("imitate", "forward"), ("play", "reverse")):
    run.metric(f"{label}_kl_fit_relative_error", errors[name], "1", settings.samples,
               f"largest relative error of mean and width of the Gaussian that minimises the {label} KL to a "
               "two-mode payoff, from samples, against closed form and quadrature")  # fmt: skip

grid = torch.linspace(-6, 6, 600, dtype=F64)
fig, ax = plt.subplots(figsize=(7, 3.3))
ax.fill_between(grid, target.log_prob(grid[:, None]).exp(), color="0.85", label="payoff $p^*$")
for name, (m, s) in (("imitate: $KL(p^* \\|\\, p)$", imitated), ("play: $KL(p \\,\\|\\, p^*)$", played)):
    density = torch.exp(-((grid - m) ** 2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi))
    ax.plot(grid, density, label=name)
ax.set(xlabel="x", ylabel="density")
ax.legend(fontsize=8)
run.figure(
    fig,
    "two_optima",
    alt="A density with two modes, the right one higher. A wide Gaussian covers both; a narrow one sits on the right "
    "mode.",
    see="one covers, one chooses. Neither is p*: the family is too small.",
)

# %% [markdown]
# So swapping the KL changes the optimum, unless the payoff can be realised. A
# diffusion network is a rich family, and imitation's error is then small. But it is the reason why this course always
# asks how close the *law* came, and not only the mean reward.
#
# ### Break it: weights where the reference has no samples
#
# **Predict.** Way two reweighs. Let the reward prefer a place that 1,000 samples of the reference never reach: how
# far off is the mean?

# %%
far = mixtures.GaussianMixture([[0.0]], 1.0)
points = far.sample(1000).double()[:, 0]
rows = []
for strength in (0.5, 1.0, 2.0, 4.0, 8.0):  # N(0, 1) tilted by exp(strength x) has mean = strength
    w = torch.softmax(strength * points, 0)
    rows.append([strength, f"{float(w @ points):.2f}", f"{1 / float(w.square().sum()):.1f}"])
table(["exact mean", "mean by weights", "effective samples of 1,000"], rows)
assert float(w @ points) < 5

# %% [markdown]
# Reweighing cannot invent. Beyond three standard deviations there is nothing to weigh, and only the effective sample
# size says so. Notebook 06 makes a subject of it.
#
# ## 6. The temperature
#
# **Predict.** Turn $\tau$ up and down. What are the limits of the payoff's law on the chain?

# %%
def show_temperature(log10_tau):
    chain = small_chain(10**log10_tau)
    fig, ax = plt.subplots(figsize=(5, 3))
    ax.bar(torch.arange(4) - 0.2, reference.marginals()[0], 0.4, label="reference")
    ax.bar(torch.arange(4) + 0.2, chain.exact().marginals()[0], 0.4, label="payoff")
    ax.set(title=f"tau = {10**log10_tau:.3g}", xlabel="state $s_0$", ylabel="probability", xticks=range(4), ylim=(0, 1))
    ax.legend(fontsize=8)
    return fig


fig, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True)
for ax, temperature in zip(axes, (0.1, 0.5, 5.0), strict=True):
    ax.bar(torch.arange(4) - 0.2, reference.marginals()[0], 0.4, label="reference")
    ax.bar(torch.arange(4) + 0.2, small_chain(temperature).exact().marginals()[0], 0.4, label="payoff")
    ax.set(title=f"$\\tau$ = {temperature:g}", xlabel="state $s_0$", xticks=range(4))
axes[0].set_ylabel("probability")
axes[0].legend(fontsize=8)
run.figure(
    fig,
    "temperatures",
    alt="Bars of four states under reference and payoff at three temperatures: at 0.1 state 3 has nearly all, at 5 "
    "both are almost equal.",
    see="cold: the best state; hot: the reference.",
)
slider = ipywidgets.FloatSlider(value=-0.3, min=-1.5, max=1.0, step=0.1, continuous_update=False)
widgets.explore(show_temperature, log10_tau=slider)

# %% [markdown]
# ## 7. What the paper does at each step
#
# RGDM's paper (Zhang & Xu 2023) does not reweigh finished samples. At every step it looks for better states in a small
# ball around the reverse sample and imitates those, $q \propto e^{reward/\tau}$ on the ball. Beside section 2's kernel,
# $p_{ref}\, e^{(V_{t-1} - V_t)/\tau}$, four differences stand out:
#
# 1. **$p_{ref}$ is dropped** inside the ball: all its points count alike.
# 2. **The noise counts twice**: the ball is centred on the sample, which has the step's noise already.
# 3. **$r(\hat x_0)$ for $V$**: the bug museum above.
# 4. **A local normaliser**: each ball is normalised by itself, where the kernel has $e^{-V_t/\tau}$.
#
# Notebook 06 measures each of them, and gives the radius with which the local form becomes right to first order.

# %% [markdown]
# ## Recap
#
# - Reward minus $\tau$ KL has one optimum, $p^* \propto p_{ref}\, e^{r/\tau}$, of height $\tau \log Z$.
# - The soft value turns it into steps: each kernel is tilted by the value it gains; scores gain $\nabla V_t / \tau$.
# - The start cannot be tilted. With DDPM's noise that costs nothing; with little noise, everything.
# - $KL(p_\theta \| p^*)$: play, with samples of a moving law. $KL(p^* \| p_\theta)$: reweigh and imitate, a fixed law.
# - The optima are the same if the policy can be $p^*$. Else one covers and one seeks a mode.

# %% [markdown]
# ## Results

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - **$e^{r\tau}$ for $e^{r/\tau}$**: check that $\tau \to \infty$ gives the reference back.
# - **The mean for the soft value**: check the martingale.
# - **The weights not normalised**: for a reward shifted by a constant, nothing may change.
# - **Steering a sampler without noise**: the start decides.
# - **A higher reward taken for a better policy**: the greedy row of the first table.
#
# ## Further reading
#
# - Levine 2018, *Reinforcement learning and control as probabilistic inference*, arXiv 1805.00909: soft values
# - Norouzi et al. 2016, *Reward augmented maximum likelihood*, arXiv 1609.00150: the swapped KL
# - Uehara et al. 2024, *Understanding reinforcement learning-based fine-tuning of diffusion models*, arXiv 2407.13734
# - Domingo-Enrich et al. 2024, *Adjoint matching*, arXiv 2409.08861: the initial value function bias
# - Zhang & Xu 2023, *Towards controllable diffusion models via reward-guided exploration*, arXiv 2304.07132
#
# ## Next
#
# [06 · Sampling the payoff distribution](06_payoff_sampling.ipynb): where samples of $p^*$ come from, and what they are worth.

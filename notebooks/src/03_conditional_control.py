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
# # 03 · Conditional control
#
# How people steer diffusion models today: tell the network what you want, or push its samples along a
# gradient. You build both, check them against conditional laws that are known exactly, and find what each
# of them needs. Then a wish comes along that offers neither. At the end stands the question that the rest
# of the course answers.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 35 | 35 | 35 |
# | minutes to run (2 CPU cores) | 1 | 8 | 8 |
# | memory | 1 GB | 1 GB | 1 GB |
# | GPU | not needed | not needed | not needed |
#
# Prerequisites: 02 (denoiser, score, sampling). From probability: Bayes' rule.

# %% [markdown]
# ## Goals
#
# - **condition** a denoiser on a class, and **derive** guidance by a classifier from Bayes' rule
# - **say** what classifier-free guidance samples at scale 1, and what it does not sample above 1
# - **name** what each method needs: something to encode, something to differentiate
# - **try** all of them on a reward that offers neither, and **measure** what they reach and what it costs

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
from rgdm_lib.baselines import classifier_guidance, conditional, value_guidance
from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.training import Trainer
from rgdm_lib.worlds import metrics, mixtures
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.nets import MLPDenoiser, TimeMLP
from rgdm_lib.worlds.rewards import Ball, Indicator

run = notebook.start("03_conditional_control", PRESET, SEED, OUT_DIR)
torch.set_num_threads(1)  # the networks are small: a second thread costs more than it brings
settings = run.settings(
    quick={"T": 60, "steps": 1000, "batch": 512, "n": 2000, "draws": 2, "pool": 20_000},
    laptop={"T": 200, "steps": 5000, "batch": 1024, "n": 10_000, "draws": 10, "pool": 20_000},
    full={"T": 200, "steps": 5000, "batch": 1024, "n": 10_000, "draws": 10, "pool": 20_000},
)


def table(header, rows):
    """Show rows of text as a table."""
    lines = [header, ["---"] * len(header), *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


# %% [markdown]
# ## 1. What is control?
#
# **Question.** "Make me a chair." "Make me a molecule that dissolves." What is a model supposed to do with
# such a wish $y$?
#
# The usual answer is a *conditional law*: the data among which the wish is true, $p(x_0 \mid y)$, in the
# shares they have in the data. Our world has four classes. It is a ring of eight Gaussians whose
# neighbours overlap, and each class owns two neighbours. All its laws are known exactly: the whole
# ring, each class, and both of them under any amount of noise.

# %%
world = mixtures.ring(modes=8, radius=1.5, std=0.4)
label_of_mode = torch.arange(8) // 2
classes = [GaussianMixture(world.means[label_of_mode == y], 0.4) for y in range(4)]
WANTED = 1  # the class that we will ask for
exact = classes[WANTED]
diffusion = Diffusion(schedules.cosine(settings.T))


def draw_labelled(n):
    """n points (n, 2) of the world and their classes (n,)."""
    mode = torch.randint(8, (n,))
    return world.means[mode].float() + 0.4 * torch.randn(n, 2), label_of_mode[mode]


x0, label = draw_labelled(4000)
fig, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4), sharex=True, sharey=True)
for y in range(4):
    left.scatter(*x0[label == y].T, s=2, rasterized=True, label=f"class {y}")
right.scatter(*exact.sample(1000).T, s=2, color="C1", rasterized=True)
left.legend(markerscale=4, fontsize=8)
for ax, title in ((left, "the data, by class"), (right, f"what 'class {WANTED}' asks for")):
    ax.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
run.figure(
    fig,
    "classes",
    alt="Left: a ring of points in four colours, neighbouring colours overlapping. Right: the points of one "
    "class, two overlapping blobs at the top left of the ring.",
    see="near the borders the class of a point is uncertain. This will matter.",
)

# %% [markdown]
# A sample is judged by its **distance over the floor**: the sliced Wasserstein distance to exact samples
# (the mean distance of the sorted projections, over many directions), divided by that between two exact
# samples of the same size. The quotient is the *floor unit*: 1 means "as good as exact". One draw is a
# noisy judge, so we average several.
#
# ## 2. The condition as an input
#
# **Question.** A denoiser gets $(x_t, t)$. What changes if it also gets $y$?
#
# Nothing but the mean that it regresses on. The loss is the one of notebook 02; its minimiser is now
#
# <!-- eq: conditional-denoiser | Ho & Salimans 2022, sec. 3.1 -->
# $$
# \varepsilon^*(x_t, t, y) = \mathbb E[\varepsilon \mid x_t, y]
# = -\sqrt{1 - \bar\alpha_t}\; \nabla_{x_t} \log q_t(x_t \mid y) ,
# $$
#
# the score of the *noised class*. So the sampler of notebook 02, unchanged, walks to $p(x_0 \mid y)$.
#
# One trick makes a single network serve both laws. In a quarter of the training samples the condition is
# **dropped**: the network sees zeros and a flag that says "no condition". It then learns
# $\varepsilon^*(x_t, t)$ as well.

# %%
def one_hot(label):
    return torch.nn.functional.one_hot(label, 4).float()


network = MLPDenoiser(2, diffusion.schedule.alpha_bar, cond_dim=5)  # four classes and the flag


def conditional_loss(net):
    x0, label = draw_labelled(settings.batch)
    return conditional.loss(diffusion, net, x0, one_hot(label), drop=0.25)


trainer = Trainer(network, conditional_loss, settings.steps, lr=2e-3)
network = trainer.run(progress=False)
for step, value in trainer.history[:: max(1, len(trainer.history) // 5)]:
    print(f"step {step:5d}: loss {value:.3f}")

# %% [markdown]
# **Predict.** We ask for class 1. How far from exact, in floor units, will 2,000 to 10,000 points be?

# %%
@torch.no_grad()
def sample(denoiser, n, cond=None):
    """n points from the denoiser, by all steps of DDPM."""
    *_, last = diffusion.sample(denoiser, torch.randn(n, 2), cond=cond)
    return last.x


def asked(n, y=WANTED):
    return one_hot(torch.full((n,), y))


def sample_conditional(n, scale=1.0):
    return sample(conditional.classifier_free(network, scale), n, asked(n))


def over_floor(model):
    return metrics.over_floor(model, exact.sample, settings.n, settings.draws)


plain = conditional.classifier_free(network, 1.0)
of_exact = over_floor(lambda n: sample(exact.denoiser(diffusion.schedule), n))
how = (
    f"sliced Wasserstein-1 (256 directions) to fresh samples of class {WANTED} of the ring, mean of "
    f"{settings.draws} draws, over that of two exact samples; all T = {settings.T} steps"
)
run.metric("conditional_over_floor", over_floor(sample_conditional), "1", settings.n,
           f"{how}; a network conditioned on the class, scale 1; the floor is the exact denoiser's value "
           "in the same sampler", floor=of_exact)  # fmt: skip

# %% [markdown]
# The number beside it is what the *exact* denoiser reaches with these steps: the sampler's own error. The difference is the
# network's, but both numbers vary by about 0.2 from seed to seed, so it may even be negative.
#
# What it took: every training point needed its label, and the label had to be *encoded* in numbers that the
# network reads. A class is easy, a text is harder. And the wish had to be known **before training**.
#
# ## 3. Guidance by a classifier
#
# **Question.** A finished unconditional model is at hand. Can it be steered without training it again?
#
# Write Bayes' rule for the noised state, take logarithms, take the gradient. The term $\log p(y)$ does not
# depend on $x_t$ and falls out:
#
# <!-- eq: bayes-score | Song et al. 2021 (score SDE), eq. 14; Dhariwal & Nichol 2021, sec. 4 -->
# $$
# \nabla \log q_t(x_t \mid y) = \nabla \log q_t(x_t) + \nabla \log p(y \mid x_t) .
# $$
#
# The first term is the model. The second is the gradient of a **classifier of noisy states**: how likely is
# the class, given what can still be seen at this noise level? In terms of the noise that a denoiser
# predicts, with a scale $w$ that is 1 for Bayes:
#
# <!-- eq: classifier-guidance | Dhariwal & Nichol 2021, eq. 14 -->
# $$
# \hat\varepsilon(x_t, t) = \varepsilon_\theta(x_t, t)
# - w \sqrt{1 - \bar\alpha_t}\; \nabla_{x_t} \log p_\phi(y \mid x_t) .
# $$
#
# ### Exercise 03.1: push along a gradient
# Write `guide(eps, gradient, alpha_bar, scale)`: `eps` and `gradient` are (B, d), `alpha_bar` is (B,) with
# the value of each row's own time, `scale` a number. Return the guided noise (B, d).
#
# <details><summary>Hint 1</summary>
#
# Which factor turns a score into a predicted noise? (Notebook 02: $\varepsilon = -\sqrt{1 - \bar\alpha_t}\,
# \nabla \log q_t$.)
#
# <details><summary>Hint 2</summary>
#
# `alpha_bar[:, None]` multiplies row by row.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 03.1
def guide(eps, gradient, alpha_bar, scale):
    """Add scale times the gradient of log p(y | x_t) to the score behind eps."""
    # STUB: return None
    ### BEGIN SOLUTION
    return eps - scale * (1 - alpha_bar[:, None]).sqrt() * gradient
    ### END SOLUTION

# %% tags=["check"]
exercises.check("03.1", guide)

# %% [markdown]
# The classifier is trained on noised points, at every noise level, by plain cross-entropy.

# %%
classifier = TimeMLP(2, diffusion.T, out=4)


def classifier_loss(net):
    return classifier_guidance.loss(diffusion, net, *draw_labelled(settings.batch))


classifier = Trainer(classifier, classifier_loss, settings.steps, lr=2e-3).run(progress=False)


def unconditional(x_t, t, cond=None):
    return network(x_t, t, torch.zeros(len(x_t), 5))


def exact_log_posterior(x_t, t):
    """log p(class | x_t), exact, (n, 4)."""
    log_share = world._posterior(x_t, diffusion.schedule.alpha_bar[t])[0]
    return torch.stack([log_share[:, label_of_mode == y].logsumexp(1) for y in range(4)], 1)


x0, label = draw_labelled(4000)
rows = []
for t in (1, diffusion.T // 4, diffusion.T // 2, 3 * diffusion.T // 4, diffusion.T):
    time = torch.full((len(x0),), t)
    x_t = diffusion.q_sample(x0, time, torch.randn_like(x0))
    with torch.no_grad():
        mine = classifier(x_t, time).log_softmax(1)[torch.arange(len(x0)), label]
    best = exact_log_posterior(x_t, time)[torch.arange(len(x0)), label]
    rows.append([t, f"{-mine.mean():.3f}", f"{-best.mean():.3f}"])
table(["t", "cross-entropy of the classifier, nats", "least possible"], rows)
print(f"knowing nothing: log 4 = {math.log(4):.3f} nats")

# %% [markdown]
# At late times nobody can tell the class any more, and the gradient fades. That is right: nothing is
# decided there yet.
#
# **Predict.** At scale 1, will the guided unconditional model match the conditional one?

# %%
potential = classifier_guidance.log_probability(classifier, WANTED)
guided = classifier_guidance.guided(unconditional, potential, diffusion)
run.metric("classifier_over_floor", over_floor(lambda n: sample(guided, n)), "1", settings.n,
           f"{how}; an unconditional network guided by a classifier of noisy states, scale 1; the floor is "
           "the exact denoiser's value in the same sampler", floor=of_exact)  # fmt: skip

# %%
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.7), sharex=True, sharey=True)
points = (exact.sample(1000), sample_conditional(1000), sample(guided, 1000))
titles = ("exact", "condition as input", "classifier guidance")
for ax, x, title in zip(axes, points, titles, strict=True):
    ax.scatter(*x.T, s=3, color="C1", rasterized=True)
    ax.set(title=title, xlabel="$x_1$", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
axes[0].set_ylabel("$x_2$")
run.figure(
    fig,
    "two_ways",
    alt="Three scatter plots of class 1: exact samples, samples of the conditional network, samples guided by "
    "a classifier. They look alike.",
    see="two roads to one law. Neither the picture nor the floor units above tell them apart: the units vary by about 0.2 from seed to seed.",
)

# %% [markdown]
# What it took: a classifier for every noise level, and its **gradient**. An unconditional model needs no label for its own
# training. (To save time we took section 2's network without its condition.)
#
# ### Break it: a classifier that has seen clean points only
#
# **Predict.** Take the *exact* classifier of clean points, $p(y \mid x_0)$, and use it on noisy states, as if
# they were clean. It knows the world perfectly. How bad can it be?

# %%
def clean_only(x_t, t):
    terms = torch.stack([c.log_prob(x_t) for c in classes], 1)  # equal classes: p(y) falls out
    return terms.log_softmax(1)[:, WANTED]


broken = classifier_guidance.guided(world.denoiser(diffusion.schedule), clean_only, diffusion)
bad = over_floor(lambda n: sample(broken, n))
print(f"exact clean classifier, exact denoiser: {bad:.1f} floors (the noise-aware one: {of_exact:.1f})")
assert bad > 3 * of_exact

# %% [markdown]
# It is certain where it must be in doubt. At high noise it pushes at full strength toward a class that is not
# decided yet, and the chain ends up where no data are. A wish about $x_0$ has to be *translated* to every
# noise level. Keep this in mind: notebook 05 calls the translation the soft value.
#
# ## 4. Guidance without a classifier, and what the scale means
#
# A network that knows both laws contains a classifier. Bayes' rule read backwards gives its gradient as the
# difference of two scores. Put that into the formula above:
#
# <!-- eq: classifier-free-guidance | Ho & Salimans 2022, eq. 6, with w = 1 + w there -->
# $$
# \hat\varepsilon = \varepsilon_\theta(x_t, t) + w\,\big(\varepsilon_\theta(x_t, t, y)
# - \varepsilon_\theta(x_t, t)\big) .
# $$
#
# $w = 0$ ignores the wish, $w = 1$ is the conditional model. Practice uses 3 to 10: pictures get crisper. What
# law do they come from?
#
# ### Exercise 03.2: one line of guidance
# Write `mix(without, with_it, scale)`: the two predictions (B, d) and the scale $w$ of this page, where 1 is
# the conditional model. Return the guided noise.
#
# <details><summary>Hint</summary>
#
# Papers disagree about what they call the scale. Here $w = 1$ must return `with_it` itself, and 0 `without`.
#
# </details>

# %% tags=["exercise"]
# Exercise 03.2
def mix(without, with_it, scale):
    """Classifier-free guidance; scale 1 is the conditional model."""
    # STUB: return None
    ### BEGIN SOLUTION
    return without + scale * (with_it - without)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("03.2", mix)

# %% [markdown]
# A widespread reading: scale $w$ samples the law in which the class counts $w$ times,
#
# <!-- definition -->
# $$
# p_w(x_0) \propto p(x_0)\; p(y \mid x_0)^w .
# $$
#
# Is it so? Noise $p_w$ and take its score. The power is inside an average over what $x_0$ may still become:
#
# <!-- eq: tempered-score | derived here -->
# $$
# \nabla \log q_t^{(w)}(x_t) = \nabla \log q_t(x_t)
# + \nabla \log \mathbb E\big[\, p(y \mid x_0)^w \,\big|\, x_t \big] ,
# $$
#
# while the guided sampler uses $w\, \nabla \log \mathbb E[\,p(y \mid x_0) \mid x_t]$: the power of the mean in
# place of the mean of the power. For $w = 0$ and $w = 1$ these are the same, for other $w$ in general not.
#
# **Predict.** Use exact denoisers, so that no network is to blame. At $w = 3$, how many floors from $p_3$ will
# the guided samples be? Is there any other power that they match?

# %%
def log_class(x):
    """log p(y | x_0) of the wanted class, exact."""
    return clean_only(x, None)


def tempered(power, n):
    """n samples of p(x) p(y | x)^power: exact points of the world, resampled by their weights."""
    x = world.sample(30 * n)
    return x[torch.multinomial((power * log_class(x)).exp(), n, replacement=True)]


def exact_guided(scale):
    without, with_it = (law.denoiser(diffusion.schedule) for law in (world, exact))
    return lambda x_t, t, cond: without(x_t, t) + scale * (with_it(x_t, t) - without(x_t, t))


scales, powers, rows = (1, 2, 3, 5), (1, 2, 3, 8, 20, 40, 80, 160, 320), []
count = min(settings.n, 4000)
floor = metrics.sliced_wasserstein_floor(exact.sample, count, pairs=10)
for scale in scales:
    x = sample(exact_guided(scale), count)
    distance = [metrics.sliced_wasserstein(x, tempered(p, count)) / floor for p in powers]
    rows.append([scale, *(f"{d:.1f}" for d in distance)])
    assert scale < 3 or 1.5 < min(distance) < max(distance[:2])  # what the text below says
    if scale == 3:
        run.metric("guidance_at_3_over_floor", distance[powers.index(3)], "1", count,
                   "sliced Wasserstein-1 of samples by classifier-free guidance at scale 3 with exact "
                   "denoisers to the law p(x) p(y|x)^3, over the floor")  # fmt: skip
        run.metric("guidance_at_3_over_floor_best_power", min(distance), "1", count,
                   "the same, to the nearest of the laws p(x) p(y|x)^k, k in 1, 2, 3, 8, 20, 40, 80, 160, 320")  # fmt: skip
table(["scale, and floors to p_k for k =", *powers], rows)

# %% [markdown]
# At scale 1 the match is as good as the sampler. At 3 and 5 the samples follow none of these laws, however
# cold: the nearest is two to four floors away (at 2 a much colder one comes near). They overshoot: the class is
# pushed at noise levels where it was not yet decided.

# %%
fig, axes = plt.subplots(1, 4, figsize=(12, 3.4), sharex=True, sharey=True)
panels = [(sample(exact_guided(w), 1000), f"guided, $w$ = {w}") for w in (1, 3, 5)]
panels.append((tempered(3, 1000), "the law $p_3$"))
for ax, (x, title) in zip(axes, panels, strict=True):
    ax.scatter(*x.T, s=3, color="C0", rasterized=True)
    ax.scatter(*exact.means.T, marker="+", color="k")
    ax.set(title=title, xlabel="$x_1$", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
axes[0].set_ylabel("$x_2$")
run.figure(
    fig,
    "scales",
    alt="Four scatter plots: guided samples at scales 1, 3 and 5, and the tempered law at power 3. With the "
    "scale the guided samples shrink and move outwards, away from the two marked means.",
    see="crosses are the means of the class. Scale 3 leaves them; the law p_3 does not.",
)


# %%
def show_scale(scale):
    fig, ax = plt.subplots(figsize=(4, 4))
    torch.manual_seed(SEED)
    ax.scatter(*sample(exact_guided(scale), 600).T, s=4, rasterized=True)
    ax.scatter(*exact.means.T, marker="+", color="k")
    ax.set(title=f"scale {scale:g}", xlabel="$x_1$", ylabel="$x_2$", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    return fig


slider = ipywidgets.FloatSlider(value=1.0, min=0.0, max=8.0, step=0.5, continuous_update=False)
widgets.explore(show_scale, scale=slider)

# %% [markdown]
# > **Bug museum: the label drop with the inequality turned.** A public course drops the condition by
# > `keep = rand < 0.1`. The network then trains without the condition in nine cases of ten. Its pictures look
# > fine: the unconditional law is learned well, and the class comes through a little. Three lines catch it:

# %%
def wrong_keep(n, drop=0.1):
    return torch.rand(n) < drop  # meant: >=


for name, kept in (("turned", wrong_keep(10_000)), ("right", torch.rand(10_000) >= 0.1)):
    share = float(kept.float().mean())
    print(f"{name:6s}: condition given in {share:.1%} of the samples, asked 90 %: "
          f"{'ok' if abs(share - 0.9) < 0.02 else 'WRONG'}")  # fmt: skip

# %% [markdown]
# ## 5. A wish that offers neither
#
# **Question.** "RDKit calls this drug-like." "This chair stands." The answer comes from a program. It has no
# gradient, and no label that anybody gave. What can the two methods do?
#
# Our stand-in is a rule that says 1 inside a disc and 0 outside. The disc lies *between* classes. We want more
# of what is inside, but not only that: the reward $r$ and a temperature $\tau$ ask for
#
# <!-- eq: payoff-of-an-indicator | derived here -->
# $$
# p^*(x_0) \propto p(x_0)\, e^{r(x_0)/\tau} , \qquad
# p^*(r = 1) = \frac{P\, e^{1/\tau}}{P\, e^{1/\tau} + 1 - P} , \quad P = p(r = 1) ,
# $$
#
# the law of notebook 00: shares change, and nothing inside or outside the disc is distorted. (Where it comes
# from: notebook 05.) The temperature is chosen so that exactly half of the mass should be inside.

# %%
region = Ball([0.55, 0.55], 0.6)
inside, _ = region.log_mass(world.means, world.std.square())
P = float((world.weights.log() + inside).logsumexp(0).exp())
tau = 1 / math.log((1 - P) / P)  # p*(r = 1) = 1/2
reward = Indicator(region)
payoff = world.tilt(reward, tau)
print(f"share inside: data {P:.4f}, wanted {payoff.mass:.4f}; tau = {tau:.3f}")

# %% [markdown]
# ### Exercise 03.3: the share to ask for
# Write `wanted_share(share, height, tau)`: a share of the data (a number in 0..1) has reward `height`, the rest
# has reward 0. Return the share that has it under the payoff law at temperature `tau`.
#
# <details><summary>Hint</summary>
#
# Two outcomes, each weighed by $e^{r/\tau}$. The weights must add up to 1.
#
# </details>

# %% tags=["exercise"]
# Exercise 03.3
def wanted_share(share, height, tau):
    """Probability of the reward ``height`` under the payoff law."""
    # STUB: return None
    ### BEGIN SOLUTION
    weight = share * math.exp(height / tau)
    return weight / (weight + 1 - share)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("03.3", wanted_share)

# %% [markdown]
# All methods get the same **pool**: 20,000 points of the data with their rewards, and nothing else. Four
# attempts.
#
# 1. **The gradient of the reward itself**, taken at the guess $\hat x_0(x_t)$, as if $r$ were differentiable.
# 2. **The reward as the condition** (Kumar et al. 2019): train a conditional network on pairs $(x_0, r)$ and ask
#    for $r = 1$.
# 3. The same network, but the reward to ask for is *drawn*: $r = 1$ with the probability that the payoff law
#    gives it. That needs $P$, here from the pool.
# 4. **A learned value**: a network learns $\mathbb E[e^{r(x_0)/\tau} \mid x_t]$ from noised points of the pool, by
#    regression. It is smooth in $x_t$ even though $r$ is not. Its log takes the classifier's place.
#
# **Predict.** Which of the four ends up at one half?

# %%
pool = world.sample(settings.pool)
pool_reward = reward(pool)


def pool_batch():
    index = torch.randint(len(pool), (settings.batch,))
    return pool[index], pool_reward[index]


def reward_loss(net):
    x0, r = pool_batch()
    return conditional.loss(diffusion, net, x0, r[:, None])


def value_loss(net):
    return value_guidance.loss(diffusion, net, *pool_batch(), tau, best=1.0)


on_reward = MLPDenoiser(2, diffusion.schedule.alpha_bar, cond_dim=2)
on_reward = Trainer(on_reward, reward_loss, settings.steps, lr=2e-3).run(progress=False)
value_net = Trainer(TimeMLP(2, diffusion.T, out=1), value_loss, settings.steps, lr=2e-3).run(progress=False)

# %%
def gradient_of_reward(x_t, t):
    """r at the guess of x_0: piecewise constant."""
    guess = diffusion.predict_x0(x_t, t, unconditional(x_t, t))
    return reward(guess) / tau + 0 * x_t.sum(1)  # 0 * x_t: autograd wants a path to follow


asks_for_it = conditional.classifier_free(on_reward, 1.0)
share = float(pool_reward.mean())
share = share * math.exp(1 / tau) / (share * math.exp(1 / tau) + 1 - share)


def drawn_rewards(n):
    return (torch.rand(n, 1) < share).float()


methods = {
    "no guidance": lambda n: sample(unconditional, n),
    "gradient of the reward": lambda n: sample(
        classifier_guidance.guided(unconditional, gradient_of_reward, diffusion), n),
    "reward as condition, ask for 1": lambda n: sample(asks_for_it, n, torch.ones(n, 1)),
    "reward as condition, drawn": lambda n: sample(asks_for_it, n, drawn_rewards(n)),
    "learned value": lambda n: sample(
        classifier_guidance.guided(unconditional, value_guidance.log_weight(value_net), diffusion), n),
}  # fmt: skip
clouds = {name: method(settings.n) for name, method in methods.items()}
mass = {name: float(reward(x).mean()) for name, x in clouds.items()}
floor = metrics.sliced_wasserstein_floor(payoff.sample, settings.n, pairs=10)
target = payoff.sample(settings.n)
rows = [[name, f"{mass[name]:.3f}", f"{mass[name] - payoff.mass:+.3f}",
         f"{metrics.sliced_wasserstein(x, target) / floor:.1f}"] for name, x in clouds.items()]  # fmt: skip
table(["", "share inside", "minus the exact share", "floors to the payoff law"], rows)
chance = (payoff.mass * (1 - payoff.mass) / settings.n) ** 0.5
print(f"exact share {payoff.mass:.3f}; a sample of {settings.n:,} strays by {chance:.3f} (one standard error)")

# %%
of_mass = (
    f"share of {settings.n:,} samples inside a disc minus the exact share {payoff.mass:.3f} under the payoff of "
    f"an indicator reward; {settings.pool:,} rewards, {settings.steps:,} gradient steps"
)
run.metric("indicator_mass_error_value_guidance", mass["learned value"] - payoff.mass, "1", settings.n,
           f"{of_mass}; guidance by a learned value")  # fmt: skip
run.metric("indicator_mass_error_reward_conditioned", mass["reward as condition, drawn"] - payoff.mass, "1",
           settings.n, f"{of_mass}; reward as condition, drawn from its law under the payoff")  # fmt: skip
run.metric("indicator_mass_error_reward_conditioned_ask_1",
           mass["reward as condition, ask for 1"] - payoff.mass, "1", settings.n,
           f"{of_mass}; reward as condition, always asked for 1")  # fmt: skip
run.metric("indicator_mass_error_gradient", mass["gradient of the reward"] - payoff.mass, "1", settings.n,
           f"{of_mass}; guidance by the gradient of the reward at the guess of x_0")  # fmt: skip

# %%
fig, axes = plt.subplots(1, 5, figsize=(14, 3.2), sharex=True, sharey=True)
panels = [("exact payoff", target), *list(clouds.items())[1:]]
for ax, (name, x) in zip(axes, panels, strict=True):
    ax.scatter(*x[:1500].T, s=2, rasterized=True)
    ax.add_patch(plt.Circle(region.centre.tolist(), region.radius, fill=False, color="C1", lw=2))
    ax.set(xlabel="$x_1$", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    ax.set_title(name, fontsize=9)
axes[0].set_ylabel("$x_2$")
run.figure(
    fig,
    "a_wish_without_gradient",
    alt="Five scatter plots with a disc: the exact payoff law has half of its points in the disc and the ring "
    "around it; the gradient method shows the plain ring; asking for reward 1 puts most points into the "
    "disc; drawn rewards and the learned value look like the exact law.",
    see="the first method does nothing; the second forgets everything else; the last two come close.",
)

# %% [markdown]
# How to read this.
#
# - The reward has **no gradient**: method 1 leaves the share where the unconditional model has it.
# - **Asking for 1** gives $p(x_0 \mid r = 1)$. That is the limit $\tau \to 0$: no temperature, no share for the
#   rest. For a reward with many values one has to choose what to ask for, and asking for more than the
#   data have is a guess.
# - **Drawing the reward** repairs this, exactly for an indicator. A reward with many values needs the whole
#   law of rewards under the payoff.
# - **The learned value** works without a gradient of $r$. It is an honest rival, and it returns in notebook 07.
#   Its price: a second network for every reward and temperature, trained at all noise levels, and a gradient of it
#   at each step of each sample, for ever. Where it errs, nothing corrects it.
#
# So "no gradient, no guidance" would be a lie. What is true: the *reward* offers none, and each way around
# learns a stand-in whose error nobody sees. Which error is smaller, at equal rewards and equal time, has to be
# measured, on worlds where the answer is known.
#
# **The question that is left.** Could the *model itself* be trained so that it simply draws from $p^*$, with the
# sampler unchanged, for any $r$ at all, and without differentiating anything but the denoising loss?

# %% [markdown]
# ## Recap
#
# - A condition as input changes the mean that the denoiser regresses on, nothing else.
# - Classifier guidance is Bayes' rule for scores. The classifier must know every noise level.
# - At scale 1 both sample the conditional law. At 3 or 5 the samples follow no tempered conditional law.
# - One needs something to encode, the other something to differentiate. A reward may offer neither.
# - A learned value or the reward as a condition get around that, each at a price.

# %% [markdown]
# ## Results

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - **A classifier of clean data** on noisy states: certain where it must be in doubt.
# - **Two conventions of the scale.** Ho & Salimans' $w$ is ours minus 1.
# - **The zero vector as "no condition"** without a flag: class 0 and "nothing" may be the same input.
# - **The label drop turned around**, see the bug museum.
# - **A higher scale called "more conditional"**: it is another law, and a narrower one.
#
# ## Further reading
#
# - Dhariwal & Nichol 2021, *Diffusion models beat GANs on image synthesis*, arXiv 2105.05233: classifier guidance
# - Ho & Salimans 2022, *Classifier-free diffusion guidance*, arXiv 2207.12598
# - Song et al. 2021, *Score-based generative modeling through stochastic differential equations*, arXiv 2011.13456
# - Bradley & Nakkiran 2024, *Classifier-free guidance is a predictor-corrector*, arXiv 2408.09000: why scales above 1
#   do not sample the tempered law
# - Kumar, Peng & Levine 2019, *Reward-conditioned policies*, arXiv 1912.13465
#
# ## Next
#
# `04_denoising_as_an_mdp`: the sampler seen as a player who makes T moves and is rewarded at the end.

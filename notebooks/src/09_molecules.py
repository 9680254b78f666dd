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
# # 09 · Molecules
#
# Molecules from quantum chemistry, a diffusion model that places their atoms in space, and a reward
# without a gradient: drug-likeness as RDKit computes it. At the end you will have seen the payoff
# distribution on molecules before any training, trained toward it, and read the numbers of a long
# run: how far the reward moved, whether its whole distribution came along, and what it cost.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 40 | 40 | 40 |
# | minutes to run (2 CPU cores) | 1 | 3 | 3 |
# | memory | 1 GB | 1 GB | 1 GB |
# | GPU | not needed | not needed | not needed |
#
# Prerequisites: 02 (denoising loss, sampling) and 07 (RGDM on an exact world). No chemistry beyond
# "atoms share bonds". The presets differ only in the small part that is trained live.

# %% [markdown]
# ## Goals
#
# - **encode** molecules as tensors, and **say why** their noise has zero centre of mass
# - **check** that a network turns its answer when the molecule is turned
# - **judge** generated molecules: stability, validity, memorisation, each with its ceiling
# - **weigh** samples by a reward that has no gradient, and **predict** how many still count
# - **train** toward the payoff distribution by a weighted denoising loss
# - **read** a result honestly: distance to the target, its floor, and what got worse
# - **set** the strength of a guided model, and **tell** what a strength can and cannot repair

# %% tags=["bootstrap"]
# rgdm_lib.course.bootstrap.CELL

# %% tags=["parameters"]
PRESET = "quick"
SEED = 0
OUT_DIR = "runs"

# %%
import copy
from functools import partial

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from rdkit import Chem

from rgdm_lib import payoff, rgdm, training
from rgdm_lib._data import data_path
from rgdm_lib.baselines import best_of_n
from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.molecules import (bonds, correction, data, experiments, longer, metrics, model, properties, regressors, relaxation,
                                rewards, rivals, stability, views)  # fmt: skip

run = notebook.start("09_molecules", PRESET, SEED, OUT_DIR)
settings = run.settings(
    quick={"fit_steps": 20, "fit_batch": 32, "live": 32, "live_steps": 50},
    laptop={"fit_steps": 300, "fit_batch": 64, "live": 256, "live_steps": 100},
    full={"fit_steps": 300, "fit_batch": 64, "live": 256, "live_steps": 100},
)


def table(header, rows):
    """Show rows of text as a table."""
    lines = [header, ["---"] * len(header), *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


# %% [markdown]
# ## 1. A molecule as a tensor
#
# **Question.** What is one data point?
#
# The data are **heavy7**: every molecule of QM9 (Ramakrishnan et al. 2014) with at most 7 *heavy*
# atoms, that is, atoms other than hydrogen. Elements are H, C, N, O, F. Geometries are energy minima
# by density functional theory. heavy7 is *not* QM9 in small: 83 % of QM9 has 9 heavy atoms. No number
# below may be compared with a published QM9 number.
#
# A molecule is a set of atoms, each with an element and a position. There are no bonds in the data:
# bonds are read off the distances afterwards. A batch holds molecules of **one size** $N$ only. So it
# is a plain tensor `(B, N, 9)` without any mask:
#
# | channels | content | scaled by |
# |---|---|---|
# | 0 to 2 | position in Angstrom, mean over the atoms zero | 1 |
# | 3 to 7 | one-hot element H, C, N, O, F | 1/4 |
# | 8 | atomic number | 1/10 |
#
# The scaling is that of EDM (Hoogeboom et al. 2022), whose model we follow. Small element channels
# drown in noise longer, so positions settle first.

# %%
qm9 = data.load_qm9("heavy7")
train = qm9.part("train")
held_out = qm9.subset(qm9.split > 0)
x = data.encode(qm9, 9)  # all molecules with 9 atoms
print(f"{len(qm9):,} molecules, {len(train):,} to train on, {len(held_out)} held out")
print(f"molecules with 9 atoms: a tensor {tuple(x.shape)}; the first one:")
print(np.array2string(x[0].numpy(), precision=2, suppress_small=True))

# %%
chosen = [int(np.flatnonzero(qm9.smiles == text)[0]) for text in ("CCO", "CC(N)=O", "CC1=CC=CC=C1")]
fig, axes = plt.subplots(1, 4, figsize=(10, 2.8), width_ratios=[1, 1, 1, 1.6])
for ax, i in zip(axes, chosen, strict=False):
    views.draw_3d(ax, *qm9.atoms(i), span=8.0)
    ax.set_title(f"{qm9.smiles[i]}, N = {qm9.n_atoms[i]}", fontsize=9)
sizes, counts = np.unique(qm9.n_atoms, return_counts=True)
axes[-1].bar(sizes, counts / counts.sum())
axes[-1].set(xlabel="number of atoms N", ylabel="share p(N)")
run.figure(
    fig,
    "real_molecules",
    alt="Three ball-and-stick molecules, ethanol, acetamide and toluene, each 8 Angstrom wide, "
    "and a bar chart of the number of atoms, from 3 to 23 with most molecules at 11 to 17.",
    see="sizes differ a lot. Dark grey is carbon, red oxygen, blue nitrogen, light grey hydrogen.",
)

# %% [markdown]
# **The size comes first.** We draw $N$ from the training data's $p(N)$ and then let the diffusion
# make $N$ atoms. No step of the chain adds or removes an atom. This matters in section 3.
#
# **The position of the whole.** Move a molecule by 10 Angstrom: it is the same molecule. A density
# that is equal for all shifts cannot have integral 1. So we fix the shift: the mean position is zero.
# Positions then live in a subspace of $3(N-1)$ dimensions. The noise has to live there too, or $x_t$
# would drift out of it. We draw ordinary noise and project it, by subtracting its mean over the atoms.
#
# **Predict.** After the projection, is the variance of one coordinate still 1? Think of $N = 2$.
#
# Write $\varepsilon_i$ for one coordinate of atom $i$, and $\bar\varepsilon$ for its mean over atoms.
#
# <!-- eq: projected-noise | derived here -->
# $$
# \operatorname{Var}(\varepsilon_i - \bar\varepsilon) = 1 - \tfrac1N, \qquad
# \operatorname{Cov}(\varepsilon_i - \bar\varepsilon,\; \varepsilon_j - \bar\varepsilon) = -\tfrac1N
# \quad (i \ne j) .
# $$
#
# Inside the subspace the projected noise is again standard normal. Nothing else of the diffusion
# changes: same schedule, same loss, same sampler.

# %%
diffusion = model.molecule_diffusion()
noise = data.zero_com_noise_like(torch.empty(100_000, 5, 9))
first, second = noise[:, 0, 0], noise[:, 1, 0]
print(f"variance of a coordinate {first.var():.3f}, formula {1 - 1 / 5:.3f}")
print(f"covariance of two atoms {(first * second).mean():.3f}, formula {-1 / 5:.3f}")
x_t = diffusion.q_sample(x, 300, diffusion.noise_like(x))
print(f"centre of mass of x_300, largest: {x_t[..., :3].mean(1).abs().max():.0e} Angstrom")

# %% [markdown]
# ### Exercise 09.1: keep the centre of mass at zero
# Write `zero_com(x)` for `x` of shape (B, N, 9): subtract from each molecule's positions their mean
# over its atoms. Return a tensor of the same shape. The other six channels must not change.
#
# <details><summary>Hint 1</summary>
#
# The mean runs over the atoms, dimension 1, and only over channels 0 to 2.
#
# <details><summary>Hint 2</summary>
#
# `mean(1, keepdim=True)`, and `torch.cat` to put the channels back together.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 09.1
def zero_com(x):
    """Move each molecule of x (B, N, 9) so that its positions have mean zero."""
    # STUB: return None
    ### BEGIN SOLUTION
    positions, features = x[..., :3], x[..., 3:]
    return torch.cat([positions - positions.mean(1, keepdim=True), features], -1)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("09.1", zero_com)

# %% [markdown]
# ## 2. The base model
#
# **Question.** What should the network know about space before it sees data?
#
# Turn $x_t$: the noise in it turns with it. A network for which this holds exactly need not learn it
# from examples. It is called *equivariant*:
#
# <!-- definition -->
# $$
# \varepsilon_\theta(R\,x_t,\, t) = R\; \varepsilon_\theta(x_t,\, t)
# \qquad \text{for every rotation or reflection } R .
# $$
#
# $R$ acts on the positions; the element channels stay. The same must hold for renumbering the atoms.
# The EGNN (Satorras et al. 2021) gets there by construction. Every atom sends every other one a
# message that depends on their *distance* only. An atom moves along the *directions* to the others,
# by amounts that the messages decide. (How ours differs from EDM's: the head of
# `rgdm_lib/molecules/egnn.py`.)
#
# **Predict.** Rotate, reflect and renumber the input of the trained network in float64. How big is
# the relative difference: $10^{-2}$, $10^{-7}$ or $10^{-15}$?

# %%
base, card = model.load_model()
rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]  # may reflect as well
order = torch.randperm(9)


def turned(x):
    return torch.cat([x[..., :3] @ rotation, x[..., 3:]], -1)[:, order]


precise = copy.deepcopy(base).double()
x_t = diffusion.q_sample(x, 300, diffusion.noise_like(x)).double()
t = torch.full((len(x),), 300)
with torch.no_grad():
    a, b = turned(precise(x_t, t)), precise(turned(x_t), t)
print(f"relative difference {(a - b).norm() / b.norm():.0e}")
print(f"network: {card['network']}, {sum(p.numel() for p in base.parameters()):,} weights")

# %% [markdown]
# The base model was trained once, from scratch, on the training part, and ships with the course. Its
# card holds the command and the curve. The loss is the simple one of notebook 02, with one change: half
# of the times $t$ are drawn where a small molecule is decided, around $\sigma_t = \sqrt{1 - \bar\alpha_t}
# = 0.27$. (Drawing some times more often weighs the terms of the loss; its optimum stays, notebook 02.)

# %%
steps, losses = np.array(card["history"]).T
seen = steps * card["molecules_seen"] / steps[-1]
fig, ax = plt.subplots(figsize=(6, 3))
ax.loglog(seen, losses, lw=1)
ax.set(xlabel="molecules seen", ylabel="denoising loss")
run.figure(
    fig,
    "training_curve",
    alt="Denoising loss of the base model against the number of molecules seen, both axes "
    "logarithmic; it falls steeply, then slowly.",
    see="most of the fall comes early; the slow rest is what makes whole molecules come out right.",
)
print(f"made by: {card['command']}; {card['molecules_seen']:,} molecules seen")

# %% [markdown]
# ### One denoising
#
# **Predict.** What is decided first: where the atoms are, or what they are?

# %%
n_atoms, times = 14, (1000, 700, 500, 300, 150, 50, 0)
x_T = diffusion.noise_like(torch.empty(16, n_atoms, data.CHANNELS))
states = {state.t: state for state in diffusion.sample(base, x_T, steps=100)}
ended = data.decode(states[0].x)
ok = metrics.stability_edm(ended)[0]
pick = int(ok.argmax())  # the first of the 16 that ended stable, else the first
final = ended.atoms(pick)[0]  # all pictures from one side
fig, axes = plt.subplots(2, len(times), figsize=(10, 3.2))
for column, at in zip(axes.T, times, strict=True):
    state = states[at]
    column[0].set_title(f"t = {at}", fontsize=9)
    for ax, batch in zip(column, (state.x, state.x0_hat), strict=True):
        ax.axis("off")
        if batch is not None:
            views.draw_3d(ax, *data.decode(batch[pick : pick + 1]).atoms(0), span=8.0, like=final)
axes[1, 0].text(0.5, 0.5, "$\\hat x_0$:\nbest guess\nof the end", ha="center", va="center")
run.figure(
    fig,
    "denoising_strip",
    alt="One sample at seven times. Top row, x_t: a cloud of random atoms becomes a molecule. Bottom "
    "row, the guess of the end: shrunken at first, then close to the final molecule.",
    see="top $x_t$, bottom the network's guess of the end. Positions settle while the elements are "
    "still noise: this is what the factor 1/4 is for.",
)
print(f"{ok.sum()} of {len(ok)} samples ended stable; the first such is drawn")

# %% [markdown]
# ### A neutral sampler, and a cold one
#
# Training on samples and sampling again only makes sense if the sampler adds nothing of its own. Is
# ours neutral? The strip was drawn by DDPM's rule. A step from $t$ to an earlier $s$ may use another
# amount of noise $\sigma$; $\eta = 1$ is DDPM, $\eta = 0$ the noiseless DDIM:
#
# <!-- eq: ddim-step-with-sigma | Song et al. 2021, eq. 12 and 16 -->
# $$
# x_s = \sqrt{\bar\alpha_s}\, \hat x_0 + \sqrt{1 - \bar\alpha_s - \sigma^2}\; \hat\varepsilon + \sigma z,
# \qquad \sigma = \eta\, \sqrt{\frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}}
# \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_s}} .
# $$
#
# (The code cuts $\sigma$ at $\sqrt{1-\bar\alpha_s}$, where the second root would turn negative. At $\eta = 3$ that happens in a third to a half of the
# steps, and there $\eta$ is no longer fixed.) For an exact denoiser and a *fixed* $\eta$ the law of the samples becomes right as the steps shrink. How
# many steps are enough? Take a law whose exact denoiser is known, a plain Gaussian, and compute how wide its samples come out.
#
# **Predict.** An early version of this course used $\eta = 3$ with 100 steps: on its first base model
# that doubled the stable molecules, from 31 to 65 %. Is more noise a free gift?

# %%
def width(eta, steps, sd):
    """Standard deviation of samples over the true one, for N(0, sd^2) and its exact denoiser."""
    alpha_bar, variance = diffusion.schedule.alpha_bar, 1.0
    times = diffusion.timesteps(steps, model.SPACING)
    for t, s in zip(times[:-1], times[1:], strict=True):
        a, std = float(alpha_bar[t]), diffusion.step_std(t, s, eta)
        eps = torch.tensor([[(1 - a) ** 0.5 / (a * sd**2 + 1 - a)]])  # of x_t = 1: it is linear
        factor = diffusion.step(torch.ones(1, 1), t, s, eps, eta)[0].item()
        variance = factor**2 * variance + std**2
    return variance**0.5 / sd


counts = (25, 50, 100, 200, 400)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for ax, sd in zip(axes, (0.5, 1.4), strict=True):
    for eta in (1.0, 1.5, 3.0):
        ax.semilogx(counts, [width(eta, k, sd) for k in counts], "o-", label=f"$\\eta$ = {eta:g}")
    ax.axhspan(0.98, 1.02, color="0.9")
    ax.set(xlabel="sampling steps", title=f"Gaussian of sd {sd}")
    ax.set_xticks(counts, counts)
    ax.minorticks_off()
axes[0].set_ylabel("width of the samples / true width")
axes[0].legend()
run.figure(
    fig,
    "a_cold_sampler",
    alt="Width of the samples over the true width against the number of steps, for two Gaussians. With "
    "eta 1 it is within 2 percent of one from 200 steps on; with eta 3 it is 0.72 and 0.82 at 100 steps and still outside the band at 400.",
    see="the grey band is 2 %. With eta = 3 the samples huddle around the likely: a cold sampler.",
)
neutral = {sd: width(1.0, model.SAMPLING_STEPS, sd) for sd in (0.5, 1.4)}
print(f"eta = 1, {model.SAMPLING_STEPS} steps: width {neutral[0.5]:.3f} (sd 0.5), {neutral[1.4]:.3f} (sd 1.4);"
      f" eta = 3, 100 steps: {width(3.0, 100, 0.5):.2f}")  # fmt: skip
assert all(abs(w - 1) <= 0.02 for w in neutral.values())

# %% [markdown]
# More noise acts like a temperature below 1. Fewer bonds are off, and what is rare gets rarer. A model
# trained on such samples, and sampled the same way, is cooled twice. So all sets of molecules that ship, for pools, training and judging, come from
# **one neutral sampler**: $\eta = 1$, 200 steps spaced quadratically, within 2 % of the right width on exact Gaussians and mixtures (the tests hold it
# there). Stability that only a cold sampler gives is not the network's.
#
# ### When is a generated molecule good?
#
# The field's rule is EDM's. Two atoms closer than a tabulated length plus a margin share a bond:
# single, double or triple, with margins of 10, 5 and 3 picometres. Let $b_{ij}$ be the bond order.
#
# <!-- definition -->
# $$
# \text{atom } i \text{ is stable} \iff \sum_j b_{ij} = \text{valence}_i, \qquad
# \text{valence} = \{\mathrm H: 1,\ \mathrm C: 4,\ \mathrm N: 3,\ \mathrm O: 2,\ \mathrm F: 1\} .
# $$
#
# A molecule is stable if *all* its atoms are. With a share $s$ of stable atoms, a molecule of 14 atoms
# would be stable with probability $s^{14}$ if atoms failed independently: 0.93 gives 0.36.
#
# The other columns: *valid*, RDKit accepts the molecule with these bonds; *connected*, it is in one
# piece; *unique*, distinct molecules over valid ones; *memorisation*, the median distance to the nearest training molecule of the same formula (root
# mean square difference of the sorted interatomic distances), over the same for held-out molecules. At 1 samples are as far away as molecules never
# seen, at 0 they are copies. But 1 is not the aim: four in five molecules of heavy7 are training molecules, so a perfect model of heavy7 would score 0.
# Read a fall together with the held-out molecules that are found.

# %%
samples = data.load_set(data_path(model.BASE_SAMPLES))
n = len(samples)
known_molecules = metrics.Known(train, held_out)
scored = {}


def judged(molecules, first):
    """All scores of the first so many molecules of a set, computed once."""
    key = id(molecules), first
    if key not in scored:
        scored[key] = molecules, metrics.evaluate(molecules.subset(range(first)), known_molecules)
    return scored[key][1]


real, made = metrics.evaluate(qm9), judged(samples, n)
columns = ("mol_stable_edm", "atom_stable_edm", "valid_edm", "connected_edm", "unique_edm")
table(
    ["", "n", "molecules stable", "atoms stable", "valid", "connected", "unique", "memorisation"],
    [
        ["real data", f"{len(qm9):,}", *(f"{real[c]:.1%}" for c in columns), "1 (held out)"],
        ["base model", f"{n:,}", *(f"{made[c]:.1%}" for c in columns),
         f"{made['memorisation_ratio']:.2f}"],
    ],
)  # fmt: skip

# %% [markdown]
# The first row is the ceiling. Even real molecules miss 100 %: EDM's table has one length for each
# kind of bond, and some real ones, in aromatic rings with several N or in strained cages, are longer
# or shorter. Whoever pushes this number beyond the data's row removes real chemistry.
#
# Unique depends on how many are drawn: small molecules are few, so many draws must repeat some.

# %%
how = (
    f"{n:,} base samples on heavy7's sizes, averaged weights, {model.SAMPLING_STEPS} of T = "
    f"{diffusion.T} sampling steps spaced quadratically, eta = 1"
)
run.metric("base_mol_stable", made["mol_stable_edm"], "1", n,
           f"share of stable molecules by EDM's rule; {how}", ceiling=real["mol_stable_edm"])  # fmt: skip
run.metric("base_atom_stable", made["atom_stable_edm"], "1", n,
           f"share of stable atoms by EDM's rule, atoms pooled; {how}",
           ceiling=real["atom_stable_edm"])  # fmt: skip
run.metric("base_valid", made["valid_edm"], "1", n,
           f"share that RDKit sanitises with EDM's bonds; {how}", ceiling=real["valid_edm"])  # fmt: skip
run.metric("base_unique", made["unique_edm"], "1", n,
           f"distinct SMILES over valid ones, EDM's bonds, largest fragment; {how}")  # fmt: skip
run.metric("base_memorisation_ratio", made["memorisation_ratio"], "1", n,
           "median distance (sorted interatomic distances, equal formula) of a sample to the nearest "
           f"training molecule over that of {len(held_out)} held-out molecules; {how}")  # fmt: skip
run.metric("base_recovered_held_out", made["recovered_held_out"], "1", n,
           f"share of the graphs of {len(held_out)} held-out molecules, never seen in training, that "
           f"occur among the samples; {how}", ceiling=made["recovered_train"])  # fmt: skip

# %% [markdown]
# The last line tests generalisation. QM9 enumerates its space almost completely, so a good model should rediscover molecules that were held out; beside
# it, under the name of ceiling, stands the same share of the training molecules. Here both are equal within chance: what was held out is found as often
# as what was seen. A model that memorises finds the second kind only.
#
# **Published rows, for orientation only.** On all of QM9 (about 18 atoms a molecule), 10,000 samples,
# EDM's evaluator, as reprinted in later papers. Other data, larger networks, days on a GPU: *not
# comparable* with ours. (EDM's public code, and ours, give the data 99.4 % stable atoms.)
#
# | published, QM9 | atoms stable | molecules stable | valid |
# |---|---|---|---|
# | data | 99.0 % | 95.2 % | 97.7 % |
# | EDM (Hoogeboom et al. 2022) | 98.7 % | 82.0 % | 91.9 % |
# | GeoLDM (Xu et al. 2023) | 98.9 % | 89.4 % | 93.8 % |
#
# Here are the first ten samples of the base model, none picked.

# %%
made_qed = samples.property("qed")


def legends(values):
    return [f"QED {v:.2f}" if np.isfinite(v) else "no value" for v in values]


picture = views.grid(samples.subset(range(10)), legends(made_qed[:10]), file_format="png")
run.figure(
    picture.figure(),
    "base_samples",
    alt="Ten drawings of generated molecules with their QED or the words no value.",
    see="molecules as bonds are read off the generated geometry (hydrogens not drawn).",
)

# %% [markdown]
# `views.view_3d(samples, 0)` in a new cell shows one that you can turn with the mouse.
#
# ### Exercise 09.2: spot the bug in a stability check
# A colleague wrote the function below. It gives real molecules a fine score. Run it. Then read the
# second line it prints: all atoms pulled three times as far apart, where no bond is left.

# %%
VALENCE = np.array([0, 1, 0, 0, 0, 0, 4, 3, 2, 1])  # by atomic number: H 1, C 4, N 3, O 2, F 1


def suspicious_stable(orders, numbers):
    used = (orders > 0).sum(-1)
    return (used <= VALENCE[numbers]).all(-1)


positions, numbers = qm9.of_size(14)
for name, stretch in (("real molecules", 1), ("pulled apart", 3)):
    orders = bonds.bond_orders(stretch * positions, numbers)
    print(f"{name}: {suspicious_stable(orders, numbers).mean():.1%} stable")

# %% [markdown]
# There are two bugs. Write `molecule_stable(orders, numbers)`: `orders` is an int array (B, N, N) of
# bond orders 0 to 3, `numbers` (B, N) atomic numbers. Return (B,) bool. `VALENCE` is yours to use.
#
# <details><summary>Hint 1</summary>
#
# What does an atom without any bond get?
#
# <details><summary>Hint 2</summary>
#
# How much of carbon's valence does a double bond use?
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 09.2
def molecule_stable(orders, numbers):
    """Which molecules have every valence filled exactly."""
    # STUB: return None
    ### BEGIN SOLUTION
    return (orders.sum(-1) == VALENCE[numbers]).all(-1)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("09.2", molecule_stable)

# %% [markdown]
# ## 3. A reward without a gradient
#
# **Question.** Which of these molecules should get more weight, and how many are then left?
#
# The reward is **QED**, drug-likeness between 0 and 1 (Bickerton et al. 2012): size, polarity, rings,
# rotatable bonds, alerts, folded into one number. It needs bonds. Bonds need thresholds on
# distances. So QED jumps, has no gradient, and often has no value: a sample that falls to pieces is
# no molecule.
#
# When should a sample count? QED reads the graph, not the geometry. RDKit reads a graph off rather poor
# geometries, and QED would then reward what is no molecule. So a sample **has a value** only if it is
# stable by EDM's rule and in one piece. All others get weight 0 and are counted.

# %%
again = rewards.qed(samples.subset(range(500))).numpy()
agree = np.isclose(again, made_qed[:500], atol=1e-5, equal_nan=True)
print(f"stored QED recomputed on the first {len(again)} samples: {agree.sum()} agree")
assert agree.mean() >= 0.99  # positions were rounded to 0.0005 Angstrom in the file
lenient = rewards.qed(samples.subset(range(500)), "edm_or_determine").numpy()
extra = np.isfinite(lenient) & ~np.isfinite(again)
print(f"with a value: {np.isfinite(again).mean():.1%}; by the lenient rule {np.isfinite(lenient).mean():.1%}")
print(f"mean QED of those that the lenient rule adds: {lenient[extra].mean():.3f}, of the others "
      f"{again[np.isfinite(again)].mean():.3f}")  # fmt: skip

# %% [markdown]
# ### Two references
#
# What should be tilted? There are two candidates for $p_{\text{ref}}$, and they answer different wishes.
#
# - **data**: the training molecules. Their rewards are computed once. No sample of a model is in the loop.
# - **model**: the base model's own samples, with whatever the base gets wrong.
#
# A perfect base would make no difference. Is ours good enough? Compare elements, and QED of what is
# stable, with real molecules of the same sizes.

# %%
references = experiments.REFERENCES
pools = {name: experiments.payoff_draw(name) for name in references}
pool = pools["data"]
qed, strata = pool.reward, pool.strata  # strata: the parts whose shares are kept, the sizes
valued = torch.isfinite(qed)


def element_shares(molecules, weight=None):
    """Share of each element among all atoms."""
    weight = np.ones(len(molecules)) if weight is None else weight
    counts = weight @ metrics.element_counts(molecules)
    return counts / counts.sum()


stable_train = train.subset(valued.numpy())
stable_made = samples.subset(np.isfinite(made_qed))
of_data, of_base = element_shares(train, metrics.size_weight(train, samples)), element_shares(samples)
element_error = float(abs(of_base - of_data).max())
same_sizes = np.average(qed[valued].numpy(), weights=metrics.size_weight(stable_train, stable_made))
qed_base = float(np.nanmean(made_qed))
table(["", *(data.SYMBOLS[z] for z in data.ELEMENTS), "mean QED of the stable"],
      [["training molecules, same sizes", *(f"{v:.1%}" for v in of_data), f"{same_sizes:.4f}"],
       ["base samples", *(f"{v:.1%}" for v in of_base), f"{qed_base:.4f}"]])  # fmt: skip

# %%
run.metric("base_element_error", element_error, "1", n,
           "largest difference, over the elements, of an element's share of all atoms between the samples "
           f"and training molecules weighted to the same sizes; {how}")  # fmt: skip
run.metric("base_qed_error", qed_base - float(same_sizes), "QED", len(stable_made),
           "mean QED of the samples that are stable by EDM's rule and in one piece minus that of such "
           f"training molecules weighted to the same sizes; {how}")  # fmt: skip
assert len(train) == len(pool.x0)

# %% [markdown]
# The base makes too much nitrogen out of carbon: the one error that longer training did not move. **Predict.** Is it spread
# over all molecules, or does it sit in some of them? We split the stable samples by whether their graph is one that EDM's rule reads off a molecule of
# QM9 of up to 7 heavy atoms, and look for one group, an amine NH$_2$ on a saturated carbon.

# %%
amine = Chem.MolFromSmarts("[NX3;H2][CX4]")
in_qm9 = set(metrics.smiles_edm(qm9)[0])
few = stable_made.subset(range(2000))
graphs = np.array(metrics.smiles_edm(few)[0])
known = np.isin(graphs, list(in_qm9))


def with_amine(smiles):
    """Share of the graphs that have the group."""
    found = [Chem.MolFromSmiles(graph).HasSubstructMatch(amine) for graph in smiles if graph]
    return float(np.mean(found))


nitrogen = data.ELEMENTS.index(7)
rows = [["molecules of QM9", "", f"{element_shares(stable_train)[nitrogen]:.1%}",
         f"{with_amine(in_qm9):.1%}", f"{float(qed[valued].mean()):.3f}"]]  # fmt: skip
for name, part in (("samples that QM9 knows", known), ("samples that it does not", ~known)):
    own = few.subset(part)
    rows.append([name, f"{part.mean():.0%}", f"{element_shares(own)[nitrogen]:.1%}",
                 f"{with_amine(graphs[part]):.1%}", f"{np.nanmean(own.property('qed')):.3f}"])  # fmt: skip
table(["", "share", "nitrogen among the atoms", "with an amine NH2", "mean QED"], rows)
assert with_amine(graphs[~known]) > 5 * with_amine(graphs[known])

# %% [markdown]
# It sits in one half. What QM9 knows is made with no more nitrogen than it should have. The other half are molecules that a
# chemist would accept, amines above all, and QM9 hardly has them. (It took the neutral molecules of its source; that
# basic amines stand there as ions is a likely reason.) No rule about bonds says so: a network has to read "no basic
# amine" off 3,136 examples, and manages only in part. For the reference *data* this is an error of the base. For the
# reference *model* it is simply how $p_{\text{ref}}$ is.
#
# ### Away from its own mistakes
#
# **Question.** Longer training did not move these mistakes. Can they be undone without more data, and without a reward?
#
# **Predict.** Train the base once more, on *samples of its own*. Will it be better for the practice, the same, or worse?
#
# It knows nothing new and has lost sight of the data: what it gets wrong, it now learns. So the new network, $\varepsilon_{\text{own}}$,
# should differ from the base as the base differs from the data. Then the line from it through the base leads on to the data:
#
# <!-- eq: away-from-own | Alemohammad et al. 2024, arXiv 2408.16333; their omega is s - 1 -->
# $$
# \varepsilon_s(x_t, t) = \varepsilon_{\text{own}}(x_t, t) + s\,\big(\varepsilon_{\text{base}}(x_t, t) - \varepsilon_{\text{own}}(x_t, t)\big),
# \qquad s > 1 .
# $$
#
# $s = 0$ is the new network, $s = 1$ the base. We help a little: where we *know* what is wrong on average, we make it worse. The
# samples get weights under which their atoms of C, N and O, and the QED of those with a value, are off from the training molecules' by 1.6
# times as much. Of all such weights we take those nearest to equal ones; they are $w_i \propto e^{\lambda \cdot f(x_i)}$ within each
# size, $f$ being these numbers: a payoff distribution, with the mistake as its reward.
# (`python -m rgdm_lib.course experiment molecules-correction`; $s = 3$ was chosen by looking at 800 samples each at 1.7, 3 and 5, and the 1.6 by
# looking at as many without these weights and at 2.)

# %%
wrong = correction.mistaken()
print(f"ESS of these weights: {wrong.ess:,.0f} of {len(wrong.x0):,}")
NAMES = OWN, BASE, CORRECTED = "trained on its own samples, s = 0", "base, s = 1", f"corrected, s = {correction.STRENGTH:g}"
assert (correction.STRENGTH, correction.MORE) == (3, 0.6)  # what the text says
steps_away = {OWN: correction.load_correction("own"), BASE: samples, CORRECTED: correction.load_correction("corrected")}
fewest = min(len(molecules) for molecules in steps_away.values())
quality, off, rows = {}, {}, [["molecules of QM9", f"{real['mol_stable_edm']:.1%}", f"{real['valid_edm']:.1%}", "", "", "", "100 %", "0", "0"]]
for name, molecules in steps_away.items():
    values = molecules.property("qed")
    with_value = molecules.subset(np.isfinite(values))
    score = quality[name] = judged(molecules, fewest)
    of_data = element_shares(train, metrics.size_weight(train, molecules))
    by_size = np.average(qed[valued].numpy(), weights=metrics.size_weight(stable_train, with_value))
    known = np.isin(metrics.smiles_edm(with_value.subset(range(min(600, len(with_value)))))[0], list(in_qm9)).mean()
    share = np.isfinite(values).mean()
    off[name] = element_shares(molecules) - of_data, float(np.nanmean(values) - by_size), share
    rows.append([name, f"{metrics.stability_edm(molecules)[0].mean():.1%}", f"{score['valid_edm']:.1%}", f"{score['unique_edm']:.1%}",
                 f"{score['recovered_held_out']:.1%}", f"{score['memorisation_ratio']:.2f}", f"{known:.0%}",
                 f"{off[name][0][nitrogen]:+.2%}", f"{off[name][1]:+.4f}"])  # fmt: skip
table(["", "stable", "valid", f"unique of {fewest:,}", f"held-out graphs found by {fewest:,}", "memorisation", "of the stable, in QM9", "nitrogen, minus the data's",
       "QED, minus the data's"], rows)  # fmt: skip

# %%
corrected, count = steps_away[CORRECTED], len(steps_away[CORRECTED])
apart, qed_off, valued_share = off[CORRECTED]
own_score, before, after = (quality[name] for name in NAMES)
where = f"of {count:,} corrected samples, s = {correction.STRENGTH:g}: two networks, {model.SAMPLING_STEPS} of T = {diffusion.T} sampling steps, eta = 1"
stable_molecules, stable_atoms = metrics.stability_edm(corrected)
run.metric("corrected_mol_stable", stable_molecules.mean(), "1", count, f"share of stable molecules by EDM's rule {where}",
           ceiling=real["mol_stable_edm"])  # fmt: skip
run.metric("corrected_atom_stable", stable_atoms.sum() / corrected.n_atoms.sum(), "1", count, f"share of stable atoms by EDM's rule {where}",
           ceiling=real["atom_stable_edm"])  # fmt: skip
run.metric("corrected_valid", after["valid_edm"], "1", fewest, f"share that RDKit sanitises with EDM's bonds; {where}",
           ceiling=real["valid_edm"])  # fmt: skip
run.metric("corrected_element_error", float(abs(apart).max()), "1", count, "largest difference, over the elements, of an element's share of "
           f"all atoms between training molecules weighted to the same sizes and samples; {where}")  # fmt: skip
run.metric("corrected_qed_error", qed_off, "QED", int(valued_share * count), "mean QED of the samples that are stable by EDM's rule and in one "
           f"piece minus that of such training molecules weighted to the same sizes; {where}")  # fmt: skip
run.metric("corrected_valid_unique_change", after["valid_unique_edm"] - before["valid_unique_edm"], "1", fewest,
           f"share valid and different from the others, minus the base's, equal numbers; {where}")  # fmt: skip
run.metric("corrected_recovered_ratio", after["recovered_held_out"] / before["recovered_held_out"], "1", fewest,
           f"graphs of {len(held_out)} held-out molecules that occur among the samples, over the base's, equal numbers; {where}")  # fmt: skip
run.metric("corrected_memorisation_ratio", after["memorisation_ratio"], "1", fewest, "median distance to the nearest training molecule over "
           f"that of {len(held_out)} held-out molecules; {where}")  # fmt: skip
assert own_score["mol_stable_edm"] < before["mol_stable_edm"] < after["mol_stable_edm"]  # what the text below says
assert after["recovered_held_out"] > before["recovered_held_out"] > own_score["recovered_held_out"]

# %% [markdown]
# Worse, and by much, and not only where the weights ask for it: they left the share of stable molecules as it was. And the step the other way
# undoes it, past the base. More molecules are stable and valid, *more* of the held-out ones are found, which no network has seen: so it does not merely
# copy. It narrows a little all the same: samples in QM9 became 1.5 times as many, the held-out graphs among them 1.3 times. Elements and QED come to
# the data's, as the weights asked.
#
# What does it cost? A second network at every step, and two numbers, $s$ and the 1.6, that were chosen by looking at the data. It is guidance, and
# inherits its faults (03): no law follows from the formula for $s > 1$, at $s = 5$ fewer are stable again, and samples come closer to the training
# molecules and repeat each other more often (the columns memorisation and unique). And it teaches RGDM something: training on samples of the model's
# own has a price that has nothing to do with the reward. The *control* of section 5 pays it, and so does every model of the reference *model*.

# %% [markdown]
# ### The payoff distribution, sizes kept
#
# A reward $r$ and a temperature $\tau$ lead to $p^* \propto p_{\text{ref}} \exp(r/\tau)$ (notebook
# 07). For molecules there is a choice. May the reward change how *large* the molecules are? On these
# small molecules QED grows with size. Part of a free tilt's effect is just a wish for more atoms (the
# code prints how much below), yet sizes are drawn before the model is asked anything. We **keep**
# $p(N)$ and tilt inside each size:
#
# <!-- definition -->
# $$
# p^*(N, x_0) = p(N)\; \frac{p_{\text{ref}}(x_0 \mid N)\, e^{r(x_0)/\tau}}{Z_N} .
# $$
#
# On $n$ molecules of the reference, of which $n_N$ have $N$ atoms, this is a set of weights:
#
# <!-- eq: payoff-weights-by-size | derived here -->
# $$
# w_i = \frac{n_{N_i}}{n}\; \frac{e^{r_i/\tau}}{\sum_{j:\, N_j = N_i} e^{r_j/\tau}},
# \qquad \sum_i w_i = 1 .
# $$
#
# How many samples still count is the *effective sample size*:
#
# <!-- eq: effective-sample-size | Owen, Monte Carlo theory, methods and examples, eq. 9.13 -->
# $$
# \mathrm{ESS} = \frac{1}{\sum_i w_i^2} .
# $$
#
# For a Gaussian reward with standard deviation $s$ it has a closed form, worth knowing by heart:
#
# <!-- eq: ess-gaussian-reward | derived here -->
# $$
# \frac{\mathrm{ESS}}{n} \to \frac{\mathbb E[e^{r/\tau}]^2}{\mathbb E[e^{2r/\tau}]} = e^{-s^2/\tau^2} .
# $$
#
# **Predict.** QED of the real molecules has a standard deviation of 0.059 inside a size. At which $\tau$ is ESS 40 % by this formula? ($\sqrt{-\ln 0.4}
# \approx 0.96$.) QED has a best value that no molecule of this size exceeds; a Gaussian has none. Will the true $\tau$ be higher or lower?

# %%
shares = [share for share in experiments.SHARES if share < 100]  # in % of the molecules with a value
tau = experiments.temperatures(pool)
target = experiments.targets(pool)

group = np.unique(train.n_atoms, return_inverse=True)[1]
for share in shares:
    moved = np.bincount(group, target[share].log_weight.exp()) - np.bincount(group) / len(train)
    print(f"ESS {share} %: tau = {tau[share]:.4f}, largest change of a size's share {abs(moved).max():.0e}")
print("sizes without any valued molecule (dropped):", target[40].dropped_strata or "none")

# %% [markdown]
# These three temperatures are this notebook's targets: mild, strong, very strong. Fixed by their ESS,
# they mean the same for any reward. (The weights here are on the training molecules, reference *data*.)

# %%
grid = np.geomspace(0.2 * tau[10], 5 * tau[80], 60)
ess = [payoff.effective_sample_size(payoff.log_weights(qed, s, strata=strata)) for s in grid]
within = torch.cat([q - q.nanmean() for q in (qed[strata == size] for size in strata.unique())])
spread = float(within[valued[torch.argsort(strata, stable=True)]].std())

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
left.semilogx(grid, np.array(ess) / int(valued.sum()), label="QED, sizes kept")
left.semilogx(grid, np.exp(-((spread / grid) ** 2)), "--", label=f"Gaussian, s = {spread:.3f}")
left.plot([tau[s] for s in shares], [s / 100 for s in shares], "o", color="C2", label="our three")
left.set(xlabel="temperature $\\tau$ (in QED)", ylabel="ESS / samples with a value", ylim=(0, 1.05))
left.legend()
bins = np.linspace(0.15, 0.65, 41)
right.hist(qed[valued], bins, density=True, color="0.8", label="training molecules")
for share in shares:
    weighted = target[share]
    right.hist(qed[valued], bins, weights=weighted.log_weight[valued].exp(), density=True,
               histtype="step", lw=1.5, label=f"payoff, ESS {share} %")  # fmt: skip
right.set(xlabel="QED", ylabel="density (1 / QED)")
right.legend(fontsize=8)
run.figure(
    fig,
    "ess_and_payoff",
    alt="Left: effective share of samples rises from near 0 to 1 with temperature, close to a "
    "Gaussian formula; three dots at 80, 40 and 10 percent. Right: QED histograms of real molecules and of "
    "three payoff distributions, which move to the right as the ESS falls.",
    see="colder means further right and fewer samples. QED ends at a wall, so fewer extreme weights "
    "than a Gaussian has: at one temperature more samples count than the formula says.",
)


# %%
def show_temperature(log10_tau):
    weighted = model.weigh(train, qed, 10**log10_tau)
    weight = weighted.log_weight.exp()
    fig, ax = plt.subplots(figsize=(5, 3))
    ax.hist(qed[valued], bins, density=True, color="0.8")
    ax.hist(qed[valued], bins, weights=weight[valued], density=True, histtype="step", lw=2)
    mean = float(weighted.expectation(qed))
    ax.set_title(f"tau = {10**log10_tau:.4f}: ESS {weighted.ess:,.0f}, mean QED {mean:.3f}")
    ax.set(xlabel="QED", ylabel="density (1 / QED)")
    return fig


low, start, high = np.log10([grid[0], tau[40], grid[-1]])
slider = ipywidgets.FloatSlider(value=start, min=low, max=high, step=0.02)
widgets.explore(show_temperature, log10_tau=slider)

# %% [markdown]
# **Before any training**, the weights say which molecules a *perfectly* trained model would make.

# %%
graphs = np.array([text or "" for text in metrics.smiles_perceived(train)])


def heaviest(weight):
    """Graphs by falling weight, their weights, and one molecule of each."""
    names, first, which = np.unique(graphs[valued], return_index=True, return_inverse=True)
    carried = np.bincount(which, weight[valued])
    order = np.argsort(-carried, kind="stable")
    return names[order], carried[order], np.flatnonzero(valued)[first[order]]


rows = []
for share in shares:
    weighted = target[share]
    _, carried, top = heaviest(weighted.log_weight.exp())
    half = int(np.searchsorted(carried.cumsum(), 0.5)) + 1
    rows.append([f"{share} %", f"{tau[share]:.4f}", f"{weighted.ess:,.0f}", f"{carried[:5].sum():.1%}",
                 f"{half:,} of {len(carried):,}", f"{float(weighted.expectation(qed)):.4f}"])  # fmt: skip
table(["ESS", "tau", "effective molecules", "weight of the top 5 graphs", "graphs that carry half of it",
       "mean QED"], rows)  # fmt: skip

# %%
_, carried, top = heaviest(target[10].log_weight.exp())
words = [f"{c:.2%}, QED {qed[i]:.2f}" for c, i in zip(carried[:5], top[:5], strict=True)]
run.figure(
    views.grid(train.subset(top[:5]), words, file_format="png").figure(),
    "heaviest_molecules",
    alt="Drawings of the five molecules with the most weight under the coldest payoff distribution.",
    see=f"at ESS 10 % these 5 molecules carry {carried[:5].sum():.1%} of the weight.",
)

# %%
run.metric("qed_base", qed_base, "QED", len(stable_made),
           f"mean QED over the samples with a value (stable by EDM's rule, in one piece); {how}")  # fmt: skip
qed_payoff = {}
for name in references:
    on = "training molecules" if name == "data" else f"the {n:,} base samples"
    for share, weighted in experiments.targets(pools[name]).items():
        qed_payoff[name, share] = float(weighted.expectation(pools[name].reward))
        if share < 100:
            run.metric(f"qed_payoff_{name}_ess{share}", qed_payoff[name, share], "QED", len(weighted.reward),
                       f"mean QED under weights exp(QED / tau) on {on}, p(N) kept, tau such that the ESS is "
                       f"{share} % of those with a value")  # fmt: skip

# %%
for share in shares:
    free = model.weigh(train, qed, tau[share], keep_sizes=False)
    gain = float(free.expectation(qed)) - qed_payoff["data", 100]
    kept = qed_payoff["data", share] - qed_payoff["data", 100]
    atoms = float(free.expectation(strata)) - float(strata[valued].double().mean())
    print(f"ESS {share} %: had sizes been tilted, gain {gain:.4f} instead of {kept:.4f} "
          f"({kept / gain:.0%} of it kept), {atoms:+.2f} atoms a molecule")  # fmt: skip

# %% [markdown]
# ### Exercise 09.3: find the temperature
# Write `find_tau(reward, share)`: `reward` is a float64 tensor (n,) of finite values, `share` between
# 0 and 1. Return the $\tau$ at which $\mathrm{ESS}/n$ is `share` (no strata), as a float, to 0.5 %.
#
# <details><summary>Hint 1</summary>
#
# ESS grows with $\tau$. Halve an interval until it is short enough, best on a logarithmic scale.
#
# <details><summary>Hint 2</summary>
#
# $e^{1000}$ is not a number a computer has. The weights do not change if you subtract the largest
# reward first: `torch.softmax(reward / tau, 0)` does.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 09.3
def find_tau(reward, share):
    """Return the temperature at which the effective sample size is a given share."""
    # STUB: return None
    ### BEGIN SOLUTION
    spread = float(reward.std())
    cold, hot = 1e-4 * spread, 1e4 * spread
    for _ in range(60):
        middle = (cold * hot) ** 0.5
        weight = torch.softmax(reward / middle, 0)
        if float(1 / weight.square().sum()) < share * len(reward):
            cold = middle
        else:
            hot = middle
    return hot
    ### END SOLUTION

# %% tags=["check"]
exercises.check("09.3", find_tau)

# %% [markdown]
# ### Exercise 09.4: a reward of your own, and its ESS foretold
# Write `my_reward(mol)`: an RDKit molecule in, a number out. Anything RDKit knows will do. Choose a
# temperature `my_tau`, and **before** weighing anything foretell the share $\mathrm{ESS}/n$ on real molecules ($n$: those with a value; no strata),
# `my_forecast` between 0 and 1. You may look at the reward's standard deviation: `rewards.per_molecule(my_reward)(qm9.subset(range(0, 3921, 8)))` gives
# values, NaN for "no value". The check weighs other real molecules, and allows an error of 0.1. Choose a share of 0.1 to 0.9.
#
# <details><summary>Hint 1</summary>
#
# `from rdkit.Chem import Crippen`, then `Crippen.MolLogP(mol)`: how much it prefers fat to water.
#
# <details><summary>Hint 2</summary>
#
# The Gaussian formula above. If your reward is far from Gaussian, weigh by hand.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 09.4
def my_reward(mol):
    """Return a number for an RDKit molecule (hydrogens implicit)."""
    # STUB: return None
    ### BEGIN SOLUTION
    from rdkit.Chem import Crippen

    return Crippen.MolLogP(mol)
    ### END SOLUTION


# STUB: my_tau, my_forecast = None, None
### BEGIN SOLUTION
values = rewards.per_molecule(my_reward)(qm9.subset(range(0, 3921, 8)))
my_spread = float(values[torch.isfinite(values)].std())
my_tau = 1.2 * my_spread
my_forecast = float(np.exp(-((my_spread / my_tau) ** 2)))
### END SOLUTION

# %% tags=["check"]
exercises.check("09.4", my_reward, my_tau, my_forecast)

# %% [markdown]
# ### Exercise 09.5: tilt or keep the sizes
# Write `payoff_weights(reward, tau, sizes, keep)`: `reward` (n,) float64, finite; `sizes` (n,) integers. Return n weights that sum to 1:
# with `keep` true those of this section, each size with the share it has; else $e^{r/\tau}$ over all samples, whatever their size.
#
# <details><summary>Hint 1</summary>
#
# Free: `torch.softmax(reward / tau, 0)`. Kept: the same for the samples of one size, times that size's share.
#
# <details><summary>Hint 2</summary>
#
# `for size in sizes.unique(): here = sizes == size`, and `here.double().mean()` is the share.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 09.5
def payoff_weights(reward, tau, sizes, keep):
    """Return the payoff's weights (n,), sizes kept or tilted."""
    # STUB: return None
    ### BEGIN SOLUTION
    if not keep:
        return torch.softmax(reward / tau, 0)
    weight = torch.zeros_like(reward)
    for size in sizes.unique():
        here = sizes == size
        weight[here] = here.double().mean() * torch.softmax(reward[here] / tau, 0)
    return weight
    ### END SOLUTION

# %% tags=["check"]
exercises.check("09.5", payoff_weights)

# %% [markdown]
# ### When the reward is a guess
# QED is computed. Many rewards are not: a property of a new molecule is the word of a network that learned from data. The payoff then follows
# that *word*, mistakes included. Here is the smallest such network. Six numbers, fitted by least squares to the training
# molecules, guess QED from how many atoms of each element there are.
#
# **Predict.** We tilt by the guess, colder and colder, sizes kept, and watch the true QED. Once on the training molecules, once on
# the base model's samples. Does the true QED rise with the guess in both?

# %%
def guess_inputs(molecules):
    """(n, 6): a one, then the number of atoms of each element."""
    return np.column_stack([np.ones(len(molecules)), metrics.element_counts(molecules)])


of_train = train.subset(valued.numpy())
slope = np.linalg.lstsq(guess_inputs(of_train), qed[valued].numpy(), rcond=None)[0]
guesses, steps_down = {}, np.geomspace(0.9, 0.05, 12)
print("QED for each atom:", ", ".join(f"{data.SYMBOLS[z]} {b:+.4f}" for z, b in zip(data.ELEMENTS, slope[1:], strict=True)))
for name in references:
    has = torch.isfinite(pools[name].reward)
    true, sizes = pools[name].reward[has].double(), pools[name].strata[has]
    molecules = pools[name].x0.subset(has.numpy())
    guess = torch.from_numpy(guess_inputs(molecules) @ slope)
    weights = [payoff.log_weights(guess, payoff.temperature_for_ess(guess, share, sizes), strata=sizes).exp()
               for share in steps_down]  # fmt: skip
    guesses[name] = {"molecules": molecules, "real": true, "guess": guess, "weights": weights}
    inside = [torch.cat([v[sizes == n] - v[sizes == n].mean() for n in sizes.unique()]) for v in (guess, true)]
    within_size = np.corrcoef(*inside)[0, 1]
    print(f"{name}: correlation of guess and QED {np.corrcoef(guess, true)[0, 1]:.2f}, inside a size {within_size:.2f}")
    assert (within_size > 0.2) == (name == "data") and (within_size < 0) == (name == "model")  # what the text below says

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
for ax, (name, found) in zip(axes, guesses.items(), strict=True):
    for key, label in (("guess", "the guess"), ("real", "QED")):
        means = [float(w @ found[key]) for w in found["weights"]]
        ax.plot([1, *steps_down], [float(found[key].mean()), *means], "o-", ms=3, label=label)
    ax.set(xscale="log", xlabel="ESS / samples with a value (colder to the right)", title=f"reference {name}")
    ax.invert_xaxis()
axes[0].set_ylabel("mean (QED)")
axes[0].legend()
run.figure(fig, "a_guess_hacked",
           alt="Two panels against falling effective share. On the training molecules guess and QED rise together. On the base "
               "model's samples the guess rises and QED falls.",
           see="on the molecules it was fitted to, the guess looks like a fair reward; on a model's own samples it is hacked "
               "from the first step on.")  # fmt: skip

# %%
near = int(np.argmin(abs(steps_down - 0.1)))  # an ESS of about 10 %
moves = {}
for name, found in guesses.items():
    w = found["weights"][near]
    moves[name] = [float(w @ found[key]) - float(found[key].mean()) for key in ("guess", "real")]
    counts = metrics.element_counts(found["molecules"])
    nitrogens = counts[:, data.ELEMENTS.index(7)].astype(float)
    torch.manual_seed(0)
    few = found["molecules"].subset(torch.multinomial(w, 1000, replacement=True).numpy())
    before = found["molecules"].subset(np.linspace(0, len(counts) - 1, 1000).astype(int))
    has_amine = [with_amine(metrics.smiles_edm(part)[0]) for part in (before, few)]
    print(f"{name}, ESS {steps_down[near]:.0%}: the guess {moves[name][0]:+.4f}, QED {moves[name][1]:+.4f}; nitrogen atoms a molecule "
          f"{nitrogens.mean():.2f} to {float(w @ torch.from_numpy(nitrogens)):.2f}, with an amine NH2 {has_amine[0]:.0%} to {has_amine[1]:.0%}")
run.metric("qed_change_hacked_guess", moves["model"][1], "QED", len(guesses["model"]["real"]),
           "change of mean QED when the base's samples are weighed by a guess of QED from element counts (least squares on the "
           "training molecules), at an ESS of about 10 %, sizes kept")  # fmt: skip
run.metric("guess_change_hacked_guess", moves["model"][0], "QED", len(guesses["model"]["real"]),
           "change of the mean guess under the same weights")  # fmt: skip
assert min(moves["data"]) > 0 and moves["model"][0] > 0.02 and moves["model"][1] < -0.01
assert has_amine[1] > 1.5 * has_amine[0]

# %% [markdown]
# Large molecules have both a higher guess and a higher QED, so the correlation over all sizes says little. Sizes are kept, so what counts is the
# correlation *inside* a size, and on the base's samples that is below zero: QED falls from the first step on. Why is it? In QM9 molecules with nitrogen
# have a high QED, so the fit pays for nitrogen. The base model makes nitrogen of a kind that QM9 hardly has, amines (above), whose QED is low. The fit
# has never seen enough of them to know. A tilt looks for exactly such samples: the guess is highest where it is most wrong. That is **reward hacking**,
# and neither the guess, nor its error on the data, nor a correlation over all sizes, nor the ESS shows it. What shows it is a judge that the reward was
# not made of: here QED itself, for a property a second network trained on other data, or a computation.
#
# ### Exercise 09.6: catch a hacked reward
# Write `hacked_from(proxy, judge, taus)`: the reward that is tilted by and the judge's word on the same n samples, both (n,) float64, and falling
# temperatures. Return the first temperature at which the judge's weighted mean is *below* that of the temperature before (for the first:
# the plain mean), or 0 if it never is. No sizes.
#
# <details><summary>Hint 1</summary>
#
# The weights come from the proxy alone: `torch.softmax(proxy / tau, 0)`. The judge is only averaged with them.
#
# <details><summary>Hint 2</summary>
#
# Keep the last mean: `last = judge.mean()`, then go through `taus`.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 09.6
def hacked_from(proxy, judge, taus):
    """Return the first temperature at which the judge's mean falls, or 0."""
    # STUB: return None
    ### BEGIN SOLUTION
    last = float(judge.mean())
    for tau in taus:
        mean = float(torch.softmax(proxy / tau, 0) @ judge)
        if mean < last:
            return tau
        last = mean
    return 0
    ### END SOLUTION

# %% tags=["check"]
exercises.check("09.6", hacked_from)

# %% [markdown]
# ## 4. Train toward the payoff
#
# **Question.** The weights are there. How does a network come to draw such molecules by itself?
#
# By the loss it was trained with, on data that follow $p^*$ instead of the training data (notebook
# 07). Draw $t$ and $\varepsilon$ as always; let the molecule come from the weighted ones:
#
# <!-- eq: weighted-denoising-loss | derived here -->
# $$
# L(\theta) = \mathbb E_{x_0 \sim p^*,\, t,\, \varepsilon}
# \tfrac1{9N} \left\| \varepsilon - \varepsilon_\theta(x_t, t) \right\|^2
# \approx \sum_i w_i\; \mathbb E_{t, \varepsilon}\;
# \tfrac1{9 N_i} \left\| \varepsilon - \varepsilon_\theta\big(x_t^{(i)}, t\big) \right\|^2 .
# $$
#
# ($9N$ is the number of entries of $x_t$: a mean, so that large molecules do not weigh more.) The reward
# appears in the $w_i$ only. Nothing is differentiated through it, nor through the sampler.
# QED was computed once a molecule; thousands of steps reuse it. Rather than multiply each loss by $w_i$
# we draw molecules *in proportion* to $w_i$: same mean, and no time is spent on weight 0. A batch
# draws its size first, then molecules of it.

# %%
index = payoff.systematic_resample(target[40].log_weight, 20_000)
print(f"mean QED: weighted {qed_payoff['data', 40]:.4f}, of 20,000 molecules drawn by weight "
      f"{qed[index].mean():.4f}")  # fmt: skip

# %% [markdown]
# One round of this is reward-weighted regression toward a fixed target. Colder targets, with fewer
# effective samples, need further rounds (`rounds > 1`, notebook 07).
#
# This is the whole call, on the reference *data*, for one temperature and few steps.

# %%
guided = copy.deepcopy(base)
for round_ in rgdm.fit(
    guided,
    diffusion,
    payoff.data_sampler(train, lambda molecules: qed, strata),
    tau[40],
    steps=settings.fit_steps,
    batches=model.weighted_batches(settings.fit_batch),
    loss=partial(diffusion.loss, times=model.training_times()),
    optimizer=training.muon,
    warmup=10,
):
    print(f"{round_.step} steps, ESS {round_.ess:,.0f}, payoff QED {round_.reward:.4f}, "
          f"{round_.evaluations:,} rewards")  # fmt: skip

# %% [markdown]
# **Predict.** A short run and few samples: can you tell the two models apart? The standard error of a
# mean is the standard deviation over $\sqrt n$.

# %%
live_sizes = model.draw_sizes(train, settings.live)
means, errors = [], []
for name, network in (("base", base), ("guided", guided)):
    torch.manual_seed(SEED)  # the same starting noise for both
    few = model.sample_molecules(network, live_sizes, steps=settings.live_steps)
    value = rewards.qed(few)
    value = value[torch.isfinite(value)]
    means.append(float(value.mean()))
    errors.append(float(value.std()) / len(value) ** 0.5)
    print(f"{name}: {len(value)} of {len(few)} with a value, QED {means[-1]:.3f} "
          f"± {errors[-1]:.3f} ({settings.live_steps} sampling steps)")  # fmt: skip
print(f"difference {means[1] - means[0]:.3f} ± {np.hypot(*errors):.3f}; "
      f"the whole gap to the payoff is {qed_payoff['data', 40] - qed_base:.3f}")  # fmt: skip

# %% [markdown]
# A difference below two standard errors says nothing. With a few dozen molecules (preset quick) only a large shift would show, and a few dozen steps
# make no large shift. A claim about a mean needs its $n$. So now the long run.

# %% [markdown]
# ## 5. The long experiment
#
# `python -m rgdm_lib.course experiment molecules-qed --preset laptop` does this with thousands of steps for
# each temperature, and ships networks and samples. Each network starts where the warmer one ended. The target
# is fixed by the weights, so that the start only saves steps.
#
# The first network of all has its reward switched off: molecules with a value, equal weights. That is the
# **control**. It shows what re-training alone moves, which no reward may take credit for. The first
# temperature starts from it.
#
# **Question.** Did the model reach the payoff distribution, or only move in its direction?
#
# <!-- definition -->
# $$
# \text{gap closed} = \frac{\mathrm{QED}_{\text{model}} - \mathrm{QED}_{\text{base}}}
# {\mathrm{QED}_{\text{payoff}} - \mathrm{QED}_{\text{base}}} .
# $$
#
# The goal is 1. More is *not* better: the target is a distribution, and a model beyond it has left
# the reference further than $\tau$ allows. The same fraction counted from the control stands beside it.

# %%
runs = {name: experiments.shipped_seeds(name) for name in references}
runs = {name: seeds for name, seeds in runs.items() if seeds}
print("training seeds that ship:", ", ".join(f"reference {k}: {v}" for k, v in runs.items()))


def gap_closed(molecules, name, share, start=qed_base):
    """How far the mean QED went from the start to the payoff's."""
    return float((np.nanmean(molecules.property("qed")) - start) / (qed_payoff[name, share] - start))


def by_sampling(molecules, name, share, start=qed_base):
    """Standard error of the gap closed."""
    own = molecules.property("qed")
    return float(np.nanstd(own) / np.isfinite(own).sum() ** 0.5 / (qed_payoff[name, share] - start))


all_sets = {
    (name, seed): {share: experiments.load_guided(name, share, seed) for share in experiments.SHARES}
    for name, seeds in runs.items()
    for seed in seeds
}
rows = []
for (name, seed), sets in all_sets.items():
    control = np.nanmean(sets[100].property("qed"))
    for share in shares:
        guided = sets[share]
        rows.append([name, seed, f"{share} %", f"{np.nanmean(guided.property('qed')):.4f}", f"{qed_payoff[name, share]:.4f}",
                     f"{gap_closed(guided, name, share):.2f}", f"{gap_closed(guided, name, share, control):.2f}",
                     f"{by_sampling(guided, name, share):.2f}"])  # fmt: skip
table(["reference", "training seed", "ESS", "QED", "payoff's QED", "gap closed, from the base",
       "from the control", "± by sampling"], rows)  # fmt: skip

# %%
for (name, seed), sets in all_sets.items():
    control = float(np.nanmean(sets[100].property("qed")))
    for share in shares:
        moved = float(np.nanmean(sets[share].property("qed"))) - qed_base
        print(f"reference {name}, seed {seed}, ESS {share} %: QED moved by {moved:+.4f}, "
              f"the control, without any reward, by {control - qed_base:+.4f}")  # fmt: skip

    if name == "data":  # what the text below says
        assert abs(control - qed_base) < 0.005
        assert all(0.25 < gap_closed(sets[share], name, share) < 0.65 for share in shares)
        assert qed_base < np.nanmean(sets[80].property("qed")) < np.nanmean(sets[40].property("qed"))

copied = experiments.load_guided("model", 100, 0).property("qed")
print(f"control of the reference model: trained on samples of QED {qed_base:.4f}, it makes {np.nanmean(copied):.4f}; "
      f"with a value {np.isfinite(copied).mean():.0%} (base {np.isfinite(made_qed).mean():.0%})")  # fmt: skip
assert np.nanmean(copied) < qed_base - 0.01 and np.isfinite(copied).mean() > np.isfinite(made_qed).mean() + 0.03

# %% [markdown]
# **Read it from the control.** With the reference *data* it stands nearly still. So re-training alone does nothing to QED, and what the guided models
# moved, they moved for the reward: in the right direction, in the right order, and a third to three fifths of the way to their payoff. (Colder ones
# have had more steps, for each starts from the warmer one: the control 8,000 batches, the student of 40 % 24,000 in all. Whether steps are what is
# missing is tried further down.) The weights are not to blame: batches drawn by them have the payoff's QED to the third digit, see section 4. What is
# missing is missing in the network. A figure further down shows where.
#
# With the reference *model* the control does move. It trained on the base's own stable samples, makes more of them
# stable, and ends below their QED. A copy of one's own samples keeps their mistakes and adds new ones. A guided model
# of this reference has to make up for that loss first, and the gap counted from the base hides it. Real molecules
# are the better reference here; where the model's samples are all there is, count from the control.

# %% [markdown]
# ### The strength
#
# The guided models, *students* of their payoff from here on, stopped on the way, but they went in the right direction. Must they train for longer? What
# a student has learned is a difference: its denoiser minus the base's. A difference can be multiplied when we sample:
#
# <!-- eq: strength | Jin et al. 2025, arXiv 2508.21016; the form is that of Ho & Salimans 2022, eq. 6 -->
# $$
# \varepsilon_s(x_t, t) = \varepsilon_{\text{base}}(x_t, t)
# + s \,\big( \varepsilon_\theta(x_t, t) - \varepsilon_{\text{base}}(x_t, t) \big) .
# $$
#
# The *strength* $s = 0$ is the base, $s = 1$ the student. If the student has learned one and the same fraction $f$ of the
# tilt at all $x_t$ and $t$, then $s = 1/f$ is the target exactly. Nothing promises that the fraction is the same
# everywhere, and a *finished* student at $s > 1$ would in general follow no payoff at any temperature (03 showed it for
# classifier-free guidance, which has this form). So this has to be judged by whole laws. It costs a second network a
# step. In the library: `rgdm_lib.strength.strengthen(guided, base, s)`.
#
# Which $s$? The payoff distribution is the nearest to $p_{\text{ref}}$ of all with its mean reward; $1/\tau$ is the
# multiplier that sets this mean (05). We set it once more. Take the samples at strength 1, with mean $m_1$, others at
# some $s'$ beyond the aim, with mean $m_{s'}$, and the line through both. The payoff's mean $m^*$ is known, from the weights:
#
# <!-- eq: matching-strength | derived here -->
# $$
# s = 1 + (s' - 1)\, \frac{m^* - m_1}{m_{s'} - m_1} .
# $$
#
# Rewards bend away from a line, so this $s$ misses by a little. Samples at $s$, with mean $m_s$, say by how much, and
# the slope of the same line what mends it:
#
# <!-- eq: step-back | derived here -->
# $$
# s^* = s + (m^* - m_s)\, \frac{s' - 1}{m_{s'} - m_1} .
# $$
#
# These sets need their rewards: that is the price in evaluations. Judged are *fresh* samples at $s^*$, from other noise.
# (`python -m rgdm_lib.course experiment molecules-strength`.) In what follows, $s$ is that final strength. (What ships at 80
# and 10 % stopped at the line, which had met the mean well enough; at 40 % it had gone too far by 5 % of the gap.)
#
# **Predict.** The mean is set now, so a gap closed of 1 proves little by itself. What could still be wrong? The shape of
# the histogram, stability, the number of different molecules. Guess which of them gives way.

# %%
def ks_to_payoff(sample, name, share):
    """KS distance of QED to the payoff's: the largest gap between the two cumulative curves."""
    pool = pools[name]
    weight = targets[name][share].log_weight.exp().numpy()
    return metrics.ks_distance(sample, pool.reward.numpy(), weights_b=weight)


targets = {name: experiments.targets(pools[name]) for name in runs}
final_sets, rows = {}, []
for (name, seed), sets in all_sets.items():
    final_sets[name, seed] = dict(sets)
    for share in shares:
        stronger = experiments.load_strengthened(name, share, seed)
        if stronger is None:
            continue
        final_sets[name, seed][share] = stronger
        raw, values = sets[share].property("qed"), stronger.property("qed")
        distance = [ks_to_payoff(sample, name, share) for sample in (raw, values)]
        with_value = [np.isfinite(sample).mean() for sample in (raw, values)]
        rows.append([name, seed, f"{share} %", f"{stronger.property('strength')[0]:.2f}",
                     f"{gap_closed(sets[share], name, share):.2f}",
                     f"**{gap_closed(stronger, name, share):.2f}** ± {by_sampling(stronger, name, share):.2f}",
                     f"{distance[0]:.3f}", f"**{distance[1]:.3f}**", *(f"{v:.1%}" for v in with_value)])  # fmt: skip
        assert distance[1] < 0.6 * distance[0]
        assert (with_value[1] > with_value[0] - 0.03) == (share < 80)
table(["reference", "training seed", "ESS", "strength s", "gap closed at 1", "at s", "KS to the payoff at 1",
       "at s", "with a value at 1", "at s"], rows)  # fmt: skip

# %% [markdown]
# One number brings the mean to the payoff's, and most of the histogram with it: look at the two columns of KS, and
# at the spikes in the figure below, which nobody fitted. So in QED what the student had learned was mostly the tilt, only too little of it: KS stays at
# two to four times its floor.
#
# It is no free lunch. A multiplier cannot tell the tilt from the student's mistakes. The student of ESS 80 % had the fewest steps
# and needs the largest strength; there the share with a value falls by 9 points, at 40 and 10 % by less than 3. And the table of atoms further down
# shows one mistake grown: nitrogen goes past the payoff's share, the amines of section 3. A strength up to 2 or 3 is a repair. If you need more,
# something was not learned.
#
# From here on we look at one reference, the one whose models come closer to their payoff at 40 %, at
# one training seed (`SEED` picks it), and at the strength $s$ (a model without one is shown at 1). A KS
# distance has a *floor*: what an exact sample of the same size would score.

# %%
def miss(name):
    """Mean distance of the gap closed at ESS 40 % from 1."""
    return np.mean([abs(1 - gap_closed(final_sets[name, s][40], name, 40)) for s in runs[name]])


best = min(runs, key=miss)
seed = runs[best][SEED % len(runs[best])]
sets = final_sets[best, seed]
pool, target = pools[best], targets[best]
reference, qed, strata, tau = pool.x0, pool.reward, pool.strata, experiments.temperatures(pool)
valued = torch.isfinite(qed)
values = {share: sets[share].property("qed") for share in experiments.SHARES}
has = {share: np.isfinite(values[share]) for share in experiments.SHARES}
m = min(len(molecules) for molecules in sets.values())  # uniqueness needs equal numbers
scores = {share: judged(sets[share], m) for share in experiments.SHARES}
base_m = judged(samples, min(m, n))


def ks_floor(molecules, name, share, repeats=20):
    """What exact samples of the payoff, as many as have a value here, score in KS."""
    weight, count = targets[name][share].log_weight.exp(), int(np.isfinite(molecules.property("qed")).sum())
    exact = (pools[name].reward[torch.multinomial(weight, count, replacement=True)] for _ in range(repeats))
    return float(np.mean([ks_to_payoff(sample.numpy(), name, share) for sample in exact]))


ks = {share: (ks_to_payoff(values[share], best, share), ks_floor(sets[share], best, share)) for share in experiments.SHARES}
print(f"reference {best}, training seed {seed}; quality below on {m:,} samples each")

# %%
def model_row(name, qeds, score, distance):
    lenient = f"{score['valid_connected_edm_or_determine']:.1%}"
    return [name, f"{np.nanmean(qeds):.4f}", f"{score['mol_stable_edm']:.1%}", lenient,
            f"{score['valid_edm']:.1%}", f"{score['unique_edm']:.1%}",
            f"{score['memorisation_ratio']:.2f}", distance]  # fmt: skip


graphs = np.array(metrics.smiles_edm(reference)[0], dtype=object)
rows = [model_row("base", made_qed, base_m, "")]
rows.append(model_row("control (reward off)", values[100], scores[100], f"{ks[100][0]:.3f}"))
for share in shares:
    exact = torch.multinomial(target[share].log_weight.exp(), m, replacement=True).numpy()
    rows.append([f"payoff, ESS {share} %", f"{qed_payoff[best, share]:.4f}", "100 %", "100 %", "100 %",
                 f"{len(set(graphs[exact])) / m:.1%}", "", f"{ks[share][1]:.3f} (floor)"])  # fmt: skip
    rows.append(model_row(f"**guided, ESS {share} %**", values[share], scores[share], f"{ks[share][0]:.3f}"))
table(["", "mean QED", "stable", "a graph by the lenient rule", "valid", f"unique of {m:,}",
       "memorisation", "KS to its payoff"], rows)  # fmt: skip

# %% [markdown]
# Rows "payoff" are what a perfect student would score: it draws from the reference's molecules, so it repeats
# them, and what it draws has a value (no value means weight 0). Compare *guided* with the row above it, with the control, and
# only then with the base.

# %%
for share in shares:
    closed = {}
    for name, seeds in runs.items():
        key = (name, seeds[SEED % len(seeds)])
        start = np.nanmean(all_sets[key][100].property("qed"))
        for metric, own, at in (("qed_gap_closed", final_sets[key], "the strength that meets the payoff's mean, set "
                                 "on other samples (1 where none ships)"),
                                ("qed_gap_closed_at_1", all_sets[key], "strength 1")):  # fmt: skip
            where = (
                f"of a guided model (RGDM, reference {name}, ESS {share} %) at {at}, "
                f"{len(own[share]):,} samples, {model.SAMPLING_STEPS} of T = {diffusion.T} sampling steps spaced "
                "quadratically, eta = 1; values: stable by EDM's rule, in one piece"
            )
            count = int(np.isfinite(own[share].property("qed")).sum())
            closed[metric, name] = gap_closed(own[share], name, share)
            run.metric(f"{metric}_{name}_ess{share}", closed[metric, name], "1", count,
                       f"(QED_model - QED_base) / (QED_payoff - QED_base) {where}")  # fmt: skip
        own = all_sets[key]
        run.metric(f"qed_gap_closed_from_control_{name}_ess{share}",
                   gap_closed(own[share], name, share, start), "1", count,
                   f"(QED_model - QED_control) / (QED_payoff - QED_control) {where}")  # fmt: skip
    for metric, at in (("qed_gap_closed", "the strength that meets the payoff's mean, set on other samples"),
                       ("qed_gap_closed_at_1", "strength 1")):  # fmt: skip
        run.metric(f"{metric}_ess{share}", closed[metric, best], "1", len(sets[share]),
                   f"(QED_model - QED_base) / (QED_payoff - QED_base) at {at}, of the better of the references data and "
                   "model: the one whose gap at ESS 40 % is nearer to 1 over the training seeds")  # fmt: skip

# %%
where = f"of the guided model at ESS 40 %, the better reference, at its strength; equal numbers of samples ({m:,})"
run.metric("qed_ks_ess40", ks[40][0], "1", int(has[40].sum()),
           "KS distance of QED, samples with a value, to the payoff's weighted reference; the floor is the "
           "mean of 20 exact samples of the same size", floor=ks[40][1])  # fmt: skip
run.metric("qed_ks_excess_ess40", ks[40][0] - ks[40][1], "1", int(has[40].sum()),
           "qed_ks_ess40 minus its floor")  # fmt: skip
run.metric("validity_change_ess40", scores[40]["valid_edm"] - base_m["valid_edm"], "1", m,
           f"share valid by EDM's bonds minus the base model's; {where}")  # fmt: skip
run.metric("stability_change_ess40", scores[40]["mol_stable_edm"] - base_m["mol_stable_edm"], "1", m,
           f"share of stable molecules minus the base model's; {where}")  # fmt: skip
run.metric("stability_change_control", scores[100]["mol_stable_edm"] - base_m["mol_stable_edm"], "1", m,
           "share of stable molecules of the control minus the base model's; equal numbers")  # fmt: skip
run.metric("unique_ess40", scores[40]["unique_edm"], "1", m,
           f"distinct SMILES over valid ones, EDM's bonds, largest fragment; {where}")  # fmt: skip
run.metric("memorisation_ratio_ess40", scores[40]["memorisation_ratio"], "1", m,
           "median distance to the nearest training molecule over that of "
           f"{len(held_out)} held-out molecules; {where}")  # fmt: skip

# %% [markdown]
# **Predict.** Draw reference, payoff and guided as histograms, for each temperature. Where will the model
# miss: at the mean, or at the upper end?

# %%
fig, axes = plt.subplots(1, 4, figsize=(11, 3), sharey=True)
for ax, share in zip(axes, experiments.SHARES, strict=True):
    weight = target[share].log_weight[valued].exp()
    ax.hist(qed[valued], bins, density=True, color="0.85", label="reference")
    ax.hist(qed[valued], bins, weights=weight, density=True, histtype="step", lw=1.8, label="payoff")
    ax.hist(values[share][has[share]], bins, density=True, histtype="step", lw=1.8, label="model at s")
    if share < 100:
        raw = all_sets[best, seed][share].property("qed")
        ax.hist(raw[np.isfinite(raw)], bins, density=True, histtype="step", ls=":", lw=1.4, label="model at 1")
    ax.set(xlabel="QED", title="control" if share == 100 else f"ESS {share} %")
axes[0].set_ylabel("density (1 / QED)")
axes[1].legend(fontsize=8, loc="upper left")
run.figure(
    fig,
    "qed_histograms",
    alt="Four panels of QED histograms, control and ESS 80, 40 and 10 percent: reference in grey, payoff "
    "and model as outlines, the model at strength 1 dotted.",
    see="blue is where the model should be, orange where it is, dotted green where it was at strength 1.",
)

# %% [markdown]
# ### From the corrected base
#
# **Question.** The guided models start from the base, mistakes and all. Section 3 knows how to go away from these. Can we have both?
#
# Both are directions from the base: one away from its copy, one toward the reward. We add them:
#
# <!-- eq: two-directions | derived here -->
# $$
# \varepsilon(x_t, t) = \varepsilon_{\text{base}}
# + (w - 1)\, \big(\varepsilon_{\text{base}} - \varepsilon_{\text{own}}\big)
# + s\, \big(\varepsilon_\theta - \varepsilon_{\text{base}}\big) .
# $$
#
# $w = 3$ is section 3's number; $s = 0$ is the corrected base. Where the base is a Gaussian and each of the two differs from it by a shift of the mean,
# the sum samples the Gaussian shifted by both, exactly (the test of this equation). Molecules are no Gaussian. So again: judge by whole laws. $s$ is
# set as before, on trials, so that the mean meets the payoff's; judged are fresh samples. Three networks a step. (`experiment
# molecules-corrected-qed`.)
#
# **Predict.** Does the smaller mistake come at the price of the tilt?

# %%
pairs = {share: {which: pair for which in experiments.SEEDS if (pair := correction.load_toward(share, which)) is not None}
         for share in shares}  # fmt: skip
toward = {share: found[0] for share, found in pairs.items() if found}
no_reward = correction.load_control()
start_at = float(np.nanmean(corrected.property("qed")))
few = min(len(molecules) for pair in toward.values() for molecules in pair)


def nitrogen_off(molecules, share):
    """Nitrogen's share of the atoms, minus the payoff's (of what has a value)."""
    own = molecules.subset(np.isfinite(molecules.property("qed")))
    weight = targets["data"][share].log_weight.exp().numpy() * metrics.size_weight(train, own)
    return float(element_shares(own)[nitrogen] - element_shares(train, weight)[nitrogen])


smiles_of_train = np.array(metrics.smiles_edm(train)[0], dtype=object)


def of_all(molecules):
    """Shares of the whole set that are stable and valid, computed once."""
    if len(molecules) == few:
        return judged(molecules, few)
    key = id(molecules), "all"
    if key not in scored:
        valid = [text is not None for text in metrics.smiles_edm(molecules)[0]]
        shares = {"mol_stable_edm": metrics.stability_edm(molecules)[0].mean(), "valid_edm": np.mean(valid)}
        scored[key] = molecules, shares
    return scored[key][1]


def on_the_way(name, molecules, share, strength):
    """A row of the table, and its numbers."""
    own = molecules.property("qed")
    score = judged(molecules, few) | of_all(molecules)  # uniqueness needs equal numbers, shares do not
    closed, chance = (measure(molecules, "data", share, start_at) for measure in (gap_closed, by_sampling))
    distance = ks_to_payoff(own, "data", share)
    off = nitrogen_off(molecules, share)
    row = [f"{share} %", name, f"{strength:.2f}", f"{np.nanmean(own):.4f}", f"{closed:.2f} ± {chance:.2f}", f"{distance:.3f}",
           *(f"{score[c]:.1%}" for c in ("mol_stable_edm", "valid_edm", "unique_edm")), f"{score['memorisation_ratio']:.2f}", f"{off:+.1%}"]
    return row, {"closed": closed, "chance": chance, "ks": distance, "off": off, **score}


rows, by_way, floors = [], {}, {}
for share, (at_one, at_own) in toward.items():
    kinds = {"corrected base": (corrected, 0.0), "toward the payoff": (at_one, float(at_one.property("strength")[0])),
             "**toward it, at s**": (at_own, float(at_own.property("strength")[0])),
             "from the base as it is, at s": (final_sets["data", 0][share], float(final_sets["data", 0][share].property("strength")[0]))}  # fmt: skip
    for name, (molecules, strength) in kinds.items():
        row, by_way[share, name] = on_the_way(name, molecules, share, strength)
        rows.append(row)
    floors[share] = ks_floor(at_own, "data", share)
    exact = torch.multinomial(targets["data"][share].log_weight.exp(), few, replacement=True).numpy()
    rows.append([f"{share} %", "the payoff itself", "", f"{qed_payoff['data', share]:.4f}", "1", f"{floors[share]:.3f} (floor)", "100 %", "100 %",
                 f"{len(set(smiles_of_train[exact])) / few:.1%}", "", "0"])  # fmt: skip
row, without = on_the_way("control (reward off)", no_reward, correction.CONTROL_AT, float(no_reward.property("strength")[0]))
rows.append(row)
table(["ESS", "", "s", "QED", "gap closed, from the corrected base", "KS to the payoff", "stable", "valid", f"unique of {few:,}",
       "memorisation", "nitrogen, minus the payoff's"], rows)  # fmt: skip
from_control = gap_closed(toward[40][1], "data", 40, float(np.nanmean(no_reward.property("qed"))))
print(f"ESS 40 %, gap closed counted from the control: {from_control:.2f}")
run.metric("qed_gap_closed_corrected_control", without["closed"], "1", len(no_reward), "(QED_control - QED_corrected base) / (QED_payoff - "
           "QED_corrected base), ESS 40 %: training without a reward, its direction from the corrected base at the strength of the guided model's")  # fmt: skip
run.metric("qed_gap_closed_corrected_from_control_ess40", from_control, "1", len(toward[40][1]),
           "(QED_model - QED_control) / (QED_payoff - QED_control), the control from the corrected base at the same strength, training seed 0")  # fmt: skip

# %%
for share in toward:  # what the text below says
    first, both, alone = (by_way[share, name] for name in ("toward the payoff", "**toward it, at s**", "from the base as it is, at s"))
    assert (1.3 < first["closed"] < 1.5 if share == 80 else 0.4 < first["closed"] < 0.65) and abs(both["closed"] - 1) < 0.1
    assert (both["ks"] - floors[share] < 0.02 and both["ks"] < alone["ks"]) == (share > 10)
    assert both["mol_stable_edm"] > alone["mol_stable_edm"] + 0.1 and both["valid_edm"] > alone["valid_edm"]
    assert both["unique_edm"] < alone["unique_edm"] and 0 < both["off"] < alone["off"]
    assert both["mol_stable_edm"] > by_way[share, "corrected base"]["mol_stable_edm"] + 0.015
assert abs(without["closed"]) < 0.08 and without["mol_stable_edm"] > by_way[40, "corrected base"]["mol_stable_edm"] + 0.015

# %% [markdown]
# No. The directions hardly disturb each other. At $s = 1$ a little more than half of the gap is closed at 40 and 10 %, as before; at 80 % the trial was at the $s$ that
# the model had needed from the base as it is, and that was 1.4 times as far as it should go. At the strength that was set to meet the
# mean it is 1.03 of the gap at ESS 80 %, 0.99 at 40 % and 0.95 at 10 %. At 80 and 40 % the KS distance of QED's whole law is within 0.02 of what an exact sample of this size
# scores, nearer than from the base as it is; at 10 % it is off by 0.03, and no nearer than from there. And 84, 86 and 89 % of the molecules are stable where 62, 71 and 76 %
# were, more than of the corrected base (82 %): the correction outlives the tilt. It helps most at 80 %, where the largest multiplier had done most harm. Nitrogen is still past the
# payoff's share, by less.
#
# The control had the first 8,000 batches of that chain, without a reward, and is heeded as strongly as the model at 40 %. It leaves QED where it was, to 0.03 of the gap, within chance. But
# 85 % of its molecules are stable, too: that part of the rise needs no reward.
#
# What it costs: three networks a step, and variety. At 80 % one sample in nine repeats another one, at 40 % one in five, at 10 % one in two, more than from the base as it is. But
# look at the rows of the payoff itself: it is a law on 3,136 molecules, of which few have a high QED, and a sample of it repeats itself more often
# still. So this alone is no fault. That the samples come closer to the training molecules (memorisation), at 10 % to a fifth of a held-out molecule's
# distance, can be read the same way: the payoff is a law on training molecules themselves, at distance 0.

# %% [markdown]
# **Other trainings.** That was training seed 0, whose network came down the chain of temperatures, 8,000 batches for each. Two more were trained from the
# base in one go, for 2,000 batches (the next section: more hardly close more of the gap). Their samples at the $s$ of seed 0 are a trial. A line from
# the corrected base through the trial gives each an $s$ of its own, and fresh samples are judged.
#
# **Predict.** Does the strength of one training suit the others? The ± says by how much 1,000 samples, at 80 % 1,500, leave the gap uncertain.

# %%
columns = {"closed": "gap closed", "ks": "KS to the payoff", "mol_stable_edm": "stable", "valid_edm": "valid", "unique_edm": f"unique of {few:,}"}
rows, trainings, tried = [], {}, {}
for share in toward:
    trainings[share], tried[share] = {}, {}
    for which, pair in pairs[share].items():
        for word, molecules, kept in zip(("a trial", "**judged**"), pair, (tried, trainings), strict=True):
            strength = float(molecules.property("strength")[0])
            found = kept[share][which] = on_the_way("", molecules, share, strength)[1]
            rows.append([f"{share} %", which, word, f"{strength:.2f}", f"{found['closed']:.2f} ± {found['chance']:.2f}",
                         *(f"{found[key]:.3f}" for key in list(columns)[1:])])  # fmt: skip
table(["ESS", "training seed", "", "s", *columns.values()], rows)

# %%
for share, found in trainings.items():
    each = {key: [one[key] for one in found.values()] for key in columns}
    size = min(len(judged_set) for _, judged_set in pairs[share].values())
    how_made = (f"eps_base + {correction.STRENGTH - 1:g} (eps_base - eps_own) + s (eps_guided - eps_base), reference data, ESS {share} %, s set on other "
                f"samples; {len(found)} training seeds, {size:,} samples each")  # fmt: skip
    count = size * len(found)
    for ending, value, word in (("", np.mean(each["closed"]), "mean over the training seeds"),
                                ("_worst", max(each["closed"], key=lambda x: abs(x - 1)), "of the training seed farthest from 1"),
                                ("_range", np.ptp(each["closed"]), "range over the training seeds")):  # fmt: skip
        run.metric(f"qed_gap_closed_corrected_ess{share}{ending}", float(value), "1", count,
                   f"(QED_model - QED_corrected base) / (QED_payoff - QED_corrected base), {word}; {how_made}")  # fmt: skip
    run.metric(f"qed_ks_excess_corrected_ess{share}", max(each["ks"]) - floors[share], "1", count,
               f"KS distance of QED to the payoff's, minus the mean of 20 exact samples of the same size, the largest over the training seeds; {how_made}",
               floor=floors[share])  # fmt: skip
    for metric, key in (("stability", "mol_stable_edm"), ("validity", "valid_edm"), ("uniqueness", "unique_edm")):
        run.metric(f"{metric}_change_corrected_ess{share}", min(each[key]) - by_way[share, "corrected base"][key], "1", count,
                   f"share stable, valid or unique among the valid, by EDM's rule, minus that of {len(corrected):,} samples of the corrected base (unique: "
                   f"of {few:,}), the smallest over the training seeds; {how_made}")  # fmt: skip

# %%
for share, found in trainings.items():  # what the text below says
    assert all(abs(one["closed"] - 1) < (0.15 if share == 80 else 0.1) for one in found.values())
    low, high = (0.75, 0.9) if share == 80 else (0.84, 0.95)
    assert all(low < tried[share][which]["closed"] < high for which in found if which)
    assert all(0.045 < one["chance"] < 0.07 for one in found.values()) or share < 80
stable = {share: [one["mol_stable_edm"] for one in found.values()] for share, found in trainings.items()}
assert all(later < stable[share][0] - 0.03 for share in (80, 40) for later in stable[share][1:])
assert all(0.78 < later < 0.83 for share in (80, 40) for later in stable[share][1:])
assert all(share > 0.83 for share in stable[10])

# %% [markdown]
# Nearly. At the other's $s$ the new trainings close 0.79 and 0.85 of the gap at 80 %, 0.85 to 0.94 of it at 40 and 10 %. At their own it is 0.93 and 0.87 at
# 80 %, 0.93 and 1.01 at 40 %, 0.96 and 0.97 at 10 %, where seed 0 had 1.03, 0.99 and 0.95. These differences hardly exceed what chance makes of so many samples: at
# 80 % a gap is uncertain by 0.06, and so is the trial that set its $s$. Their mean there is 0.94. What the samples can tell is stability: at 80 and 40 % 79 to 82 % of
# the molecules, four to five points fewer than of seed 0, as many as of the corrected base or up to three points fewer. A short training learns the direction
# toward the reward, and holds molecules together less well. The next section's table says the same in its column *with a value*.

# %% [markdown]
# ### Would longer training do?
#
# **Question.** The students stopped on the way. Did they run out of time?
#
# So one of them, reference *data*, ESS 40 %, was trained again: from the base in one go, for 32,000 batches in place of 8,000 after 16,000 toward
# warmer targets, the learning rate held for the first half, then brought to 0. On the way 1,000 samples were drawn now and then, always from the same
# noise. (`experiment molecules-longer`.)
#
# **Predict.** Draw the curve: gap closed against batches. Where is it at 2,000, where at 32,000?

# %%
looks, end = longer.load_longer("_looks.npz"), longer.load_longer("_samples.npz")
at = looks.property("batches")
seen = {int(b): looks.subset(at == b) for b in np.unique(at)} | {int(end.property("batches")[0]): end}
rows, curve, halves = [], [], {}
for batches, molecules in {0: samples.subset(range(1000)), **seen}.items():
    own = molecules.property("qed")
    closed, chance = (measure(molecules, "data", 40) for measure in (gap_closed, by_sampling))
    with_value = molecules.subset(np.isfinite(own))
    known = np.isin(metrics.smiles_edm(with_value)[0], list(in_qm9))
    halves[batches] = [float(with_value.property("qed")[part].mean()) for part in (known, ~known)]
    curve.append((batches, closed, chance))
    rows.append([f"{batches:,}", f"{closed:.2f} ± {chance:.2f}", f"{len(with_value) / len(own):.0%}", f"{ks_to_payoff(own, 'data', 40):.3f}",
                 f"{known.mean():.0%}", *(f"{v:.3f}" for v in halves[batches])])  # fmt: skip
table(["batches", "gap closed", "with a value", "KS to the payoff", "of these, graphs that QM9 has", "their QED", "QED of the others"], rows)
curve = curve[1:]  # the axis is logarithmic
batches, closed, chance = np.array(curve).T
fig, ax = plt.subplots(figsize=(6, 3.2))
ax.errorbar(batches, closed, 2 * chance, fmt="o-", capsize=2, label="one long training")
ax.plot(24_000, gap_closed(all_sets["data", 0][40], "data", 40), "s", color="C1", label="by way of warmer ones, 3 x 8,000")
ax.axhline(1, color="0.4", ls="--", label="payoff")
ax.set(xscale="log", xlabel="training batches of 64 molecules", ylabel="gap closed", ylim=(0, 1.1))
ax.set_xticks(batches, [f"{b:,.0f}" for b in batches])
ax.minorticks_off()
ax.legend(fontsize=8)
run.figure(
    fig,
    "longer_training",
    alt="Share of the QED gap that is closed against training batches on a logarithmic axis, with error bars of two standard errors.",
    see="the first two thousand batches close half of the gap; thirty thousand more add little.",
)
run.metric("qed_gap_closed_longer_ess40", closed[-1], "1", len(end),
           f"(QED_model - QED_base) / (QED_payoff - QED_base) of a guided model (RGDM, reference data, ESS 40 %) after {int(batches[-1]):,} batches "
           "from the base, strength 1, one training seed")  # fmt: skip

# %%
first, last = curve[0], curve[-1]
known, new = (np.array([halves[b][k] for b in seen]) for k in (0, 1))
print(f"QED of graphs that QM9 has: base {halves[0][0]:.3f}, students {known.min():.3f} to {known.max():.3f}; of the others: base {halves[0][1]:.3f}, "
      f"students {new.min():.3f} to {new.max():.3f}; the payoff's {qed_payoff['data', 40]:.3f}")  # fmt: skip
assert all(0.45 < closed < 0.65 for _, closed, _ in curve)  # what the text below says
assert known.min() - halves[0][0] > 0.035 and new.max() < 0.45

# %% [markdown]
# They had not. Two thousand batches close half of the gap, and thirty-two thousand close 0.56, no more than chance above it. What goes on is the
# rest: at the end 72 % of the samples have a value, after 2,000 batches 65 %.
#
# Look at the last two columns. Of what QM9 has, the students make molecules of QED 0.47: three quarters of the way from the base's 0.433 to the
# payoff's 0.486. The other half of the samples have graphs that QM9 does not have; the students lift their QED, from 0.416, but only to 0.44. Section 3 met
# these molecules already. What they should be, 3,136 examples do not say, and more batches show the same examples again. So the *direction* is learned
# early and the *distance* is not, in this training, by 32,000 batches. This is why a multiplier mends it.

# %% [markdown]
# ### Where a reward is learned
#
# Take molecules that follow the payoff exactly. Noise them to time $t$ and let a network sample them back
# from there. What comes back with the payoff's QED was decided at noise levels above $t$'s; what does not is the network's own doing. (`experiment
# molecules-redraw`; payoff of reference *data* at ESS 40 %.)
#
# **Predict.** From which noise level on does the *base* lose the payoff's QED? And the guided model?

# %%
redrawn = {who: data.load_set(data_path(f"molecules/redrawn_heavy7_{who}.npz")) for who in ("base", "guided")}
sigma = (1 - diffusion.schedule.alpha_bar).sqrt()
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
rows = []
for who, molecules in redrawn.items():
    at = molecules.property("t")
    back = [molecules.subset(at == t) for t in experiments.REDRAW_TIMES]
    mean = np.array([np.nanmean(part.property("qed")) for part in back])
    count = np.array([np.isfinite(part.property("qed")).sum() for part in back])
    error = np.array([np.nanstd(part.property("qed")) for part in back]) / count**0.5
    levels = sigma[list(experiments.REDRAW_TIMES)].numpy()
    left.errorbar(levels, mean, 2 * error, fmt="o-", capsize=2, label=who)
    right.errorbar(levels, count / len(back[0]), fmt="o-", label=who)
    rows.append([who, *(f"{q:.3f}, {c / len(back[0]):.0%}" for q, c in zip(mean, count, strict=True))])
left.axhline(qed_payoff["data", 40], color="0.4", ls="--", label="payoff")
left.axhline(qed_base, color="0.7", ls=":", label="base samples")
left.set(xlabel="noise level $\\sigma_t$", ylabel="mean QED of what comes back")
right.set(xlabel="noise level $\\sigma_t$", ylabel="share with a value")
left.legend(fontsize=8)
run.figure(
    fig,
    "where_a_reward_is_learned",
    alt="Left: mean QED of payoff molecules noised to a level and sampled back, against the level, for the "
    "base and the guided model, with the payoff's QED as a dashed line. Right: the share with a value.",
    see="a good student's curve stays on the dashed line; where it leaves it is where to work.",
)
table(["QED, share with a value, from t =", *experiments.REDRAW_TIMES], rows)

# %% [markdown]
# The graph of a small molecule is decided in the middle, at noise levels where the atoms take their
# places. Below, a network can only repair geometry; above, nothing is decided yet. A tilt on graphs has
# to be learned in that middle band, and it can only be held by a network that is precise there. This is
# why the base model comes first.
#
# ### Reward against distance
#
# Every method has to pay for reward with distance from the reference. The payoff distribution pays
# least: for its mean reward, no distribution is nearer to $p_{\text{ref}}$ in KL divergence. Its own
# price needs no estimate of densities:
#
# <!-- eq: kl-of-the-payoff | derived here -->
# $$
# \mathrm{KL}(p^* \,\|\, p_{\text{ref}}) = \frac{\mathbb E_{p^*}[r]}{\tau} - \log Z ,
# \qquad Z = \mathbb E_{p_{\text{ref}}}\big[e^{r/\tau}\big] .
# $$
#
# On weighted molecules that is a sum over the weights. So we can draw the price over all temperatures, with sizes kept and
# with sizes tilted.
#
# For the models we only have samples. We put QED into 50 bins that are equally full under the
# reference, and take the KL between the two histograms. That is a *lower bound* of the true KL (of the histograms' own; 1,400 samples in 50 bins add
# about 0.02 nats by chance): binning can only hide differences, and so can looking at QED alone. With sizes tilted, QED alone hides nothing, so there
# the bins are the only loss, and we can check it. (All of this is among molecules with a value.)
#
# **Predict.** For as many nats, how much more QED does a payoff get whose sizes may move?

# %%
edges = np.unique(np.nanquantile(qed.numpy(), np.linspace(0, 1, 51)))[1:-1]
before = np.bincount(np.digitize(qed[valued], edges), minlength=len(edges) + 1) / int(valued.sum())


def kl_of_histogram(sample, weight=None):
    """KL in nats of binned values from the reference's, a lower bound."""
    keep = np.isfinite(sample)
    weight = np.ones(keep.sum()) if weight is None else weight[keep]
    after = np.bincount(np.digitize(sample[keep], edges), weight, len(edges) + 1) / weight.sum()
    used = after > 0
    return float((after[used] * np.log(after[used] / before[used])).sum())


def kl_of_weights(weighted, plain):
    """KL in nats of weighted molecules from the same ones under the weights ``plain``: of the whole law."""
    weight, used = weighted.log_weight.exp(), torch.isfinite(qed)
    return float((weight[used] * (weight[used] / plain[used]).log()).sum())


plain = {"tilted": (valued / valued.sum()).double(), "kept": target[100].log_weight.exp()}
temperatures = np.geomspace(0.7 * tau[10], 8 * tau[80], 30)
lines = {word: [] for word in plain}
for s in temperatures:
    for word, line in lines.items():
        weighted = model.weigh(reference, qed, s, keep_sizes=word == "kept")
        line.append((float(weighted.expectation(qed)), kl_of_weights(weighted, plain[word]),
                     kl_of_histogram(qed.numpy(), weighted.log_weight.exp().numpy())))  # fmt: skip
lines = {word: np.array(line).T for word, line in lines.items()}
mean, exact, binned = lines["tilted"]
formula = mean[0] / temperatures[0] - float(torch.logsumexp(qed[valued].double() / temperatures[0], 0) - np.log(int(valued.sum())))
print(f"sizes tilted, coldest: KL by the formula {formula:.3f} nats, by the weights {exact[0]:.3f}, by bins {binned[0]:.3f}")
assert abs(formula - exact[0]) < 1e-6
for share in shares:
    nats = kl_of_weights(target[share], plain["kept"])
    print(f"ESS {share} %, sizes kept: {nats:.2f} nats for a mean QED of {qed_payoff[best, share]:.4f}; "
          f"with sizes tilted as many buy {np.interp(nats, exact[::-1], mean[::-1]):.4f}")  # fmt: skip

# %%
fig, ax = plt.subplots(figsize=(6.4, 3.8))
ax.plot(exact, mean, color="0.4", label="payoff, sizes tilted, exact")
ax.plot(binned, mean, "--", color="0.4", label="payoff, sizes tilted, by bins")
ax.plot(lines["kept"][1], lines["kept"][0], color="C4", label="payoff, sizes kept, exact")
ax.plot(kl_of_histogram(made_qed), qed_base, "s", color="k", label="base")
for colour, share in zip(("C3", "C0", "C1", "C2"), experiments.SHARES, strict=True):
    word = "control" if share == 100 else f"ESS {share} %"
    if share < 100:
        weight = target[share].log_weight.exp().numpy()
        ax.plot(kl_of_histogram(qed.numpy(), weight), qed_payoff[best, share], "o", color=colour, mfc="none",
                ms=9, label=f"payoff, sizes kept, {word}")  # fmt: skip
    for s in runs[best]:
        for sets_of, marker, at in ((final_sets, "x", " at s"), (all_sets, "+", " at 1")):
            if share == 100 and sets_of is all_sets:
                continue
            sample = sets_of[best, s][share].property("qed")
            ax.plot(kl_of_histogram(sample), np.nanmean(sample), marker, color=colour,
                    label=f"model, {word}{at if share < 100 else ''}" if s == runs[best][0] else None)  # fmt: skip
ax.set(xlabel="KL of the QED histogram from the reference (nats)", ylabel="mean QED")
ax.legend(fontsize=7)
run.figure(
    fig,
    "reward_against_distance",
    alt="Mean QED against KL divergence from the reference: a rising, flattening curve for the payoff with sizes "
    "tilted, another just below it for sizes kept, circles for our three targets by bins, crosses for the models, plus signs "
    "for them at strength 1, a square for the base.",
    see="circles are the targets. A cross below the dashed curve bought its reward too dearly; that sizes may move buys "
    "little.",
)

# %% [markdown]
# ### And if nothing is trained?
#
# *Best of N* draws $N$ samples of the base and keeps the one with the highest reward. Here all $N$ have one size, so that $p(N)$
# is kept. It needs no weights, no temperature and no training; it pays $N$ rewards and $N$ runs of the sampler for each
# molecule, every time. Its law is not the payoff's: it is the base's density times $N F(r)^{N-1}$, $F$ being the distribution function of the reward
# (Beirami et al. 2024), and $N$ takes whole steps only.
#
# **Predict.** Which $N$ comes nearest to the payoff of ESS 40 %? And is its histogram further from the payoff's than that of the
# trained model at its strength?


# %%
def best_of(count):
    """Numbers of the base samples that are the best of ``count`` of their size."""
    kept = []
    for size in np.unique(samples.n_atoms):
        own = torch.from_numpy(np.flatnonzero(samples.n_atoms == size))
        if len(own) >= count:
            kept.append(best_of_n.best_of(payoff.Draw(own, torch.from_numpy(made_qed)[own]), count).x0)
    return torch.cat(kept).numpy()


chosen = {count: made_qed[best_of(count)] for count in (1, 2, 3, 4, 6, 8, 16, 32)}
rows = []
for count, sample in chosen.items():
    rows.append([f"best of {count}", count, count, f"{np.nanmean(sample):.4f}", f"{np.isfinite(sample).mean():.0%}",
                 f"{kl_of_histogram(sample):.2f}", *(f"{ks_to_payoff(sample, name, s):.3f}" for name in (best, "model") for s in shares)])  # fmt: skip
for share in shares:
    rows.append([f"trained, ESS {share} %, at s", 2, 0, f"{np.nanmean(values[share]):.4f}", f"{has[share].mean():.0%}",
                 f"{kl_of_histogram(values[share]):.2f}", *(f"{ks_to_payoff(values[share], best, s):.3f}" for s in shares), "", "", ""])  # fmt: skip
table(["", "networks a step", "rewards a molecule", "mean QED", "with a value", "KL by bins (nats)",
       *(f"KS to the payoff of {share} %{of}" for of in ("", ", of the base's samples") for share in shares)], rows)  # fmt: skip
ks_best_of = {share: min(ks_to_payoff(sample, best, share) for sample in chosen.values()) for share in shares}
for share in shares:
    nearest = min(chosen, key=lambda count, s=share: ks_to_payoff(chosen[count], best, s))
    print(f"ESS {share} %: nearest is the best of {nearest}, KS {ks_best_of[share]:.3f}; trained {ks[share][0]:.3f}")
if best == "data":  # what the text below says
    assert ks_best_of[80] < ks[80][0] and ks_best_of[40] > 1.5 * ks[40][0] and ks_best_of[10] > 2 * ks[10][0]
    assert ks_to_payoff(chosen[6], "model", 40) < 0.055 and abs(np.nanmean(chosen[32]) - qed_payoff["data", 10]) < 0.005
    assert np.isfinite(chosen[8]).mean() > 0.99 and np.nanmean(chosen[16]) < qed_payoff["data", 10]
run.metric("qed_ks_best_of_n_ess40", ks_best_of[40], "1", int(np.isfinite(made_qed).sum()),
           "smallest KS distance of QED, base samples that are the best of N = 1, 2, 3, 4, 6, 8, 16 or 32 of their size, to the payoff of "
           "ESS 40 % of the same reference as qed_ks_ess40")  # fmt: skip

# %% [markdown]
# - **A small tilt needs no training.** At ESS 80 % the best of 3 is nearer to the payoff than the trained model, which had to be turned
#   up to three and a half times what it had learned.
# - **For a strong one, training is nearer to *this* payoff.** It is made of training molecules, which best of N never sees: it draws from the base, and
#   the payoff made of the base's own samples already lies 0.08 from this one in KS at 40 %, 0.12 at 10 %. At 40 % the best of 8 has the payoff's mean and
#   misses its histogram twice as far; to the payoff of the base's own samples the best of 6 is as near (0.05) as the trained model is to its own. At 10 %
#   the best of 16 stays below the mean; the best of 32 meets it and misses the histogram twice as far as the trained model, for 32 runs of the sampler a
#   molecule. Training is paid once, and is not in the table.
# - **Best of N always has a value.** What has none loses to whatever has one. A trained model keeps the base's third without.
#   The two go together: draw until RDKit and EDM's rule agree, at one and a half draws a molecule.

# %% [markdown]
# ### The rivals, on equal terms
#
# Notebook 07 compared thirteen methods where the answer is known. What of molecules? Here are three, the reward-conditioned network and the learned value among them:
#
# - **RGDM**: payoff weights in the denoising loss.
# - **The reward as a condition** (Kumar et al. 2019): the network is told the QED of every sample it learns from. When sampling it is asked for
#   the payoff's own values of QED, size by size.
# - **A learned value** (Lu et al. 2023): the base stays as it is. A second network learns, from noisy molecules, what soft value to expect, and the
#   gradient of that steers the sampler.
#
# All learn from the same 10,000 samples of the base with their QED (the reference *model*), for 8,000 batches of 64, from the base in one go, at one learning
# rate, and aim at the payoff of ESS 40 % with sizes kept. The control was trained for as many batches, without any reward; the learned value is a
# network of its own, from scratch. There is one training seed. (`experiment molecules-rivals`. The RGDM of the sections above had three times the
# batches: it came by way of the warmer temperatures.)
#
# **Predict.** Who moves the mean furthest? And whose molecules are worst for it?

# %%
equals = ("rgdm", "conditional", "value")
at_equal_terms = {"base": samples, "control": experiments.load_guided("model", 100, 0)}
at_equal_terms |= {name: data.load_set(data_path(f"molecules/{rivals.rival_name(name, 0)}")) for name in equals}
few = min(len(molecules) for molecules in at_equal_terms.values())  # uniqueness needs equal numbers
start, aim = np.nanmean(copied), qed_payoff["model", 40]
rows, ends = [], {}
for name, molecules in at_equal_terms.items():
    own = molecules.property("qed")
    score = judged(molecules, few)
    ends[name] = (np.nanmean(own), ks_to_payoff(own, "model", 40), score["mol_stable_edm"])
    chance = np.nanstd(own) / np.isfinite(own).sum() ** 0.5
    rows.append([name, f"{ends[name][0]:.4f} ± {chance:.4f}", f"{gap_closed(molecules, 'model', 40):.2f}",
                 f"{gap_closed(molecules, 'model', 40, start):.2f}", f"{ends[name][1]:.3f}", f"{np.isfinite(own).mean():.0%}",
                 *(f"{score[key]:.1%}" for key in ("mol_stable_edm", "valid_edm", "unique_edm"))])  # fmt: skip
print(f"the payoff's QED: {aim:.4f}")
table(["", "QED", "gap closed, from the base", "from the control", "KS to the payoff", "with a value", "stable", "valid",
       f"unique of {few:,}"], rows)  # fmt: skip
for name in equals:
    run.metric(f"qed_gap_closed_equal_terms_{name}", gap_closed(at_equal_terms[name], "model", 40), "1", len(at_equal_terms[name]),
               "share of the gap in mean QED between base and payoff that is closed, reference model, ESS 40 %, 10,000 rewards, 8,000 batches from "
               f"the base, one training seed: {name}")  # fmt: skip
    run.metric(f"qed_ks_equal_terms_{name}", ends[name][1], "1", len(at_equal_terms[name]), f"KS distance of QED to the payoff's, the same: {name}")
# what the text below says
assert ends["rgdm"][0] > ends["value"][0] + 0.007 > ends["conditional"][0] + 0.01 > ends["control"][0] + 0.015
assert ends["rgdm"][1] == min(one[1] for one in ends.values()) and ends["rgdm"][0] - qed_base < 0.3 * (aim - qed_base)
assert ends["rgdm"][2] > ends["value"][2]

# %% [markdown]
# - **RGDM goes furthest, and not far.** It closes 0.22 of the gap, counted from the base, and is nearest to the payoff by KS too. The chain of warmer
#   temperatures above, with three times the batches, came no further.
# - **The reward as a condition loses most of it to the copying.** Like the control it learns from the base's samples and ends below the base, though it
#   is asked for the payoff's QED. But it ends above the control: it did learn what was asked of it, a little.
# - **The learned value hardly moves the base.** Our guess, not measured: a noisy molecule says little about its QED until the graph is decided, and
#   then it is late. It does not pay the price of copying, for the base stays as it is. It pays in every step of the sampler, with a gradient.
# - Against the base none of the three costs stability beyond chance. Against the control RGDM does: 73.5 % stable, and 77.2 % (the difference ± 1.4
#   points).
#
# In eight dimensions (07) the condition ended as near as RGDM, and the value nearer with few rewards. Here the order is another one. This is one training
# seed, one temperature, and one learning rate that was found for RGDM and was not searched again for the others: take it as a first look.

# %% [markdown]
# ### The rule itself as a reward
#
# Why not ask for what the evaluator counts? EDM's *molecule stability* is 1 or 0, and RLPF (arXiv 2508.16521) trains toward rewards of this kind by a policy
# gradient. Its payoff can be told beforehand: a factor $e^{1/\tau}$ on every stable sample multiplies the *odds* of being stable by $e^{1/\tau}$ within each size. So $\tau$
# can be chosen such that the payoff itself has 95 % stable molecules, about the share of real ones, and not 100 %: the reference is still the base, less wrong.
#
# The reference is *model*, the 10,000 base samples, for stability needs no data. The control is trained on all of them in equal weights (but for the few that are stable in pieces), the guided model goes on from
# it, as long, in the payoff's weights. The control pays for the copying, as before; the guided model pays as well. Their *difference* is the reward
# alone. So we add that to the base: $\varepsilon_{\text{base}} + s\,(\varepsilon_\theta - \varepsilon_{\text{control}})$, three networks a step. If
# both had learned their targets but for the same mistakes, $s = 1$ would be the payoff's denoiser. $s$ is set by one trial, on the line of the log-odds
# from the base; judged are fresh samples. (`experiment molecules-stability`, then `molecules-stability-strength`.)
#
# **Predict.** The base has 70 % stable molecules. How many has the control, a copy of it? How many the guided model at $s = 1$? And at the $s$ that meets the payoff's 95 %: will
# the molecules be fewer different ones, or nearer to the training molecules?

# %%
reward_draw = stability.stability_draw()
more_stable = stability.stability_targets(reward_draw)["guided"]
made_stable = {"base": samples, "control": stability.load_stability("control", 0), "guided, at strength 1": stability.load_stability("guided", 0),
               "**guided, at s**": stability.load_stability("guided", 0, ending=experiments.STRENGTHENED)}  # fmt: skip
at_strength = made_stable["**guided, at s**"]
few = min(len(molecules) for molecules in made_stable.values())
weight = more_stable.log_weight.exp().numpy()
payoff_stable = float(more_stable.expectation(more_stable.reward))
rows, ends = [], {}
for name, molecules in {**made_stable, CORRECTED + ", no reward": corrected}.items():
    score, own = judged(molecules, few), molecules.subset(np.isfinite(molecules.property("qed")))
    like = metrics.size_weight(train, molecules)
    ends[name] = score | {"qed": float(np.mean(own.property("qed"))), "all": metrics.stability_edm(molecules)[0].mean(),
                          "off": float(element_shares(molecules)[nitrogen] - element_shares(train, like)[nitrogen])}  # fmt: skip
    rows.append([name, f"{ends[name]['all']:.1%}", *(f"{score[key]:.1%}" for key in ("atom_stable_edm", "valid_edm", "valid_unique_edm",
                 "valid_connected_edm_or_determine")), f"{score['memorisation_ratio']:.2f}", f"{ends[name]['qed']:.3f}", f"{ends[name]['off']:+.1%}"])  # fmt: skip
of_payoff = float(element_shares(samples, weight)[nitrogen] - element_shares(train, metrics.size_weight(train, samples))[nitrogen])
rows.insert(1, ["the payoff: base samples, weighed", f"{payoff_stable:.1%}", "", "", "", "", "", f"{qed_base:.3f}", f"{of_payoff:+.1%}"])
rows.append(["real molecules", f"{real['mol_stable_edm']:.1%}", f"{real['atom_stable_edm']:.1%}", f"{real['valid_edm']:.1%}", "", "", "", f"{same_sizes:.3f}", "0"])
print(f"ESS {more_stable.ess:,.0f} of {len(weight):,}; strength {at_strength.property('strength')[0]:.2f}; all but 'stable' of {few:,} samples each")
table(["", "stable", "atoms stable", "valid", f"valid and different, of {few:,}", "a graph by the lenient rule", "memorisation", "QED of the stable",
       "nitrogen, minus the data's"], rows)  # fmt: skip

# %%
at_s = ends["**guided, at s**"]
where = f"rewarded for EDM's molecule stability, reference model, payoff of {payoff_stable:.0%} stable, training seed 0"
run.metric("stability_mol_stable", at_s["all"], "1", len(at_strength), f"share of stable molecules by EDM's rule of the model {where}, at its strength, set on "
           "other samples", ceiling=payoff_stable)  # fmt: skip
run.metric("stability_mol_stable_at_1", ends["guided, at strength 1"]["all"], "1", few, f"the same at strength 1; {where}")
run.metric("stability_mol_stable_control", ends["control"]["all"], "1", few, "the same for its control, trained as long on the base's samples in equal weights")
run.metric("stability_atom_stable", at_s["atom_stable_edm"], "1", few, f"share of stable atoms of the model {where}, at its strength")
run.metric("stability_valid", at_s["valid_edm"], "1", few, f"share that RDKit sanitises with EDM's bonds, of the model {where}, at its strength")
run.metric("stability_valid_unique_change", at_s["valid_unique_edm"] - ends["base"]["valid_unique_edm"], "1", few,
           f"share valid and different from the others, minus the base's, equal numbers, of the model {where}, at its strength")  # fmt: skip

# %%
of_control, at_1, of_base = ends["control"], ends["guided, at strength 1"], ends["base"]
odds = at_1["all"] / (1 - at_1["all"]) / (of_control["all"] / (1 - of_control["all"]))
print(f"odds of a stable molecule, guided model over control: {odds:.1f}")
assert of_control["all"] < 0.5 < at_1["all"] < of_base["all"] - 0.03 and 1.7 < odds < 2.3  # what the text below says
assert at_s["all"] > of_base["all"] + 0.2 and at_s["valid_unique_edm"] > of_base["valid_unique_edm"] + 0.02
assert at_s["memorisation_ratio"] > of_base["memorisation_ratio"] and at_s["valid_connected_edm_or_determine"] > of_base["valid_connected_edm_or_determine"] + 0.1

# %% [markdown]
# - **A copy pays.** 47 % of the control's molecules are stable, of the base's 70 %.
# - **Seen alone, the guided model would say that the reward did harm.** It was trained as long again, on the payoff's weights, and ends at 64 %, below the base that it
#   learned from. Against its control it has twice the odds of a stable molecule. That difference is what the reward has taught.
# - **Added to the base it does what was asked.** At $s = 6.0$ 92.4 % are stable, three points below the payoff, 99.1 % of the atoms, and 97 % are valid. No data was needed beyond
#   the base's samples and EDM's rule.
# - **It is not the cold sampler's trick.** *More* of them are valid and different from each other than of the base's, and they are no nearer to the training molecules. RDKit's own
#   reading of the geometry, which no reward asked, agrees: 95 % have a graph by the lenient rule, of the base's 79 %.
# - **A strength of six is far from 1.** A sixth of the difference was learned, and whatever else the two learned differently is multiplied, too: the QED
#   of the stable is 0.415, where the payoff keeps 0.424. (Nitrogen comes near the data's, which nobody asked.) Only one training seed was tried.
#
# RLPF reports such a gain on QM9 for a network trained further by a policy gradient, with forces as its reward: from EDM's 82 to 93 % (notebook 10 has the numbers side by side, and why they may not be compared).
# Is a molecule that satisfies a table of distances a good one? The next section asks physics.

# %% [markdown]
# ### When the reward is physics
#
# QED reads the graph, and the graph is decided at middle noise levels, where our network is weak. What of a reward for the *geometry*?
# Quantum chemistry has a number: let a molecule slide down to the nearest minimum of its energy, and what it loses on the way says how far from
# rest it was. This **relaxation energy**, per atom, is 0 for a molecule at rest. We take it from GFN2-xTB, a fast quantum
# method: some tenths of a second a molecule. We use no gradient of it.
#
# A reward that is a model can be hacked, as section 3 showed. So two models that took no part are the judges: GFN1-xTB, an older relative,
# and MMFF94, a force field of another family. (`experiment molecules-relaxation`: $r = -$energy by GFN2 on the first 4,000 base samples, what is not stable
# is left out; sizes kept, an effective share of 40 %. RGDM starts from the control of the reference *model*, which was trained as long on all 10,000
# base samples, those with a value in equal weights. Beside it the control of the reference *data*, trained as long on real molecules, real molecules
# that no network saw, and the model of the section before, rewarded for stability.)
#
# **Predict.** The energies have a long tail: some samples are stable by EDM's rule and still badly bent. What does the payoff do to their mean? And
# what does the control, a network trained on its base's own samples, do to the geometry?

# %%
relaxed = {kind: relaxation.load_relaxation(kind) for kind in relaxation.KINDS}
toward = relaxation.relaxation_target(relaxed["base"])
one_each = {kind: np.ones(len(molecules)) for kind, molecules in relaxed.items()}
laws = {"base": ("base", one_each["base"]), "payoff": ("base", toward.log_weight.exp().numpy()),
        **{kind: (kind, one_each[kind]) for kind in ("control", "guided", "strengthened", "control_of_data", "rewarded_for_stability", "real")}}  # fmt: skip


def mean_energy(kind, column):
    """Mean over what has a value, eV an atom, and its standard error."""
    of, weight = laws[kind]
    value = relaxed[of].property(column)
    there = np.isfinite(value)
    value, weight = value[there], weight[there] / weight[there].sum()
    mean = weight @ value
    return mean, float((weight**2 @ (value - mean) ** 2) ** 0.5)


energy = {kind: {column: mean_energy(kind, column) for column in relaxation.COLUMNS} for kind in laws}
over_base = {kind: {c: energy[kind][c][0] / energy["base"][c][0] for c in relaxation.COLUMNS} for kind in laws}
rows = []
for kind, (of, _) in laws.items():
    share = "" if kind == "payoff" else f"{np.isfinite(relaxed[of].property('relaxation_gfn2')).mean():.0%}"
    rows.append([kind.replace("_", " "), share, *(f"{1000 * m:.1f} ± {1000 * e:.1f}" for m, e in energy[kind].values()),
                 *(f"{x:.2f}" for x in over_base[kind].values())])  # fmt: skip
names = list(relaxation.COLUMNS.values())
print(f"{toward.ess:,.0f} effective of {len(relaxed['base']):,} samples; strength {relaxed['strengthened'].property('strength')[0]:.2f}")
table(["", "with a value", *(f"{name}, meV an atom" for name in names), *(f"{name}, over the base's" for name in names)], rows)

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
bins_energy = np.geomspace(1e-3, 0.5, 31)
for ax, column, what in zip(axes, ("relaxation_gfn2", "relaxation_gfn1"), ("the reward's model", "a judge"), strict=True):
    for kind, colour in zip(("base", "payoff", "control", "guided", "strengthened"), ("0.8", "k", "C3", "C0", "C2"), strict=True):
        of, weight = laws[kind]
        value = relaxed[of].property(column)
        there = np.isfinite(value)
        ax.hist(value[there], bins_energy, weights=weight[there] / weight[there].sum(), color=colour, lw=1.5, label=kind,
                histtype="stepfilled" if kind == "base" else "step")  # fmt: skip
    ax.set(xscale="log", xlabel=f"relaxation energy by {relaxation.COLUMNS[column]} (eV an atom)", title=what)
axes[0].set_ylabel("share of those with a value")
axes[0].legend(fontsize=8)
run.figure(fig, "relaxation",
           alt="Two panels of histograms of relaxation energy on a logarithmic axis, by GFN2 and by GFN1, which look alike: the payoff "
               "to the left of the base, the control to its right, the guided model back about the base, the strengthened one between base and payoff.",
           see="both panels show one picture: what the reward's model says, a judge that it never asked says too.")  # fmt: skip

# %%
few = min(len(relaxed[kind]) for kind in ("control", "guided", "strengthened"))  # uniqueness needs equal numbers
quality = {kind: judged(relaxed[kind], few) for kind in ("base", "control", "guided", "strengthened")}
columns = {"mol_stable_edm": "molecules stable", "valid_edm": "valid", "unique_edm": "unique"}
table([f"{few:,} samples each", *columns.values()],
      [[kind, *(f"{score[c]:.1%}" for c in columns)] for kind, score in quality.items()])  # fmt: skip
for kind, word in (("guided", "_at_1"), ("strengthened", "")):
    for column, method in relaxation.COLUMNS.items():
        suffix = {"relaxation_gfn1": "", "relaxation_gfn2": "_reward", "relaxation_mmff94": "_mmff94"}[column]
        run.metric(f"relaxation_energy_ratio{word}{suffix}", over_base[kind][column], "1", int(np.isfinite(relaxed[kind].property(column)).sum()),
                   f"mean relaxation energy an atom by {method} of the stable samples of the model rewarded for a low one by GFN2-xTB "
                   f"({'at strength 1' if word else 'at its strength'}, ESS 40 %, reference model, training seed 0) over the base's")  # fmt: skip
run.metric("relaxation_energy_ratio_control", over_base["control"]["relaxation_gfn1"], "1", len(relaxed["control"]),
           "the same by GFN1-xTB for the control: trained as long on the base's stable samples in equal weights")  # fmt: skip
run.metric("relaxation_energy_ratio_control_of_data", over_base["control_of_data"]["relaxation_gfn1"], "1",
           len(relaxed["control_of_data"]), "the same by GFN1-xTB for the control of the reference data: trained as long on real molecules")  # fmt: skip
run.metric("relaxation_energy_ratio_rewarded_for_stability", over_base["rewarded_for_stability"]["relaxation_gfn1"], "1",
           len(relaxed["rewarded_for_stability"]), "the same by GFN1-xTB for the model rewarded for EDM's molecule stability, at its strength")  # fmt: skip
run.metric("relaxation_energy_ratio_real", over_base["real"]["relaxation_gfn1"], "1", len(relaxed["real"]),
           "the same by GFN1-xTB for held-out molecules of QM9, as its quantum chemistry has them")  # fmt: skip
run.metric("relaxation_energy_ratio_payoff", over_base["payoff"]["relaxation_gfn1"], "1", int(toward.ess),
           "the same by GFN1-xTB for the payoff, weights on 4,000 base samples")  # fmt: skip

# %%
r = {kind: over_base[kind]["relaxation_gfn1"] for kind in laws}
assert 0.1 < r["real"] < 0.14 and abs(r["control_of_data"] - 1.07) < 0.01
assert abs(r["rewarded_for_stability"] - 1) < 0.08
assert r["payoff"] < 0.25 and 1.9 < r["control"] < 2.2 and 1 < r["guided"] < 1.25 and 0.5 < r["strengthened"] < 0.62
assert all(abs(over_base[kind]["relaxation_gfn1"] - over_base[kind]["relaxation_gfn2"]) < 0.03 for kind in laws)
assert over_base["strengthened"]["relaxation_mmff94"] < 0.75
assert quality["strengthened"]["mol_stable_edm"] > quality["base"]["mol_stable_edm"] + 0.05
assert quality["strengthened"]["unique_edm"] < quality["base"]["unique_edm"] - 0.1

# %% [markdown]
# - **The payoff cuts the tail.** A few badly bent samples make up much of the base's mean; at an effective share of 40 % a fifth of it is left.
# - **The control is twice as bent as the base.** It learned from the base's samples, each a little off, and is a little off itself: errors add. It is
#   the samples, not the further training: the control of the data had as many batches, of real molecules, and stays where the base is (1.07). So
#   re-training on a model's own samples has a price, and here geometry pays it. No share of stable molecules shows that; that one even rises.
# - **The reward takes it back, no more.** Trained as long, the guided model ends about where the base was. What it has learned beyond the control, added to the base (three networks a step,
#   $s$ from one trial), brings the energy to 0.56 of the base's. It misses the payoff's 0.22, for a mean that cannot fall below 0 does not fall along a line.
# - **It is not hacked.** GFN1, which took no part, gives the same ratios to a few hundredths; MMFF94, of another family, ranks base, payoff, control and
#   the strengthened model the same way, with smaller differences.
# - **A table of distances is not physics, but it was not hacked either.** The model rewarded for EDM's rule has stable molecules as bent as the base's (1.03), neither better nor worse,
#   and 92 % of its samples are such molecules, of the base's 70 %. What is not asked for does not come: for rest one has to pay.
# - **It is not free.** More molecules are stable and valid, 79 % for 70 %, but fewer are different, 86 % for 97 %: the reward likes what is easy to draw at rest.
# - **And without training?** The row *payoff* is the base's own samples, weighed: 0.22 of its energy, and two in five are worth keeping. A trained
#   model draws new ones for as long as you like, at no reward each, but what it draws is less relaxed than that choice.
# - **There is room.** Real molecules have a ninth of the base's energy by GFN1 (by GFN2 an eighth). The payoff has twice that, the best network five
#   times.

# %% [markdown]
# ### A property near a target
#
# So far a reward asked for *more* of something. Often the wish is a value: a molecule whose polarizability $\alpha$ is 70 Bohr³. EDM's protocol for
# that (Hoogeboom et al. 2022, section 5.2) is the field's, and it is built against hacking:
#
# - The training molecules are cut into two halves. On one an **evaluator** learns to read the property off a molecule. On the other the **conditional model**
#   is trained, a denoiser that is told the wanted value $c$.
# - A question is a size and a value, $N \sim p(N)$ and $c \sim p(c \mid N)$: those of a random molecule. The model answers with a molecule, the evaluator says what it is.
# - Two rows frame the mean error. Below, the evaluator's own, on molecules that nobody trained on. Above, *atoms only*: always the median of that size.
#
# RGDM goes on from there. The conditional model answers 9,000 questions, and each answer gets the reward $r(x, c) = -|f(x) - c|$ with $f$ a **reward network**: built
# like the evaluator but trained on the other half, so that the two share no molecule. An answer that is not stable has no value. What we are after is a payoff for each $c$:
#
# <!-- eq: conditional-payoff | derived here -->
# $$
# p^*(x \mid c) = \frac{p_{\text{ref}}(x \mid c)\, e^{r(x, c)/\tau}}{Z(c)} , \qquad
# p(c)\, p_{\text{ref}}(x \mid c)\, e^{r(x, c)/\tau} = p(c)\, Z(c)\; p^*(x \mid c) .
# $$
#
# On the left of the second equation are answers to random questions under the usual weights $e^{r/\tau}$. The right side says: for each $c$ they follow $p^*(x \mid c)$, and nobody has to know $Z(c)$. But the
# questions have shifted, from $p(c)$ to $p(c)\, Z(c)$: easy ones gain. We want those that were asked. So the targets of each size are cut into four bins of equally many, and bins keep their shares, as
# sizes do. Each property has its own temperature, at an effective share of 40 %.
#
# One conditional model serves three properties, $\alpha$, the dipole moment $\mu$, and the gap between the highest filled and the lowest empty orbital: it is told
# which is meant. Three models go on from it for equally many batches: *longer* on the real molecules of its half, the *control* on its own stable answers in equal weights,
# *guided* on the weighted ones. A last row adds to the conditional model the difference of guided model and control, $s$ times: at the $s$ where the mean reward would be the payoff's, if the difference
# did as much from there as from the control. (`experiment molecules-property`: 8,000 batches for the conditional model, 4,000 more for each of the three, one training seed.)
#
# Two things are done so that nobody is beaten unfairly.
#
# - **Ask louder.** A network that hears $c$ faintly answers as if it had been asked for less. So ask for more: tell it $\bar c_N + g\,(c - \bar c_N)$, where $\bar c_N$ is the mean of that
#   size and $g$ a *gain*. Of the gains 1, 2, 4 and 8 each network gets, for each property, the one at which 100 trial answers came nearest to their targets, by the reward network. Control and guided model
#   are trained on what their answers were answers to, real molecules tell their own value. EDM has no gain, which is $g = 1$.
# - **The rival with a gradient.** *Classifier guidance* reads the property off a noisy molecule: a network trained on the generators' half, for as many batches as the others, says $p(c \mid x_t)$, a normal law, and
#   $s \nabla \log p(c \mid x_t)$ is added to the conditional model's score (03). Its $s$ is set by trials, too. It can do so because a regressor has a gradient; for QED or stability there is none.
#
# **Predict.** Half of the training molecules are 1,568. How closely does a network follow $c$ that was *told* $c$? And what does it mean if a model falls below the evaluator's own error?

# %%
protocol = regressors.Protocol()
answers, real_answers = properties.load_sets(protocol), data.load_set(protocol.path("real"))
named = {"conditional": "conditional", "longer": "longer, on real molecules", "classifier": "conditional, with classifier guidance", "control": "control",
         "guided": "**guided**", "strengthened": "conditional + s (guided - control)"}  # fmt: skip
some = answers["guided"].subset(range(0, len(answers["guided"]), 100))  # the files' words are those of the networks
again = properties.with_predictions(protocol, some)
assert all(np.allclose(again.property(kind), some.property(kind), rtol=1e-3, atol=1e-4) for kind in regressors.REGRESSORS)
draws = {name: properties.property_draw(protocol, name, answers["conditional"]) for name in regressors.UNITS}
aims = {name: properties.property_targets(draw)["guided"] for name, draw in draws.items()}
off = {name: properties.errors(name, answers, real_answers) for name in regressors.UNITS}
of_payoff = {}
for name, aim in aims.items():
    missed = np.abs(aim.x0.property("evaluator") - aim.x0.property("target"))
    of_payoff[name] = float(aim.log_weight.exp().numpy() @ missed)


def in_table(name, mean, error=None):
    """A mean absolute error with its standard error, as text."""
    digits = {"alpha": 2, "mu": 3, "gap": 4}[name]
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


rows = [["*the evaluator itself*", *(in_table(name, *off[name]["judge"]) for name in off)],
        ["*atoms only*", *(in_table(name, properties.atoms_only(protocol, name, answers["longer"])) for name in off)],
        *([word, *(in_table(name, *off[name][kind]) for name in off)] for kind, word in named.items()),
        ["the payoff: answers of the conditional model, weighed", *(in_table(name, of_payoff[name]) for name in off)]]  # fmt: skip
print("effective samples:", ", ".join(f"{name} {aim.ess:,.0f} of {int(torch.isfinite(aim.reward).sum()):,}" for name, aim in aims.items()),
      f"; strength {answers['strengthened'].property('strength')[0]:.2f}")  # fmt: skip
table(["mean absolute error, by the evaluator", *(f"{name}, {unit}" for name, unit in regressors.UNITS.items())], rows)

# %%
heard = {kind: {name: properties.heard(protocol, name, answers[kind]) for name in regressors.UNITS} for kind in named}
rows = [[word, *(f"{answers['classifier'].property(f'scale_{name}')[0]:g} (gradient)" if kind == "classifier" else f"{properties.set_gains(answers[kind])[name]:g}"
                 for name in regressors.UNITS), *(f"{heard[kind][name]:.2f}" for name in regressors.UNITS)] for kind, word in named.items()]  # fmt: skip
table(["", *(f"gain, {name}" for name in regressors.UNITS), *(f"correlation within a size, {name}" for name in regressors.UNITS)], rows)

# %%
shown = {"longer": "trained longer", "guided": "guided", "classifier": "classifier guidance"}
fig, axes = plt.subplots(3, 3, figsize=(9.5, 8), sharex="col", sharey="col")
for column, (name, unit) in zip(axes.T, regressors.UNITS.items(), strict=True):
    low, high = np.percentile(properties.asked_for(name, real_answers).property("target"), (0.5, 99.5))
    for ax, (kind, word) in zip(column, shown.items(), strict=True):
        own = properties.asked_for(name, answers[kind])
        ax.plot(own.property("target"), own.property("evaluator"), ".", ms=3, alpha=0.6)
        ax.plot([low, high], [low, high], "k", lw=0.8)
        ax.set(xlim=(low, high), ylim=(low, high), ylabel=f"{name} by the evaluator ({unit})")
        ax.text(0.03, 0.97, word, transform=ax.transAxes, va="top", fontsize=8)
    ax.set_xlabel(f"{name} asked for ({unit})")
run.figure(fig, "property_asked_and_got",
           alt="Nine panels, property by the evaluator against the property asked for, with a diagonal: a column for alpha, mu and the gap, a row for the model trained longer, the "
               "guided one, and the one with classifier guidance. Wide clouds in the first two rows; in the last they lie along the diagonal, closest for alpha.",
           see="what listens lies along the diagonal. Much of the slope for alpha is the size, which every model is given.")  # fmt: skip

# %%
rows, good, off_stable = [], {}, {}
for kind, word in named.items():
    molecules, stable_here = answers[kind], metrics.stability_edm(answers[kind])[0]
    few = molecules.subset(np.linspace(0, len(molecules) - 1, 600).astype(int))  # as many of each property
    good[kind] = judged(few, len(few)) | {"all": stable_here.mean()}
    for name in regressors.UNITS:
        off_stable[kind, name] = properties.errors(name, {kind: molecules.subset(stable_here)}, real_answers)[kind]
    rows.append([word, f"{good[kind]['all']:.1%}", *(f"{good[kind][key]:.1%}" for key in ("valid_edm", "unique_edm", "valid_unique_edm")),
                 f"{good[kind]['memorisation_ratio']:.2f}", *(in_table(name, *off_stable[kind, name]) for name in regressors.UNITS)])  # fmt: skip
table(["", "stable", "valid", "different, of 600", "valid and different", "memorisation", *(f"error of {name}, stable ones" for name in regressors.UNITS)], rows)

# %%
words = {"reward": "the reward network", "evaluator": "the evaluator", "gfn2": "GFN2-xTB"}
by = {(name, judge): properties.errors(name, answers, real_answers, judge) for name in ("mu", "gap") for judge in words}
rows = [["the judge itself, on real molecules", *(in_table(name, *found["judge"]) for (name, _), found in by.items())]]
rows += [[named[kind], *(in_table(name, *found[kind]) for (name, _), found in by.items())] for kind in named]
table(["mean absolute error", *(f"{name} by {words[judge]}" for name, judge in by)], rows)

# %%
what_it_is = {"guided": "the model guided by r = -|f - c| at an ESS of 40 %", "classifier": "the conditional model with classifier guidance",
              "strengthened": "that model's difference to its control added to the conditional model several times,"}  # fmt: skip
for name, unit in regressors.UNITS.items():
    for kind, at in (("guided", ""), ("strengthened", "_at_s"), ("classifier", "_by_classifier")):
        run.metric(f"property_mae_ratio_{name}{at}", off[name][kind][0] / off[name]["longer"][0], "1", len(answers[kind]) // 3,
                   f"mean absolute error of {name} to its target, EDM's protocol, training seed 0, of {what_it_is[kind]} over that of the conditional model trained as "
                   "long on real molecules, each asked at the gain of its own trial")  # fmt: skip
    for kind, text in (("longer", "the conditional model trained further on real molecules"), ("classifier", what_it_is["classifier"])):
        run.metric(f"property_mae_{name}_{kind}", off[name][kind][0], unit, len(answers[kind]) // 3,
                   f"mean absolute error of {name} to its target by the evaluator: {text}")  # fmt: skip
    run.metric(f"property_mae_{name}_atoms_only", properties.atoms_only(protocol, name, answers["longer"]), unit, len(answers["longer"]) // 3,
               f"mean absolute error of {name} to its target: the median of its size in place of any model")  # fmt: skip
    run.metric(f"property_mae_{name}", off[name]["guided"][0], unit, len(answers["guided"]) // 3,
               f"mean absolute error of {name} to its target of the guided model, by the evaluator; floor: its own error", floor=off[name]["judge"][0])  # fmt: skip
run.metric("property_mae_ratio_mu_by_gfn2", by["mu", "gfn2"]["guided"][0] / by["mu", "gfn2"]["longer"][0], "1", len(answers["guided"]) // 3,
           "property_mae_ratio_mu by GFN2-xTB in place of the evaluator, of what has a value by it")  # fmt: skip
change = {key: good["guided"][key] - good["longer"][key] for key in ("all", "unique_edm")}
run.metric("property_stable_change", change["all"], "1", len(answers["guided"]),
           "share of stable molecules by EDM's rule of the model guided to a property, minus that of the conditional model trained as long on real molecules")  # fmt: skip
run.metric("property_unique_change", change["unique_edm"], "1", 600, "the same for the share of different ones among 600")

# %%
def over(kind, other, name, judge="evaluator"):
    """Ratio of two mean errors."""
    found = off[name] if judge == "evaluator" else by[name, judge]
    return found[kind][0] / found[other][0]


for kind, other in (("guided", "longer"), ("guided", "control"), ("guided", "classifier"), ("strengthened", "longer"), ("classifier", "longer")):
    print(f"{kind} over {other}:", ", ".join(f"{name} {over(kind, other, name):.2f}" for name in regressors.UNITS),
          "; by GFN2:", ", ".join(f"{name} {over(kind, other, name, 'gfn2'):.2f}" for name in ("mu", "gap")))  # fmt: skip
# what the text below says
assert all(0.93 < over("guided", "longer", name) < 1.03 and 0.83 < over("guided", "control", name) < 0.96 for name in off)
assert all(over("classifier", "longer", name) < 0.83 and heard["classifier"][name] == max(heard[kind][name] for kind in named) for name in off)
assert over("classifier", "longer", "alpha") < 0.65 and good["classifier"]["all"] < good["longer"]["all"] - 0.03
assert good["guided"]["all"] > good["longer"]["all"] + 0.08 and good["guided"]["all"] < good["control"]["all"] - 0.05
assert all(over("strengthened", "longer", name) > 0.9 for name in off) and good["strengthened"]["all"] < 0.5
assert all(off["alpha"][kind][0] > properties.atoms_only(protocol, "alpha", answers["longer"]) for kind in ("conditional", "longer", "control", "guided"))
assert off["alpha"]["classifier"][0] < 0.7 * properties.atoms_only(protocol, "alpha", answers["longer"])
assert all(over("classifier", "guided", name) < 0.87 for name in off) and over("classifier", "guided", "mu", "gfn2") < 0.9
assert all(min(off[name][kind][0] for kind in named) > 2 * off[name]["judge"][0] for name in off)
assert over("guided", "longer", "mu", "reward") < 0.97 < over("guided", "longer", "mu") < 1.05 < over("guided", "longer", "mu", "gfn2")
assert abs(over("guided", "longer", "gap", "gfn2") - over("guided", "longer", "gap")) < 0.03

# %% [markdown]
# - **Ask louder.** It costs nothing and does more than any training here. Asked plainly, the model trained longer had missed by 4.26 Bohr³, 1.21 Debye and 0.0381 Hartree (700 answers each, measured once);
#   asked four and eight times as far from the mean of its size, by 3.63, 0.96 and 0.0302. It is the same network. The price is stability, 50 % for 67 %: so far out it has seen few questions. Why does it work? On the
#   evaluator's half, giving a molecule the $c$ of another one of its size raises the denoising loss by 0.3 to 0.8 % at $t$ = 200 to 400, where graphs are decided, and by less elsewhere (measured once). What so little
#   depends on takes many batches to learn; a louder question makes up for what is not learned yet.
# - **RGDM is worth as much as labels, and no more.** Against its control the guided model gains 5 to 16 %. Against the model that went on with real molecules, each with its true $c$, it gains nothing
#   beyond chance (0.96 to 1.00, $\pm$ 0.05). We had asked for 0.8. Had we asked the rival plainly, as EDM does, we would have measured 0.82, 0.79 and 0.77 and called it a success. It was the question, not the reward.
#   What RGDM does gain is stability, 61 % for 50 %, for the unstable had no value.
# - **The gradient wins, clearly.** Classifier guidance brings $\alpha$ to 0.59 of the longer-trained model's error, $\mu$ to 0.78 and the gap to 0.82, and is the only one below *atoms only* in $\alpha$. Its scale was still best at the last
#   value tried, so more may be had. Its network learned from exact labels, not from the noise of a denoising loss, in as many batches. It pays with stability (45 %), and with a backward pass in each step.
# - **Added several times, the difference breaks the molecules**: 46 % are stable, and the errors are no smaller. Of the stable ones alone they are; but a choice of samples is not a model.
# - **Loud training does not help.** Also tried: real molecules told their value at the gain. The network then learned to turn the volume down: $\mu$ asked and got correlated by 0.16 (measured once).
# - **A trace of hacking.** For $\mu$ the reward network finds the guided model 6 % nearer to its targets than the longer-trained one, the evaluator as near, GFN2, which took no part, 11 % further away (each $\pm$ 5 or 6 %).
#   A small part of what was learned is the reward network's own mistakes. Of the gap GFN2 says what the evaluator says.
# - **No alarm, though.** The best error is more than twice the evaluator's own. A published table has a row *below* that bound: it was trained on the evaluator's word.
#
# So for a wish that the data carry as a label: ask the model that was told it, louder, or steer it by a network that reads it (03). A reward has its place where there is no label, and nothing to differentiate.

# %% [markdown]
# ### What else changed, and what got worse
#
# QED is one number. The cells below print what moved along with it. First the composition: what does
# the reward ask for? Then every share that fell by more than two standard errors of chance.

# %%
def composition(molecules, weight=None):
    """Mean number of atoms of each element."""
    return [f"{mean:.2f}" for mean in np.average(metrics.element_counts(molecules), 0, weight)]


rows = [["base, with a value", *composition(stable_made)]]
rows.append(["control", *composition(sets[100].subset(has[100]))])
for share in shares:
    weight = target[share].log_weight.exp().numpy()
    rows.append([f"payoff, ESS {share} %", *composition(reference, weight)])
    raw = all_sets[best, seed][share]
    rows.append([f"guided, ESS {share} %, at strength 1", *composition(raw.subset(np.isfinite(raw.property("qed"))))])
    rows.append([f"**guided, ESS {share} %**", *composition(sets[share].subset(has[share]))])
table(["atoms a molecule", *(data.SYMBOLS[z] for z in data.ELEMENTS)], rows)

# %%
names = {
    "mol_stable_edm": "molecules stable",
    "valid_connected_edm_or_determine": "a graph by the lenient rule",
    "valid_edm": "valid by EDM's bonds",
    "connected_edm": "connected by EDM's bonds",
    "unique_edm": f"unique of {m:,}",
}
for share in experiments.SHARES:
    fell = []
    for key, name in names.items():
        old, new = base_m[key], scores[share][key]
        error = (old * (1 - old) / base_m["n"] + new * (1 - new) / scores[share]["n"]) ** 0.5
        if new < old - 2 * error:
            fell.append(f"{name} {100 * (new - old):+.1f} points (± {100 * error:.1f})")
    word = "control" if share == 100 else f"ESS {share} %"
    print(f"{word}, fell against the base: {'; '.join(fell) or 'nothing beyond two standard errors'}")

# %% [markdown]
# How to read this.
#
# - **Stability.** Only stable molecules have a value, so training should raise this share, the control's too. Here, with the reference *data*, it did
#   not: control -0.3 points, and -9 at ESS 80 % at its strength. What a control gains is re-training's gain, not the reward's.
# - **Connected.** 3 to 4 points fewer hang together at the strength; at strength 1 almost none are lost. That is a price of the multiplier.
# - **Uniqueness must fall** as the target narrows: fewer distinct molecules carry the weight. The payoff's rows say how far.
# - **Memorisation.** A falling ratio means that high QED is close to training molecules, or that few
#   molecules were seen very often. With the reference *data* the student sees training molecules.
# - **The judge is the graph's.** What a physical energy says of these models was measured for the control only: 1.07 of the base's (above).
#
# RGDM's paper reports molecule generation as well. We did not have its tables, so no published number stands beside ours.
#
# Here are the first ten guided samples at ESS 40 %, none picked.

# %%
picture = views.grid(sets[40].subset(range(10)), legends(values[40][:10]), file_format="png")
run.figure(
    picture.figure(),
    "guided_samples",
    alt="Ten drawings of molecules of the guided model at ESS 40 percent with their QED.",
    see="compare with the base model's ten, and with the composition in the table above.",
)

# %% [markdown]
# ### Break it: too cold
#
# **Predict.** Take a twentieth of the coldest temperature. How many samples are left? Sizes are kept,
# so each size keeps its best molecule. As $\tau \to 0$ the ESS goes to $1/\sum_N p(N)^2$, or more
# where several samples share the best QED.

# %%
pool = pools["data"]
reference, qed, strata, tau = pool.x0, pool.reward, pool.strata, experiments.temperatures(pool)
valued = torch.isfinite(qed)
frozen = payoff.log_weights(qed, tau[10] / 20, strata=strata).exp()
left = payoff.effective_sample_size(frozen.log())
_, carried, top = heaviest(frozen.numpy())
half = int(np.searchsorted(carried.cumsum(), 0.5)) + 1
limit = 1 / float((torch.bincount(strata).double() / len(reference)).square().sum())
long_run = experiments.GUIDANCE["laptop"]
repeats = long_run["steps"] * long_run["batch"] / left
print(f"tau = {tau[10] / 20:.5f}: ESS {left:.1f} of {int(valued.sum()):,}; for tau to 0: {limit:.1f}")
print(f"{half} graphs carry half of the weight; mean QED {float((frozen * qed.nan_to_num(0)).sum()):.3f}")
print(f"the long experiment would show each effective molecule {repeats:,.0f} times, on average")

# %%
words = [f"{c:.1%}, QED {qed[i]:.2f}" for c, i in zip(carried[:5], top[:5], strict=True)]
run.figure(
    views.grid(train.subset(top[:5]), words, file_format="png").figure(),
    "too_cold",
    alt="Drawings of the five molecules that carry most of the weight at a far too low temperature.",
    see=f"these 5 molecules would carry {carried[:5].sum():.0%} of the training.",
)

# %% [markdown]
# The mean QED looks better than ever. The model would memorise a handful of molecules, and its gap
# closed would read about 1: the target itself is broken, and only the ESS says so. Below a few
# hundred effective samples, draw more or temper (07) before you train.

# %% [markdown]
# ## Recap
#
# - Molecules are tensors (B, N, 9) of one size. The size is drawn first. Noise has zero centre of mass.
# - The network turns with its input exactly; that was measured, not assumed.
# - Quality has a ceiling, the real data's row, and a name that carries its rule.
# - A reward without a gradient becomes weights. ESS says how many samples they leave; for a Gaussian
#   reward it is $e^{-s^2/\tau^2}$.
# - Training is the old denoising loss on weighted samples. One batch of rewards serves all steps.
# - Samples come from one neutral sampler; a cold one buys stability by narrowing the law.
# - A copy that learned from a model's own samples shows the direction of its mistakes. Walk the other way.
# - Success is closeness to the payoff: gap near 1, KS near its floor, no loss of stability, and all of it
#   counted from a control that was trained without the reward, best for as long.
# - A student that stopped half way can be made stronger when sampling: multiply what it learned, by the number that
#   brings the mean reward to the payoff's, and check the rest of the law.

# %% [markdown]
# ## Results

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - **Noise with a drift.** One `randn` that is not projected, and the centre walks away. The network
#   sees distances only and never notices; the likelihood is wrong.
# - **One-hot not scaled.** EDM reports 46.9 % instead of 82 % stable molecules on QM9.
# - **Two rules compared.** One sample set can score 38, 84 or 93 % stable under three published rules.
# - **Novelty as a virtue.** In an enumerated space a "novel" molecule is more often an error.
# - **Reward 0 for the invalid**, instead of no value, leaves them weight $e^{0/\tau}$, which is not 0.
# - **Tilted sizes unnoticed.** Part of a QED gain can be just larger molecules.
# - **A sampler that is not neutral.** Train on its samples, sample again: its bias counts twice.
# - **A strength taken for a temperature.** It makes up for unfinished training. On a finished student it samples
#   no payoff distribution, and it multiplies mistakes as well.
# - **Told is not heard.** A network that is given a condition need not use it. Ask for two values far apart, and see whether what comes differs.
# - **No control.** Re-training alone moves stability and QED; without the control row that is the reward's.
# - **A lenient value.** A reward for whatever RDKit can read pays for broken geometries.
# - **A guess taken for a reward.** A tilt looks for the samples on which the guess is most wrong. Judge by what the reward was not made of.
#
# ## Further reading
#
# - Hoogeboom, Satorras, Vignac, Welling 2022, *Equivariant diffusion for molecule generation in 3D*,
#   arXiv 2203.17003: model, scaling, stability rule
# - Satorras, Hoogeboom, Welling 2021, *E(n) equivariant graph neural networks*, arXiv 2102.09844
# - Bickerton et al. 2012, *Quantifying the chemical beauty of drugs*, Nature Chemistry 4: QED
# - Ramakrishnan et al. 2014, *Quantum chemistry structures and properties of 134 kilo molecules*
# - Zhang & Xu 2023, *Towards controllable diffusion models via reward-guided exploration*,
#   arXiv 2304.07132: the method's origin
# - Song, Meng & Ermon 2021, *Denoising diffusion implicit models*, arXiv 2010.02502: the sampler's family
# - Ho & Salimans 2022, *Classifier-free diffusion guidance*, arXiv 2207.12598
# - Kumar et al. 2019, *Reward-conditioned policies*, arXiv 1912.13465; Lu et al. 2023, *Contrastive energy prediction*, arXiv 2304.12824; Beirami et al. 2024,
#   *Theoretical guarantees on the best-of-n alignment policy*, arXiv 2401.01879: the rivals
# - RLPF, arXiv 2508.16521: stability and forces as rewards of a policy gradient
# - Bannwarth et al. 2019 (GFN2-xTB), Grimme et al. 2017 (GFN1-xTB), Halgren 1996 (MMFF94): the energies
# - Jin et al. 2025, *Inference-time alignment control for diffusion models with reinforcement learning guidance*,
#   arXiv 2508.21016: the strength, for models tuned by RL (it is the colder payoff only for Gaussians with one width)
# - Alemohammad et al. 2024, *Self-improving diffusion models with synthetic data*, arXiv 2408.16333: away from one's own samples
# - Zheng et al. 2024, *Model extrapolation expedites alignment*, arXiv 2404.16792: the same on weights
#
# ## Next
#
# `00_start_here` has the map of the course; the README lists every claim with its measured number.

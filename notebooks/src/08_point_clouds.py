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
# # 08 · Point clouds
#
# Chairs, planes and tables as sets of points, and rewards that look at the whole shape: is it called a
# chair, and, where a class label has nothing to say, does the chair *stand*? The shapes come from known
# laws, so that the payoff distribution is known too. At the end you will have compared sets of clouds by
# numbers that you can trust, seen where in the noise a shape is decided, and read how a reward is hacked.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 45 | 45 | 45 |
# | minutes to run (2 CPU cores) | 2 | 8 | 20 |
# | memory | 2 GB | 2 GB | 3 GB |
# | GPU | not needed | not needed | not needed |
#
# Prerequisites: 02 (denoising loss, sampling) and 07 (RGDM on an exact world). The presets differ in how
# many clouds the distances are computed on.

# %% [markdown]
# ## Goals
#
# - **check** that a network treats a cloud as a set, and **say** what makes it do so
# - **measure** how close two sets of clouds are, and **name** what each measure cannot see
# - **find** the noise at which a shape is decided
# - **write** a reward about a shape that needs no label and has no gradient
# - **predict** what a temperature does to the shares of classes
# - **explain** why noise gets a high reward

# %% tags=["bootstrap"]
# rgdm_lib.course.bootstrap.CELL

# %% tags=["parameters"]
PRESET = "quick"
SEED = 0
OUT_DIR = "runs"

# %%
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

from rgdm_lib.course import exercises, notebook, widgets
from rgdm_lib.shapes import data, metrics, model, nets, rewards, views

run = notebook.start("08_point_clouds", PRESET, SEED, OUT_DIR)
settings = run.settings(
    quick={"each": 12, "points": 256},
    laptop={"each": 40, "points": 512},
    full={"each": 100, "points": 512},
)
CLASSES = ("chair", "plane", "table")


def table(header, rows):
    """Show rows of text as a table."""
    lines = [header, ["---"] * len(header), *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


# %% [markdown]
# ## 1. Clouds are sets
#
# **Question.** What is one data point?
#
# A *point cloud* is a set of points on the surface of a shape. Ours has 512. It is stored as a tensor
# (512, 3), yet the order of the rows means nothing. x is to the right, y to the front, z up. One unit is
# about half a metre of furniture.
#
# The shapes are drawn from laws that we wrote down: a chair's seat is 0.75 to 1.15 high, its back leans
# by up to 0.7 rad, its rear feet stand in from the edge by up to 62 % of the depth, and so on. Parts are
# fixed: what trains the model, what judges it and what rewards it never share a shape.
#
# **Predict.** Do you recognise a chair by 512 points alone, without any lines?

# %%
held_out = data.shapes("test", 300, 512)
fig, axes = plt.subplots(3, 6, figsize=(10, 5.2), gridspec_kw={"wspace": 0, "hspace": 0})
for row, kind in zip(axes, CLASSES, strict=True):
    for ax, cloud in zip(row, held_out.of(kind), strict=False):
        views.draw_cloud(ax, cloud, span=2.6)
    row[0].set_title(f"{kind}s", fontsize=9, loc="left")
run.figure(
    fig,
    "parametric_shapes",
    alt="Three rows of six shaded point clouds each, chairs, planes and tables, every picture 2.6 units "
    "wide; backs are solid, of slats or of rungs, planes have no, two or four engines.",
    see="each point is as bright as its surface is turned to the light. How a surface lies is estimated "
    "from a point's neighbours; the cloud itself holds positions only.",
)
print(f"{len(held_out)} held-out shapes: a tensor {tuple(held_out.points.shape)}")


# %%
def show_shape(which, turn):
    fig, ax = plt.subplots(figsize=(3.6, 3.6))
    views.draw_cloud(ax, held_out.points[which], turn=turn, span=2.6)
    return fig


widgets.explore(
    show_shape,
    which=ipywidgets.IntSlider(value=3, min=0, max=len(held_out) - 1),
    turn=ipywidgets.IntSlider(value=35, min=-180, max=180, step=5),
)

# %% [markdown]
# ### A network that sees sets
#
# Renumber the points of $x_t$: the noise in it is renumbered with them. A denoiser should do the same, for
# every permutation $P$ of the rows:
#
# <!-- definition -->
# $$
# \varepsilon_\theta(P\,x_t,\, t) = P\, \varepsilon_\theta(x_t,\, t) .
# $$
#
# This is *permutation equivariance*. A plain multi-layer perceptron on 1,536 numbers would have to learn it
# from examples. Ours has it built in: points never see each other directly. A few learned *latents* $q_k$
# read all points by attention, think, and hand back what they found (Set Transformer, Lee et al. 2019; in
# this form GECCO, Tyszkiewicz et al. 2023). What latent $k$ reads is a mean over points, each weighed by
# how well its key $\kappa_i$ fits:
#
# <!-- eq: pooling-by-attention | Vaswani et al. 2017, eq. 1, scale left out -->
# $$
# z_k = \sum_{i=1}^N a_{ki}\, v_i, \qquad
# a_{ki} = \frac{e^{q_k \cdot \kappa_i}}{\sum_{j=1}^N e^{q_k \cdot \kappa_j}} .
# $$
#
# The sum does not care for the order, and the cost is $N$ times the number of latents, not $N^2$.
#
# **Predict.** Renumber the input of such a network in float64. How big is the relative difference between the
# two sides: $10^{-2}$, $10^{-7}$ or $10^{-15}$? And does the network accept 700 points?

# %%
diffusion = model.shape_diffusion()
network = nets.SetDenoiser(diffusion.schedule.alpha_bar, width=32, layers=2, latents=8, heads=2)
with torch.no_grad():  # a fresh network ends in zeros: let it say something
    for weight in network.parameters():
        weight += 0.1 * torch.randn_like(weight)
precise = network.double()
norm = data.Normalisation.of(held_out.points, "part test")
x0 = norm.apply(held_out.points[::100]).double()
order = torch.randperm(512)
x_t = diffusion.q_sample(x0, 500, diffusion.noise_like(x0))
t = torch.full((len(x0),), 500)
with torch.no_grad():
    said, renumbered = precise(x_t, t), precise(x_t[:, order], t)
    more = precise(torch.randn(2, 700, 3).double(), t[:2])
error = float((renumbered - said[:, order]).norm() / said.norm())
print(f"relative difference {error:.0e}; without renumbering the answer "
      f"{float((renumbered - said).norm() / said.norm()):.2f}; 700 points: {tuple(more.shape)}")  # fmt: skip
assert error < 1e-12
run.metric("set_equivariance_error", error, "1", len(x0),
           "norm of eps(P x_t) - P eps(x_t) over the norm of eps(x_t), random weights, float64")  # fmt: skip

# %% [markdown]
# ## 2. How close are two sets of clouds?
#
# **Question.** A model made 500 chairs. Are they as good as 500 real ones?
#
# Two steps: a distance between two *clouds*, then a number for two *sets* of clouds.
#
# ### Two clouds
#
# The **Chamfer distance** (CD) lets each point look for the nearest of the other cloud:
#
# <!-- eq: chamfer-distance | Achlioptas et al. 2018, section 2; means over points as in Yang et al. 2019 -->
# $$
# \mathrm{CD}(A, B) = \frac1{|A|} \sum_{a \in A} \min_{b \in B} \| a - b \|^2
# + \frac1{|B|} \sum_{b \in B} \min_{a \in A} \| a - b \|^2 .
# $$
#
# The **earth mover's distance** (EMD) pairs the points one to one, with the least effort:
#
# <!-- eq: earth-movers-distance | Achlioptas et al. 2018, section 2; mean over points -->
# $$
# \mathrm{EMD}(A, B) = \min_{\pi} \frac1N \sum_{i=1}^N \| a_i - b_{\pi(i)} \|
# \qquad \text{over all permutations } \pi .
# $$
#
# **Predict.** Put seven eighths of a chair's points on its seat and leave few for the rest. All of them still lie on
# the chair. Which of the two distances minds more, compared with fresh points of the same chair?

# %%
dense = data.shapes("test", 4, 4096).of("chair")[3]  # many points of one chair
chair, fresh = dense[:256], dense[256:512]
on_seat = (dense[512:, 2] - dense[:, 2].median()).abs() < 0.1
heavy = torch.cat([dense[512:][on_seat][:224], dense[512:][~on_seat][:32]])
noisy = chair + 0.06 * torch.randn(256, 3)
fig, axes = plt.subplots(1, 4, figsize=(10, 2.9), gridspec_kw={"wspace": 0})
rows = []
others = {"itself": chair, "fresh points": fresh, "noise of 0.06": noisy, "most on the seat": heavy}
for ax, (name, cloud) in zip(axes, others.items(), strict=True):
    views.draw_cloud(ax, cloud, span=2.6)
    ax.set_title(name, fontsize=9)
    cd = float(metrics.chamfer_matrix(chair[None], cloud[None])[0, 0])
    rows.append([name, f"{cd:.4f}", f"{metrics.emd(chair.numpy(), cloud.numpy()):.3f}"])
run.figure(
    fig,
    "two_clouds",
    alt="The same chair of 256 points four times: itself, with fresh points, with noise, and with "
    "most of its points on the seat; each picture 2.6 units wide.",
    see="the last one lies on the chair, but its weight is in another place.",
)
table(["a chair against", "CD (units²)", "EMD (units)"], rows)

# %% [markdown]
# Fresh points of the *same* chair are not at distance 0: with finitely many points there is a floor. The
# rest of this section compares with such floors, never with 0.
#
# ### Bug museum: which Chamfer distance?
#
# Papers print "CD" and mean five different numbers; "EMD" three. Take the points 0 and 3 on an axis as one
# cloud, 0 and 1 as the other.

# %%
a, b = np.zeros((2, 1, 2, 3))
a[0, 1, 0], b[0, 1, 0] = 3, 1
to_b, to_a = (
    np.array([0.0, 2.0]),
    np.array([0.0, 1.0]),
)  # from each point to the nearest of the other
moved = np.array([0.0, 2.0])  # of the best pairing
sides = to_b**2, to_a**2
table(
    ["convention", "value", "where"],
    [
        [
            "**CD, squared, mean a direction, summed**",
            sum(x.mean() for x in sides),
            "here, PointFlow",
        ],
        ["CD, squared, summed over points", sum(x.sum() for x in sides), "Achlioptas et al. 2018"],
        ["CD, squared, mean of the directions", sum(x.mean() for x in sides) / 2, ""],
        ["CD, not squared, summed", to_b.mean() + to_a.mean(), ""],
        ["CD, squared, one direction", sides[0].mean(), ""],
        ["**EMD, not squared, mean over points**", moved.mean(), "here, PointFlow"],
        ["EMD, squared", (moved**2).mean(), "PVD (Zhou et al. 2021)"],
        ["EMD, summed over points", moved.sum(), "Achlioptas et al. 2018"],
    ],
)
ours = float(metrics.chamfer_matrix(a, b)[0, 0]), metrics.emd(a[0], b[0])
print(f"the library: CD {ours[0]}, EMD {ours[1]}")
assert ours == (2.5, 1.0)

# %% [markdown]
# So a CD is only comparable with one of the same convention, number of points and unit. Every metric of this
# course has its convention in its definition.
#
# ### Exercise 08.1: Chamfer without a loop
# Write `chamfer(a, b)`: `a` is (B, N, 3), `b` is (B, M, 3). Return (B,), the Chamfer distance of `a[i]` and
# `b[i]` by the formula above, without a loop over clouds or points.
#
# <details><summary>Hint 1</summary>
#
# `a[:, :, None] - b[:, None]` has shape (B, N, M, 3).
#
# <details><summary>Hint 2</summary>
#
# The nearest point of `b` is a minimum over M; then a mean over N. And the other way round.
#
# </details>
# </details>


# %% tags=["exercise"]
# Exercise 08.1
def chamfer(a, b):
    """Chamfer distances (B,) of pairs of clouds (B, N, 3) and (B, M, 3)."""
    # STUB: return None
    ### BEGIN SOLUTION
    squared = (a[:, :, None] - b[:, None]).square().sum(3)
    return squared.amin(2).mean(1) + squared.amin(1).mean(1)
    ### END SOLUTION


# %% tags=["check"]
exercises.check("08.1", chamfer)

# %% [markdown]
# ### Two sets of clouds
#
# Let $S$ be samples, $R$ references. The *minimum matching distance* asks how near each reference has a
# sample; *coverage*, which share of the references is the nearest of some sample:
#
# <!-- eq: mmd-and-cov | Achlioptas et al. 2018, evaluation metrics -->
# $$
# \mathrm{MMD} = \frac1{|R|} \sum_{r \in R} \min_{s \in S} D(s, r), \qquad
# \mathrm{COV} = \frac{\big|\{\arg\min_{r \in R} D(s, r) : s \in S\}\big|}{|R|} .
# $$
#
# The *1-nearest-neighbour accuracy* throws both sets together and guesses each cloud's set from its nearest
# other cloud, $N_x$ (equally many of both):
#
# <!-- eq: one-nearest-neighbour-accuracy | Yang et al. 2019, section 5 -->
# $$
# \text{1-NNA} = \frac{\sum_{s \in S} \mathbb 1[N_s \in S] + \sum_{r \in R} \mathbb 1[N_r \in R]}{|S| + |R|} .
# $$
#
# It is $\frac12$ when nobody can tell the sets apart, 1 when everyone can. And the *Jensen-Shannon divergence*
# compares where in space the points of all clouds together are, $p$ and $q$ on the cells of a grid:
#
# <!-- eq: jensen-shannon | Achlioptas et al. 2018, evaluation metrics -->
# $$
# \mathrm{JSD} = \tfrac12 \sum_c p_c \log_2 \frac{2 p_c}{p_c + q_c}
# + \tfrac12 \sum_c q_c \log_2 \frac{2 q_c}{p_c + q_c} .
# $$
#
# We test them on generators that fail in a known way: one that *copies the training set*; one that makes
# *one chair* for ever; one that makes *chairs only*; and one that makes *noise*, placed and sized like a shape.
#
# **Predict.** Which numbers notice the copies? (The references are held out.)

# %%
each, points = settings.each, settings.points
n = 3 * each
references, seen = (
    data.shapes("test", each, points).points,
    data.shapes("train", each, points).points,
)
real = data.shapes("validation", each, points).points
one = real[:1].expand(n, -1, -1) + 0.005 * torch.randn(n, points, 3)
chairs = data.shapes("validation", n, points, ("chair",)).points
flat = seen.flatten(0, 1)
noise = flat.mean(0) + flat.std(0) * torch.randn(n, points, 3)
generators = {"real shapes": real, "copies of training": seen, "one chair": one, "chairs only": chairs,
              "noise": noise}  # fmt: skip
middle = references.flatten(0, 1).mean(0)
reach = max(float((c - middle).norm(dim=2).max()) for c in (*generators.values(), references))


def to_sphere(clouds):
    """All sets by one shift and one factor into the sphere of radius 0.5, where JSD is taken."""
    return (clouds - middle) / (2.001 * reach)


# %%
rr, tt = metrics.chamfer_matrix(references, references), metrics.chamfer_matrix(seen, seen)
rows, found = [], {}
for name, clouds in generators.items():
    ss, sr = metrics.chamfer_matrix(clouds, clouds), metrics.chamfer_matrix(clouds, references)
    st = metrics.chamfer_matrix(clouds, seen)
    found[name] = {
        "MMD": metrics.mmd(sr), "COV": metrics.cov(sr), "1-NNA": metrics.one_nna(ss, sr, rr),
        "against training": metrics.one_nna(ss, st, tt), "JSD": metrics.jsd(to_sphere(clouds), to_sphere(references)),
        "interval": metrics.one_nna_interval(ss, sr, rr),
    }  # fmt: skip
    f = found[name]
    rows.append([name, f"{f['MMD']:.4f}", f"{f['COV']:.0%}", f"{f['1-NNA']:.0%}", f"{f['against training']:.0%}",
                 f"{f['JSD']:.3f}"])  # fmt: skip
table(
    [f"{n} clouds each", "MMD-CD", "COV-CD", "1-NNA-CD", "1-NNA-CD against training", "JSD"], rows
)
low, high = found["real shapes"]["interval"]
print(f"1-NNA-CD of real against real: {found['real shapes']['1-NNA']:.2f}; 95 % of permuted labels give "
      f"{low:.2f} to {high:.2f}")  # fmt: skip

# %%
fig, axes = plt.subplots(1, 4, figsize=(11, 2.8), sharey=True)
for ax, key in zip(axes, ("MMD", "COV", "1-NNA", "JSD"), strict=True):
    ax.barh(list(found), [f[key] for f in found.values()], color=["0.5", "C0", "C1", "C2", "C3"])
    ax.set_xlabel(key + (" (units²)" if key == "MMD" else " (bits)" if key == "JSD" else ""))
axes[0].invert_yaxis()
axes[2].axvspan(low, high, color="0.85", zorder=0)
axes[2].set_xlim(0, 1)
run.figure(
    fig,
    "failing_generators",
    alt="Bars of MMD, COV, 1-NNA and JSD for real shapes, copies of the training set, one chair, chairs only "
    "and noise. Copies look like real shapes everywhere; the other three stand out in 1-NNA.",
    see="the top bar is what real shapes score, the grey band what chance gives. No bar betrays the copies.",
)
assert (
    found["copies of training"]["1-NNA"] < 0.7
    and found["copies of training"]["against training"] < 0.1
)
assert (
    min(found[k]["1-NNA"] for k in ("one chair", "chairs only", "noise"))
    > found["real shapes"]["1-NNA"]
)
run.metric("real_1nna_cd", found["real shapes"]["1-NNA"], "1", n,
           f"1-NNA by CD (squared, summed) of two real sets of {n} shapes, {points} points", floor=0.5)  # fmt: skip
run.metric("copies_1nna_cd_training", found["copies of training"]["against training"], "1", n,
           f"1-NNA by CD of copies of {n} training shapes against these, {points} points")  # fmt: skip

# %% [markdown]
# - **Copies** are perfect by every number that compares with held-out shapes. Only the comparison with the
#   *training* set shows them: 1-NNA near 0, since the nearest cloud of every copy is its original. So a value
#   *below* $\frac12$ is an alarm as well.
# - **One chair** and **chairs only** can have a low MMD to the chairs; coverage and 1-NNA show what is missing.
# - **MMD is hardly moved by what is missing**, as each reference only asks for its nearest sample. **JSD** sees
#   the average shape only.
# - All of it has chance in it: two real sets differ too. The grey band is that chance.

# %% [markdown]
# ## 5. Rewards
#
# ### Does it stand?
#
# A shape stands when its centre of mass is above its *support polygon*, the convex hull of what touches the
# ground. Feet are the points at most 0.12 above the lowest one. Let $c$ be the centre of mass from above and $p_i$
# the feet. A convex hull is known by how far it reaches in each direction $u$, so the distance of $c$ to
# its edge is
#
# <!-- eq: standing-margin | derived here, from the support function of a convex set -->
# $$
# m = \min_{\|u\| = 1} \Big( \max_{i} u \cdot p_i - u \cdot c \Big) ,
# $$
#
# and the shape stands where $m \ge 0$.
#
# **Predict.** What share of our chairs falls?

# %%
margin = rewards.standing_margin(held_out.points)
falls = {
    kind: float((margin[held_out.label == k] < 0).float().mean()) for k, kind in enumerate(CLASSES)
}
print("share that falls:", ", ".join(f"{kind}s {share:.0%}" for kind, share in falls.items()))
of_chairs = margin[held_out.label == 0]
pick = int(of_chairs.argmin()), int(of_chairs.argmax())
fig, axes = plt.subplots(1, 4, figsize=(11, 3), width_ratios=[1, 1.2, 1, 1.2])
for i, (index, word) in enumerate(zip(pick, ("falls", "stands"), strict=True)):
    cloud = held_out.of("chair")[index]
    views.draw_cloud(axes[2 * i], cloud, turn=70, lift=8, span=2.6)
    views.draw_support(axes[2 * i + 1], cloud)
    axes[2 * i].set_title(f"{word}: margin {of_chairs[index]:.2f} units", fontsize=9)
axes[1].legend(fontsize=7, loc="upper left")
run.figure(
    fig,
    "falling_and_standing",
    alt="Two chairs from the side and from above. From above: points in grey, feet in black, their convex hull "
    "in green, the centre of mass as a red cross; it is outside for the first chair, inside for the second.",
    see="a leaning back over rear feet that stand far in: the cross leaves the green polygon.",
)

# %% [markdown]
# ### Exercise 08.2: does it stand?
# Write `stands(clouds, sole)`: `clouds` is (B, N, 3), `sole` the height of the layer that touches the ground.
# Return (B,): 1 (or True) for what stands, 0 for what falls. Every point weighs the same.
#
# <details><summary>Hint 1</summary>
#
# Take some 100 directions, `u` of shape (2, 100). `clouds[..., :2] @ u` says how far each point reaches in each.
#
# <details><summary>Hint 2</summary>
#
# Points that are no feet must not count: `masked_fill(..., -torch.inf)` before the maximum over points.
#
# </details>
# </details>


# %% tags=["exercise"]
# Exercise 08.2
def stands(clouds, sole):
    """Which of the clouds (B, N, 3) stand."""
    # STUB: return None
    ### BEGIN SOLUTION
    angle = 2 * torch.pi / 120 * torch.arange(120)
    u = torch.stack([angle.cos(), angle.sin()])
    height = clouds[..., 2]
    ground = height <= height.amin(1, keepdim=True) + sole
    reach = (clouds[..., :2] @ u).masked_fill(~ground[..., None], -torch.inf).amax(1)
    return (reach - clouds[..., :2].mean(1) @ u).amin(1) >= 0
    ### END SOLUTION


# %% tags=["check"]
exercises.check("08.2", stands)

# %% [markdown]
# ## Recap
#
# - A cloud is a set. The network treats it as one exactly; that was measured, not assumed.
# - CD and EMD need their convention, unit and number of points beside them, and a floor to compare with.
# - A generator of copies passes every test against held-out shapes; compare with the training set too.

# %% [markdown]
# ## Results

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - **Two Chamfer distances compared** that follow two conventions: factors of 2, of N, a square.
# - **A number without a floor.** Two samples of the same points are not at distance 0.
#
# ## Further reading
#
# - Achlioptas, Diamanti, Mitliagkas, Guibas 2018, *Learning representations and generative models for 3D point
#   clouds*, arXiv 1707.02392: CD, EMD, MMD, COV, JSD
# - Yang et al. 2019, *PointFlow*, arXiv 1906.12320: 1-NNA for clouds
# - Lee et al. 2019, *Set Transformer*, arXiv 1810.00825; Tyszkiewicz et al. 2023, *GECCO*, arXiv 2303.05916
#
# ## Next
#
# [09 · Molecules](09_molecules.ipynb): another kind of set, with chemistry as the judge.

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
# # 10 · Every result on one page
#
# What does the course claim, what was measured, and what failed? At the end you will have read every
# claim beside its number, chosen a method for a problem of your own by questions that each have a
# number behind them, and foretold what a reward of your own would do to a model of real molecules,
# before a single step of training.

# %% [markdown]
# | | quick | laptop | full |
# |---|---|---|---|
# | minutes to read | 30 | 30 | 30 |
# | minutes to run (2 CPU cores) | 1 | 8 | hours, not run here |
# | memory | 1 GB | 1 GB | 2 GB |
# | GPU | not needed | not needed | helps |
#
# Prerequisites: 07 (RGDM on a world with a known answer); 09 for the molecules. The presets differ only in
# how long the reward of section 6 is trained on.

# %% [markdown]
# ## Goals
#
# - **read** a claim with its bound, its seeds, and the state of the code that measured it
# - **say** which published numbers may stand beside ours, and which may not
# - **choose** a method by what your reward is and what a sample may cost
# - **explain** what failed
# - **forecast** the effective sample size and the gain of a reward of your own, then train on it

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
from functools import partial
from itertools import groupby

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from rdkit.Chem import Crippen, Descriptors, rdMolDescriptors

from rgdm_lib import payoff, rgdm, training
from rgdm_lib._data import data_path, data_root
from rgdm_lib.course import claims, exercises, notebook, overview
from rgdm_lib.molecules import data, energies, metrics, model, regressors, rewards, views

run = notebook.start("10_results", PRESET, SEED, OUT_DIR)
settings = run.settings(
    quick={"steps": 8, "batch": 16, "live": 16, "live_steps": 40},
    laptop={"steps": 200, "batch": 64, "live": 200, "live_steps": 100},
    full={"steps": 8000, "batch": 64, "live": 2000, "live_steps": 200},
)


def table(header, rows):
    """Show rows of text as a table."""
    lines = [header, ["---"] * len(header), *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


# %% [markdown]
# ## 1. Every claim
#
# **Question.** What does this course say, and does it hold?
#
# A *claim* is a sentence tied to a metric, a bound, a preset and a command. It holds if **every** seed's value
# meets the bound; a good mean does not help. Most bounds were written down before the numbers were known. Seven were not: the six
# behind 07's "which method when", and the one on the worst training of the ring, came after their tables. They say that a result still
# stands, not that it was foreseen. Nothing below is typed in: it is read from `rgdm_lib/course/claims.py` and from the reference results that
# ship in `data/reference`. `python -m rgdm_lib.course claims` prints the same.
#
# **Predict.** Of all claims, which share fails? A list without a failure would make one suspect that its bounds were
# chosen afterwards.

# %%
reference = data_root() / "reference"
sources = data_root().parent / "notebooks"  # beside the data in a clone; not in an installed package
statuses = claims.from_reference(reference, sources if sources.is_dir() else None)
by_id = {status.claim.id: status for status in statuses}


def outcome(status):
    """Pass, fail or not run; "measured before" where the code has changed since."""
    word = f"**{status.outcome}**" if status.outcome == "fail" else status.outcome
    return word + (", measured before" if status.stale else "")


for name, group in groupby(statuses, lambda status: status.claim.notebook):
    display(Markdown(f"**[{name}]({name}.ipynb)**"))
    table(["claim", "id", "preset", "bound", "each seed", "mean", ""],
          [[s.claim.sentence, f"`{s.claim.id}`", s.claim.preset, s.claim.bound_text,
            ", ".join(f"{v:.3g}" for v in s.values) or "-",
            overview.in_words(s.values) if s.values else "-", outcome(s)] for s in group])  # fmt: skip

# %% [markdown]
# *Not run* says that nobody has measured it. *Measured before* says that the notebook, the library or the data
# changed after the measurement: the number is what an older state gave, and `python -m rgdm_lib.course reference
# --stale` measures it again.

# %%
count = {word: sum(s.outcome == word for s in statuses) for word in ("pass", "fail", "not run")}
for word, metric in (("pass", "claims_passing"), ("fail", "claims_failing"), ("not run", "claims_not_run")):
    run.metric(metric, count[word], "1", len(statuses),
               f"claims of the course whose outcome is {word!r} by the shipped reference results")  # fmt: skip

# %% [markdown]
# ### How tight is a bound?
#
# Bounds come in different units, so we draw how much of what its bound allows a number uses. For "at most $b$"
# that is the value over $b$; for "at least $b$" it is $b$ over the value, or, where a loss down to $b < 0$ is allowed, the value over $b$;
# between two bounds it is the distance
# from their middle over half their width. 1 is the bound. Left of it a claim holds.
#
# **Predict.** Are the claims that pass near their bounds or far from them? What would each tell you about
# how the bound was chosen?

# %%
fig, ax = plt.subplots(figsize=(8.5, 0.27 * len(statuses) + 0.8))
left, right = 0.01, 30.0  # what lies outside is drawn at the edge
labels = []
for y, status in enumerate(statuses):
    claim = status.claim
    labels.append(f"{claim.notebook[:2]} {claim.id}" + ("" if status.values else " (not run)"))
    used = np.clip([overview.strain(claim, value) for value in status.values], left, right)
    colour = {"pass": "C0", "fail": "C1", "not run": "0.7"}[status.outcome]
    for at in used:
        marker = "<" if at == left else ">" if at == right else "o"
        ax.plot(at, y, marker, color=colour, ms=5, mfc="none" if status.stale else colour)
ax.axvline(1, color="k", lw=1)
ax.set(xscale="log", xlim=(left / 1.3, right * 1.3), ylim=(len(statuses) - 0.4, -0.6),
       xlabel="measured over bound (1 and less: holds); a point for each seed")  # fmt: skip
ax.set_xticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
ax.set_yticks(range(len(labels)), labels, fontsize=9)
ax.grid(axis="y", color="0.93")
for word, colour in (("pass", "C0"), ("fail", "C1")):
    ax.plot([], [], "o", color=colour, label=word)
ax.plot([], [], "o", color="0.4", mfc="none", label="measured before")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
run.figure(
    fig,
    "claims_over_bounds",
    alt="A row for each claim, with a point for each seed: measured value over bound on a logarithmic axis, "
    "with a line at 1. Points of claims that pass are blue and left of it; those of claims that fail are "
    "orange and have at least one point right of it. Hollow points were measured by older code.",
    see="a claim fails by its worst seed. A triangle at the left edge uses nothing of what its bound allows: "
    "what was feared as a loss was none.",
)

# %% [markdown]
# ### Exercise 10.1: a tighter bound
# You want to promise more. Write `would_fail(values, bounds, factor)` for claims of the kind "at most $b$":
# `values` is a float tensor (C, S), one row a claim and one column a seed, NaN where a seed was not run; `bounds` is
# (C,), all above 0. Return (C,) bools: which claims hold now, and would fail were every bound multiplied by `factor`?
#
# A claim of which nobody ran a seed holds nothing and fails nothing.
#
# <details><summary>Hint 1</summary>
#
# One seed decides. Which?
#
# <details><summary>Hint 2</summary>
#
# `values.nan_to_num(-math.inf)` makes a missing seed harmless for `.max(1).values`.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 10.1
def would_fail(values, bounds, factor):
    """Which claims hold, and would not with bounds times factor."""
    # STUB: return None
    ### BEGIN SOLUTION
    worst = values.nan_to_num(-math.inf).max(1).values  # a claim not run has -inf: it never exceeds
    return (worst <= bounds) & (worst > factor * bounds)
    ### END SOLUTION

# %% tags=["check"]
exercises.check("10.1", would_fail)

# %% [markdown]
# Here is what half of every bound would do to the claims of the course, of all kinds: whatever uses more than half of
# its allowance. (A share that has to be at least 0.7 cannot be below 0.7 on this scale, so such claims are always on the list.)

# %%
worst = {s.claim.id: max(overview.strain(s.claim, v) for v in s.values) for s in statuses if s.values}
tight = [name for name, used in worst.items() if 0.5 < used <= 1]
print(f"hold, and use more than half of their bound: {', '.join(tight) or 'none'}")

# %% [markdown]
# ## 2. Published numbers beside ours
#
# **Question.** Is 70 % of stable molecules good?
#
# Compared with what? A published number comes with a data set, a rule, a sampler and a number of samples. Change one of
# them and the number means something else.

# %%
def ours(metric, form=".1%", name="09_molecules", preset="laptop"):
    """A measured number of the course, as text."""
    return overview.in_words(overview.measured(reference, name, preset, metric), form).replace("%", " %")


table(
    ["molecules", "data", "atoms stable", "molecules stable", "valid", "network calls a sample"],
    [
        ["data, QM9", "", "99.0 %", "95.2 %", "97.7 %", ""],
        ["G-SchNet", "QM9", "95.7 %", "68.1 %", "85.5 %", ""],
        ["EDM, arXiv 2203.17003", "QM9", "98.7 %", "82.0 %", "91.9 %", "1000"],
        ["GeoLDM, arXiv 2305.01140", "QM9", "98.9 %", "89.4 %", "93.8 %", ""],
        ["VEDA-E (EDM's network), arXiv 2511.09568", "QM9", "99.4 %", "93.7 %", "98.1 %", "50"],
        ["EDM + RLPF, force reward, arXiv 2508.16521", "QM9", "", "93.4 %", "", "1000"],
        ["*data, heavy7*", "", ours("base_atom_stable_ceiling"), ours("base_mol_stable_ceiling"),
         ours("base_valid_ceiling"), ""],
        ["*our base model*", "heavy7", ours("base_atom_stable"), ours("base_mol_stable"), ours("base_valid"),
         model.SAMPLING_STEPS],
        ["*guided away from its own mistakes*", "heavy7", ours("corrected_atom_stable"), ours("corrected_mol_stable"),
         ours("corrected_valid"), 2 * model.SAMPLING_STEPS],
        ["*rewarded for stability, at its strength*", "heavy7", ours("stability_atom_stable"), ours("stability_mol_stable"),
         ours("stability_valid"), 3 * model.SAMPLING_STEPS],
    ],
)  # fmt: skip

# %% [markdown]
# **What may be compared.** The first block is one protocol: all of QM9 (about 18 atoms a molecule), 10,000 samples, EDM's rule and
# evaluator, numbers as later papers reprint them. Ours share the rule and the number of samples and nothing
# else: `heavy7` holds the 3,921 molecules with at most 7 heavy atoms, which are smaller and thus easier to get right as a
# whole, and far fewer, thus harder to learn from. Each block has its own row of data; a model may only be read against
# its own. EDM's rule gives the data 99.0 % of stable atoms in the papers, and a little more by its public code and by ours.
# The last published row is trained by a reward, on what it is judged by in part, and our last row by what it is judged by: they say
# what a reward can buy, not how good a base is.
#
# RGDM's paper reports molecule generation as well, but its tables could not be had. So its effect is compared with what the course can
# compute: the exact payoff of the same samples.
#
# **Why ours is not higher.** A small network, trained for under three hours on one core, sampled without
# tricks: more noise than DDPM's, or a lower temperature, would raise the stable share by narrowing the law (09, section 2). The row of
# the model that goes away from its own mistakes asks two networks at each step, the base and one that learned from the base's samples; its sampler is as
# neutral, and it finds *more* of the held-out molecules (09, section 3). The last row is RGDM's, with EDM's rule as its reward (09, section 5).

# %%
def property_row(metric):
    """Our mean absolute errors as text, the gap in meV."""
    found = {name: overview.measured(reference, "09_molecules", "laptop", f"property_mae_{name}{metric}") for name in regressors.UNITS}
    found["gap"] = tuple(1000 * energies.HARTREE * value for value in found["gap"])
    return [overview.in_words(found[name], form) for name, form in (("alpha", ".2f"), ("mu", ".2f"), ("gap", ".0f"))]


table(
    ["property near a wanted value, mean absolute error", "data", "alpha (Bohr³)", "mu (Debye)", "gap (meV)"],
    [
        ["atoms only, as published", "QM9", "3.86", "1.05", "866"],
        ["conditional EDM, arXiv 2203.17003", "QM9", "2.76", "1.11", "655"],
        ["EEGSDE (a guide that has a gradient), arXiv 2209.15408", "QM9", "2.50", "0.78", "487"],
        ["JODO (Huang et al. 2023)", "QM9", "1.42", "0.63", "335"],
        ["the evaluator itself, as published", "QM9", "0.10", "0.04", "64"],
        ["*atoms only*", "heavy7", *property_row("_atoms_only")],
        ["*our conditional model, trained longer*", "heavy7", *property_row("_longer")],
        ["*ours with classifier guidance (a gradient)*", "heavy7", *property_row("_classifier")],
        ["*guided by RGDM*", "heavy7", *property_row("")],
        ["*our evaluator itself*", "heavy7", *property_row("_floor")],
    ],
)  # fmt: skip

# %% [markdown]
# **What may be compared.** The question is the same: a molecule of a drawn size with a drawn value of the property, judged by a network on the other half of the training molecules
# (09, section 5). The first block is QM9, as later papers reprint it. In ours the halves are thirty times smaller, the evaluator is worse, and one network answers for three properties.
# Read each block between its own two rows: *atoms only* above, the evaluator's own error below. Published models are asked for the value itself, ours louder (*gain*, there).

# %%
shape_metrics = {}
path = reference / "08_point_clouds.laptop.json"
if path.is_file():
    shape_metrics = claims.read_reference(path)["metrics"]
    shape_metrics = {name: one["values"] for name, one in shape_metrics.items() if "nna" in name}
table(
    ["point clouds, 1-NNA in % (50 is best)", "data", "airplane, CD / EMD", "chair, CD / EMD"],
    [
        ["PointFlow", "ShapeNet", "75.7 / 70.7", "62.8 / 60.6"],
        ["DPM (Luo & Hu)", "ShapeNet", "76.4 / 86.9", "60.1 / 74.8"],
        ["PVD", "ShapeNet", "73.8 / 64.8", "56.3 / 53.3"],
        ["LION, arXiv 2210.06978", "ShapeNet", "67.4 / 61.2", "53.7 / 52.3"],
    ],
)  # fmt: skip
for name, values in sorted(shape_metrics.items()):
    print(f"ours, parametric shapes: {name} = {overview.in_words(tuple(values))}")
if not shape_metrics:
    print("ours: no 1-NNA of point clouds among the reference results")

# %% [markdown]
# **What may be compared: nothing with ours.** The rows are one protocol: ShapeNet, 2,048 points, normalised by the data set
# (PointFlow's), as later papers reprint them. ShapeNet may not be shipped, so this course draws its own chairs, planes
# and tables, whose parameters are known and whose payoff can therefore be computed. The two benchmarks of the field are not
# comparable with each other either: DPM's own paper scales each cloud to its own box and reports another 1-NNA (airplane
# 64.8 / 75.1) for the same model. And CD here sums *squared* distances: name it when you quote it.

# %% [markdown]
# ## 3. Which method should I use?
#
# **Question.** You have a pretrained model and a reward. What now?
#
# Notebook 07 ran thirteen methods on one world whose payoff distribution is known: same network, same sampler, same
# rewards, settings searched for each. Here is its table, from the file that ships.
#
# **Predict.** One of them never trains anything and is nearer to the payoff than most. What does it cost?

# %%
rivals_table = json.loads(data_path("worlds/rivals.json").read_text())
rivals = rivals_table["methods"]


def ends(runs, what="over_floor"):
    """What runs end with, one a seed; those that broke are left out."""
    return [run_["curve"][-1][what] for run_ in runs if run_["curve"] and not run_["failure"]]


def floors(name, evaluations=None):
    """Distance of a method to the payoff, mean over seeds, at its own or another number of rewards."""
    runs = rivals[name]["runs"]
    if evaluations is not None:
        runs = [one for one in rivals[name]["other_sizes"] if one["evaluations"] == evaluations]
    return f"{np.mean(ends(runs)):.1f}" if runs else "not measured"


def spent(name):
    """Reward evaluations: of the training, or of every sample."""
    evaluations = rivals[name]["runs"][0]["curve"][-1]["evaluations"]
    return f"{evaluations:,}" + (" a sample" if rivals[name]["kind"] == "sample" else "")


order = sorted(rivals, key=lambda name: np.mean(ends(rivals[name]["runs"])))
colours = {"pool": "C0", "policy": "C1", "sample": "C2"}
fig, ax = plt.subplots(figsize=(7.5, 4.2))
for y, name in enumerate(order):
    found = ends(rivals[name]["runs"])
    ax.plot(found, [y] * len(found), "o", color=colours[rivals[name]["kind"]], ms=5, alpha=0.7)
    ax.text(45, y, spent(name), va="center", fontsize=8)
ax.axvline(rivals_table["exact_denoiser"]["over_floor"], color="k", lw=1)
ax.set_yticks(range(len(order)), order, fontsize=9)
ax.set(xscale="log", xlim=(1, 42), ylim=(len(order) - 0.5, -0.5),
       xlabel="distance to the exact payoff, in floors (1: a fresh exact sample)")  # fmt: skip
ax.set_xticks([1, 2, 5, 10, 20, 40], [1, 2, 5, 10, 20, 40])
ax.minorticks_off()
ax.text(45, -0.75, "rewards", va="bottom", fontsize=8)
words = {"pool": "learns from a pool", "policy": "learns on its own paths", "sample": "trains nothing"}
for kind, word in words.items():
    ax.plot([], [], "o", color=colours[kind], label=word)
ax.plot([], [], "k", lw=1, label="exact denoiser, same sampler")
ax.legend(fontsize=8, loc="upper right")
run.figure(
    fig,
    "rivals_distance",
    alt="Distance to the exact payoff on a logarithmic axis, a row for each method, nearest first, a point for each "
    f"seed, with the exact denoiser as a line. Means: {', '.join(f'{name} {floors(name)}' for name in order)}.",
    see="several good methods, and they differ by what they cost: compare the number of rewards at the right, and "
    "whether they are paid once or for every sample.",
)


# %%
def standing(identity):
    """A claim's outcome and measured mean, as text."""
    status = by_id.get(identity)
    return f"`{identity}`: {overview.in_words(status.values)}, {status.outcome}" if status else f"`{identity}`"


few = min(one["evaluations"] for one in rivals["value_guidance"]["other_sizes"])
some = max(one["evaluations"] for one in rivals["rgdm"]["other_sizes"])
many = max(one["evaluations"] for one in rivals["ddpo"]["other_sizes"])
drift = ours("tau_over_reached_naive_4_rounds", ".1f", "06_payoff_sampling")
table(
    ["question", "if yes", "what stands behind it"],
    [
        ["1. Is the wish a label that the data carry?", "train on the label: *conditional* (03)",
         standing("conditional")],
        ["2. Few samples wanted, rewards cheap?", "*best of n*, *particles*: train nothing (06)",
         f"particles {floors('particles')} floors at {spent('particles')}; best of n {floors('best_of_n')} at "
         f"{spent('best_of_n')}; {standing('particles')}; {standing('best-of-n')}"],
        ["3. Only a higher reward wanted, no exact tilt?", "*best of n*; watch what else moves",
         f"DDPO without a price on the KL: reward {np.mean(ends(rivals['ddpo']['other_sizes'], 'reward')):.0f} after {many:,} where "
         f"the payoff has {rivals_table['exact_reward']:.2f}, and {floors('ddpo', many)} floors away"],
        ["4. Has the reward a gradient?", "use it on the *soft value*, not on the denoised guess (06)",
         f"gradient of the reward {floors('reward_gradient')} floors, of a learned value {floors('value_guidance')}; "
         f"{standing('soft-value')}"],
        ["5. Rewards very dear, slower samples acceptable?", "*value guidance*",
         f"{floors('value_guidance', few)} floors at {few:,} rewards, RGDM {floors('rgdm', few)}; {standing('few-rewards')}"],
        ["6. Some thousand rewards, and a plain model at the end?", "**RGDM** (07)",
         f"{floors('rgdm', some)} floors at {some:,} rewards, {floors('rgdm')} at {spent('rgdm')}; {standing('8d')}"],
        ["7. Many temperatures or wishes, one training?", "a network that *reads the reward*",
         f"{floors('conditional')} floors, if the rewards asked for are drawn from the payoff's; {standing('reads-reward')}"],
        ["8. Does no sample of the model meet the wish (an ESS near 1)?", "*temper* with balance weights (06), or a policy "
         "gradient with a price on the KL (04)",
         f"{standing('tempering-balanced')}; DDPO with KL {floors('ddpo_kl')} floors; both measured where 10 % of the samples are effective"],
        ["9. Tempted to iterate weights?", "only with weights back to the fixed target",
         f"without them {floors('reward_weighted')} floors; after 4 rounds a temperature {drift} times too cold; {standing('iterated')}"],
    ],
)  # fmt: skip

# %% [markdown]
# Take the order of the questions, not the digits: it is one world, eight dimensions, a smooth reward, a network that fits it,
# and settings that the exact answer chose. On molecules the network is what limits all that train: of the gap to the payoff's QED, with 10,000 rewards
# and 8,000 batches, RGDM closes a fifth, the gradient of a learned value 3 %, and a network that reads the reward ends below the base (one training
# seed; 09, section 5). A property near a target is a label that the data carry, and the first row holds: a network that reads it off noisy molecules, and steers, is far
# ahead of RGDM (last line below).
# On point clouds, with 12,000 rewards each, a label is worth having where there is one; where
# there is none, RGDM is ahead of all that trains, and particles, which train nothing and pay for every sample, are ahead of it (08, section 6):

# %%
clouds_on = "08_point_clouds"
print("chairs among the samples, when a chair is wanted: RGDM", ours("chair_share_class_probability", ".1%", clouds_on),
      *(f", {word} {ours(f'chair_share_{name}_class', '.1%', clouds_on)}"
        for name, word in (("conditional", "the label as input"), ("classifier", "its gradient"))))
print("how many times fewer chairs fall, when chairs are to stand: RGDM", ours("falling_ratio", ".1f", clouds_on),
      *(f", {word} {ours(f'falling_ratio_{name}_steady', '.1f', clouds_on)}"
        for name, word in (("conditional", "the reward as input"), ("value", "gradient of a learned value"))))
print("molecules near a wanted property, error over that of the model told the property and trained as long:",
      "; ".join(f"{name}: RGDM {ours(f'property_mae_ratio_{name}', '.2f', '09_molecules')}, "
                f"classifier guidance {ours(f'property_mae_ratio_{name}_by_classifier', '.2f', '09_molecules')}" for name in regressors.UNITS))  # fmt: skip

# %%
best = order[0]
run.metric("rgdm_over_nearest_rival", np.mean(ends(rivals["rgdm"]["runs"])) / np.mean(ends(rivals[best]["runs"])),
           "1", rivals_table["judged"],
           "RGDM's distance to the exact payoff of the 8-D mixture over that of the nearest of thirteen methods, "
           "means over seeds")  # fmt: skip

# %% [markdown]
# ## 4. What failed, and why
#
# Each claim that fails, with the reason as far as it is known. No bound was widened. But one claim changed its subject: that the whole law of QED
# comes along was first asked of training alone (0.19 for at most 0.05), and is now asked of the model at its strength. And the indicator and the ring's
# worst training meet their bounds since their steps were raised after a first table, on the same seeds (07). The claims on properties were first asked of a model at a strength,
# then, when a trial at one broke its molecules, of the model as it was trained; they fail either way. Since then all models are asked at a gain, which helps the
# other side more: against that model asked plainly the bounds would be met for two of the three.

# %%
ON, NOT = "07_rgdm", "no reason is known yet; its notebook shows all that was measured"
trained, stronger = (
    ", ".join(f"{ours(f'qed_gap_closed{at}_ess{share}', '.2f')} at {share} %" for share in (80, 40, 10))
    for at in ("_at_1", "")
)
GAP = ("training alone stops on the way. It is the network, not the weights: batches drawn by them have the payoff's QED, and the control, trained the same way without "
       "reward, stands still. Nor is it time: four times the batches close "
       f"{ours('qed_gap_closed_longer_ess40', '.2f')} at 40 %. A graph is decided in the middle of the chain, and there the small network is not precise "
       "enough to hold a tilt (09, section 5)")  # fmt: skip
BASE = ("the base model is small, and longer training did not move this. Guided away from what it learns from its own samples it is off by "
        f"{ours('corrected_element_error', '.4f')} in its elements and {ours('corrected_qed_error', '+.4f')} in QED (09, section 3); RGDM's "
        "models start from the base as it is, and the correction is added to them when sampling (09, section 5)")  # fmt: skip
PROPERTY = ("the conditional model hardly hears what it is told: of its denoising loss half a percent depends on the wanted value, and 8,000 batches of 1,568 molecules are few to learn that from noise. "
            "RGDM teaches through the same input, and the model it is measured against has true values to learn from and is asked at a gain of its own. Asked plainly, as EDM does, that model misses by a sixth to a quarter more. "
            "A network that reads noisy molecules, and steers, does far better than both (09, section 5)")  # fmt: skip
REASONS = {
    "gradient-variance": "a first look had promised 10 to 30. Most of it was a policy gradient that is used badly: with "
                         "one random time a sample the ratio is "
                         f"{ours('gradient_variance_ratio_ess40_one_draw', '.0f', '06_payoff_sampling')}, with all times, as "
                         "both are used, a single digit. Lower variance is not a theorem",
    "8d-ddpo": "a policy gradient that has the price of the KL in its objective, its whole gradient included, aims at the payoff "
               "too and gets there. Without that price the factor is at least "
               f"{ours('ddpo_without_kl_over_rgdm_reward_evaluations', '.0f', ON)}: it never arrives",
    "relaxed-trained": "the control, trained on the base's own samples in equal weights, relaxes by twice the base's energy: a copy of samples keeps their errors and "
                       "adds its own. The reward takes that back, and no more; the strength does the rest (09, section 5)",
    "property-alpha": PROPERTY,
    "property-mu": "the same",
    "property-gap": "the same",
    "property-mu-physics": "the same",
    "elements": BASE,
    "base-qed": BASE,
    "qed-trained-ess80": GAP,
    "qed-trained-ess40": "the same",
    "qed-trained-ess10": "the same",
}  # fmt: skip
failing = [status for status in statuses if status.outcome == "fail"]
table(["failing claim", "bound", "measured", "why"],
      [[f"`{s.claim.id}`: {s.claim.sentence}", s.claim.bound_text, s.measured, REASONS.get(s.claim.id, NOT)]
       for s in failing])  # fmt: skip
print(f"QED, share of the gap to the payoff that training alone closed: {trained}")
print(f"the same models at a strength set on other samples: {stronger}")

# %% [markdown]
# Five lessons, three from this list and two from what is no longer on it.
#
# - **Two of our guesses were refuted by our own tests**: a tenfold lower variance, and tenfold fewer rewards than DDPO. Both had
#   come from a rival that was not run as well as it can be. Tune the other side as carefully as your own.
# - **A target that is right is not a network that reaches it.** On toy worlds and known shapes the gap is closed; on molecules
#   training alone closes about half. The payoff's weights tell you the target before training, so the miss can be seen, and
#   one number, the strength, makes up for the rest, at 40 % for the whole law of QED (09, section 5).
# - **The base comes first.** A reward multiplies what the base gets wrong. And some of that can be had back without data and without a
#   reward: a copy that learned from the base's own samples shows the direction of its mistakes (09, section 3). That direction adds
#   to the reward's: at the payoff's QED 81 to 86 % of the molecules are stable in three trainings, from the base as it is 71 % (09, section 5).
# - **A base is what its sampler draws.** The ring stood on this list, at 2.1 floors for 1.5, and the network was blamed. It was mostly the
#   steps of the sampler: even ones drew modes 3 % too narrow, and weights move a mode by the *square* of its width. A base trained three times
#   as long, in even steps, still led to pools of weighted samples 1.5 to 1.7 floors away; with steps that are short where there is little
#   noise, as many of them, the claim holds (07, section 2). The exact denoiser of the *payoff* in the same sampler had looked innocent.
# - **Train where it is decided.** The shares of classes of point clouds stood on this list, too: of the 86 % chairs of a payoff two trainings made 90 and 81 %. How much noise a training sees most was chosen
#   for shapes; a class is decided where there is three times as much. Three trainings there made 88, 85 and 89 % (08, section 6).

# %% [markdown]
# ## 5. Limits
#
# Of the method:
#
# - **Weights need overlap.** The effective sample size falls exponentially with the number of independent things the reward
#   depends on. Tempering helps by a few steps, not without end.
# - **It is not the best at everything.** A learned soft value needs fewer rewards; particles get nearer and need no training. RGDM's
#   product is a plain model with the old cost of a sample.
# - **The tail is where the base is worst**, and where a cold temperature looks.
# - **It does what the reward says.** If the reward can be fooled, its payoff distribution is full of what fools it.
#   Show what the reward does not see.
#
# Of the course:
#
# - **Small.** Molecules of at most 7 heavy atoms, one size of network, a CPU. No number here is a QM9 number.
# - **Few seeds.** Some claims rest on one training. The table above counts runs of the notebook: where all of a claim's values are alike,
#   the notebook read one shipped result. A range over two or three seeds is
#   no interval of confidence.
# - **Exact answers chose the settings** of the rivals and of RGDM on the toy worlds. Nobody has them elsewhere.
# - **Four rewards on molecules**: QED, whose judge is the graph and not physics, EDM's rule itself, a property by the word of a network, and the energy that a sample gives off when it relaxes.
# - **The paper itself was not reproduced.** Its tables could not be had, and its derivation, as public reviews say, has errors. The course
#   re-derives the method and tests every equation instead.

# %% [markdown]
# ## 6. Bring your own reward
#
# **Question.** You have an idea of a good molecule. What would you get?
#
# Most of the answer needs no training. The base model's 10,000 samples ship with the course. Score them, weigh them, and you
# know the effective sample size and the mean reward that a *perfect* training would reach.
#
# Our example is solubility in water. ESOL (Delaney 2004) estimates its logarithm from four numbers that RDKit knows. It has no
# gradient: atoms must be bonds and rings first. Here is all that a reader has to write, in twelve lines. **Replace the function
# with yours and run the rest again.**

# %%
samples = data.load_set(data_path(model.BASE_SAMPLES))
sizes = torch.from_numpy(samples.n_atoms)


def my_idea(mol):
    """Log10 of solubility in mol/l by ESOL; RDKit's logP in place of Daylight's."""
    aromatic = sum(atom.GetIsAromatic() for atom in mol.GetAtoms()) / mol.GetNumHeavyAtoms()
    flexible = rdMolDescriptors.CalcNumRotatableBonds(mol)
    return (0.16 - 0.63 * Crippen.MolLogP(mol) - 0.0062 * Descriptors.MolWt(mol)
            + 0.066 * flexible - 0.74 * aromatic)  # fmt: skip


idea = rewards.per_molecule(my_idea)  # a batch in, a vector out; NaN for what is no molecule
value = idea(samples)

# %%
valued = torch.isfinite(value)
spread = float(value[valued].std())
n = int(valued.sum())
print(f"{n:,} of {len(samples):,} samples have a value; mean {value[valued].mean():.3f}, standard deviation {spread:.3f}")

# %% [markdown]
# ### The forecast
#
# **Predict.** For a Gaussian reward of standard deviation $s$ the effective share has a closed form (09):
#
# <!-- eq: ess-gaussian-reward | derived here -->
# $$
# \frac{\mathrm{ESS}}{n} \to \frac{\mathbb E[e^{r/\tau}]^2}{\mathbb E[e^{2r/\tau}]} = e^{-s^2/\tau^2} .
# $$
#
# At an effective share of 40 % that is $\tau \approx 1.04\, s$, and the mean moves by $s^2/\tau \approx 0.96\, s$. Which of the two
# will be off for your reward: one with a wall at its best value, one with a long tail?

# %%
shares, forecasts = (0.8, 0.4, 0.1), {}
for share in shares:
    tau = payoff.temperature_for_ess(value, share, sizes)
    forecasts[share] = tau, payoff.Draw(samples, value, sizes).weigh(tau)  # sizes kept
rows = []
for share, (tau, weighted) in forecasts.items():
    mean = float(weighted.expectation(value))
    off = float(weighted.expectation((value - mean) ** 2) / weighted.ess) ** 0.5
    gaussian = spread / math.sqrt(-math.log(share))
    rows.append([f"{share:.0%}", f"{tau:.3f}", f"{gaussian:.3f}", f"{weighted.ess:,.0f}", f"{mean:.3f} ± {off:.3f}",
                 f"{float(value[valued].mean()) + spread**2 / gaussian:.3f}"])  # fmt: skip
table(["effective share", "temperature", "by the Gaussian formula", "effective samples", "**what you would get**: mean",
       "by the Gaussian formula"], rows)  # fmt: skip

# %%
tau, target = forecasts[0.4]
promised = float(target.expectation(value))
run.metric("example_reward_base", float(value[valued].mean()), "1", n,
           "mean of the example reward (ESOL's log solubility) over the base samples with a value")  # fmt: skip
run.metric("example_reward_payoff_ess40", promised, "1", n,
           "its mean under payoff weights, sizes kept, at an effective share of 40 % of the base samples with a value")  # fmt: skip

# %%
grid = np.geomspace(0.1 * spread, 6 * spread, 40)
ess = [payoff.effective_sample_size(payoff.log_weights(value, s, strata=sizes)) / n for s in grid]
fig, (first, second) = plt.subplots(1, 2, figsize=(9.5, 3.4))
first.semilogx(grid, ess, label="this reward, sizes kept")
first.semilogx(grid, np.exp(-((spread / grid) ** 2)), "--", label="Gaussian of the same spread")
first.plot([t for t, _ in forecasts.values()], shares, "o", color="C2", label="the table's three")
first.set(xlabel="temperature (in units of the reward)", ylabel="ESS / samples with a value", ylim=(0, 1.05))
first.legend(fontsize=8)
bins = np.linspace(float(value[valued].min()), float(value[valued].max()), 41)
second.hist(value[valued], bins, density=True, color="0.8", label="base samples")
for share, (_, weighted) in forecasts.items():
    second.hist(value[valued], bins, weights=weighted.log_weight[valued].exp(), density=True,
                histtype="step", lw=1.5, label=f"payoff, ESS {share:.0%}")  # fmt: skip
second.set(xlabel="reward", ylabel="density")
second.legend(fontsize=8)
run.figure(
    fig,
    "forecast",
    alt="Left: effective share of samples against temperature for the reward, beside the curve of a Gaussian of "
    "the same spread; three dots at 80, 40 and 10 percent. Right: histogram of the reward on base samples and "
    "under three payoff distributions, which lie further right as the share falls.",
    see="the right picture is the promise: what a perfect training would make. The left one is its price.",
)

# %% [markdown]
# **What else would move?** The reward is one number. Look at what it does not see, before training, when it is cheap to change
# your mind.

# %%
def composition(weight):
    """Mean number of atoms of each element in the samples, under weights."""
    return [f"{mean:.2f}" for mean in np.average(metrics.element_counts(samples), 0, weight)]


equal = valued.double() / n
rows = [["base, with a value", *composition(equal)]]
rows += [[f"payoff, ESS {share:.0%}", *composition(w.log_weight.exp())] for share, (_, w) in forecasts.items()]
table(["atoms a molecule", *(data.SYMBOLS[z] for z in data.ELEMENTS)], rows)
torch.manual_seed(SEED)
chosen = payoff.systematic_resample(forecasts[0.1][1].log_weight, 500)[::100]
drawn = samples.subset(np.concatenate([np.flatnonzero(valued)[:5], chosen.numpy()]))
legends = [f"{kind}, {v:.2f}" for kind, v in
           zip(["base"] * 5 + ["payoff"] * 5, idea(drawn).tolist(), strict=True)]  # fmt: skip
run.figure(
    views.grid(drawn, legends, file_format="png").figure(),
    "base_and_payoff",
    alt="Ten drawings of molecules with their reward: five of the base model, five drawn by the weights of the payoff at "
    "an effective share of 10 percent.",
    see="none was picked. Is the lower row what you had in mind? If not, change the reward now, not after the training.",
)

# %% [markdown]
# ### Exercise 10.2: your reward, and its ESS foretold
# Now without the helper. Write `my_reward(batch)`: a `MoleculeSet` in, one number for each molecule out, (B,). A molecule that is not
# stable, or in pieces, has **no value: NaN**, not 0. The reward of a molecule may not depend on the rest of the batch.
# `bonds.perceive(batch, "stable")` yields `(i, mol)` with an RDKit molecule, or `None` where there is none; it skips nothing.
#
# Choose a temperature `my_tau`, and foretell `my_forecast`, the effective share among those with a value (sizes not kept, to keep it
# simple). The check weighs other base samples, allows an error of 0.1, and wants a share of 0.1 to 0.9.
#
# <details><summary>Hint 1</summary>
#
# Start from `[math.nan] * len(batch)` and fill in what has a value. `rewards.per_molecule` shows what else can go wrong.
#
# <details><summary>Hint 2</summary>
#
# A standard deviation on a few hundred samples, and the formula above.
#
# </details>
# </details>

# %% tags=["exercise"]
# Exercise 10.2
from rgdm_lib.molecules import bonds


def my_reward(batch):
    """Return (B,) numbers, NaN for no value."""
    # STUB: return None
    ### BEGIN SOLUTION
    found = torch.full((len(batch),), math.nan)
    for i, mol in bonds.perceive(batch, "stable"):
        if mol is not None and bonds.is_connected(mol):
            found[i] = rdMolDescriptors.CalcTPSA(bonds.implicit_hydrogens(mol))  # polar surface
    return found
    ### END SOLUTION


# STUB: my_tau, my_forecast = None, None
### BEGIN SOLUTION
found = my_reward(samples.subset(range(1000)))
found = found[torch.isfinite(found)]
my_tau = 1.2 * float(found.std())
weights = torch.softmax(found.double() / my_tau, 0)
my_forecast = float(1 / weights.square().sum()) / len(found)
### END SOLUTION

# %% tags=["check"]
exercises.check("10.2", my_reward, my_tau, my_forecast)

# %% [markdown]
# ### A first training
#
# Now the network. It is the call of notebook 09 with another vector of rewards, at an effective share of 40 %. A **control** beside it is
# trained the same way, from the same start, with the reward switched off: samples with a value, equal weights.
#
# **Predict.** `quick` takes a handful of steps. How far will the mean reward move?

# %%
base, _ = model.load_model()
diffusion = model.molecule_diffusion()


def train(reward, temperature):
    """A copy of the base model, trained toward the payoff of the base samples."""
    torch.manual_seed(SEED)  # control and guided start alike
    network = copy.deepcopy(base)
    sampler = payoff.data_sampler(samples, lambda molecules: reward, sizes)
    for _ in rgdm.fit(network, diffusion, sampler, temperature, steps=settings.steps,
                      batches=model.weighted_batches(settings.batch),
                      loss=partial(diffusion.loss, times=model.training_times()),
                      optimizer=training.muon, warmup=min(100, settings.steps // 2)):  # fmt: skip
        pass
    return network


flat = torch.where(valued, 0.0, math.nan)
networks = {"base": base, "control": train(flat, 1.0), "guided": train(value, tau)}

# %%
torch.manual_seed(SEED)
live_sizes = model.draw_sizes(samples, settings.live)
rows, means = [], {}
for name, network in networks.items():
    torch.manual_seed(SEED)  # the same starting noise for all
    made = idea(model.sample_molecules(network, live_sizes, steps=settings.live_steps))
    has = made[torch.isfinite(made)]
    means[name] = float(has.mean())
    rows.append([name, f"{len(has)} of {settings.live}", f"{means[name]:.3f} ± {float(has.std()) / len(has) ** 0.5:.3f}"])
rows.append(["payoff: the promise", "", f"{promised:.3f}"])
table([f"{settings.steps} steps, {settings.live_steps} sampling steps", "with a value", "mean reward"], rows)
run.metric("example_reward_guided_over_control", means["guided"] - means["control"], "1", settings.live,
           f"mean of the example reward over live samples with a value, guided minus control, {settings.steps} training "
           f"steps, {settings.live_steps} sampling steps")  # fmt: skip

# %% [markdown]
# Read it from the control, and both from the base sampled in the same way: fewer sampling steps than the pool's, and any short
# training, can move the mean too. A difference below two standard errors says nothing.
#
# In `quick` this shows that everything runs, and nothing else: a handful of steps moves no network, and a dozen molecules measure
# no mean. The real run is the same notebook with **your** function in the cell above:
#
# ```
# python -m rgdm_lib.course run 10 --preset laptop      # minutes: a first look at the direction
# python -m rgdm_lib.course run 10 --preset full        # 8,000 steps of 64 molecules: hours on a CPU
# ```
#
# 09's long experiment, `python -m rgdm_lib.course experiment molecules-qed --preset laptop`, is the same for QED with a chain of
# temperatures, each from where the warmer one ended. Judge your run as 09 does: gap closed, counted from the control; the whole
# distribution of the reward; stability and uniqueness beside it.

# %% [markdown]
# ## Recap
#
# - A claim is a sentence with a bound, a command and a number for every seed. Some fail here, and say why.
# - A published number may be read against its own data row and protocol only.
# - The choice of a method follows from what rewards cost, what a sample may cost, and whether the tilt has to be exact.
# - A reward of your own needs twelve lines. Its effective sample size, its gain and its side effects can be read
#   off existing samples before any training.

# %% [markdown]
# ## Results

# %%
run.finish()

# %% [markdown]
# ## What can go wrong
#
# - **A table that is older than its code.** "Measured before" marks it. Measure again before you quote it.
# - **A bound chosen after the number.** It passes, and says nothing.
# - **No value as 0.** Then whatever falls to pieces competes with what has a negative reward, and wins.
# - **A forecast on few samples.** At an effective share of 1 % of 7,000 samples, 70 count: the promise has an error bar, look at it.
# - **A reward that depends on the batch** (ranks, standardised values): its payoff distribution moves with every batch.
# - **The promise taken for the result.** It is what a perfect network would reach; on molecules ours closed about half.

# %% [markdown]
# ## Further reading: where to go next
#
# - Lipman et al., *Flow Matching for Generative Modeling*, arXiv 2210.02747: the velocity in place of the noise; all weights of this
#   course carry over, since they act on $x_0$.
# - Domingo-Enrich et al., *Adjoint Matching: Fine-tuning Flow and Diffusion Generative Models with Memoryless Stochastic Optimal
#   Control*, arXiv 2409.08861: what to do when the reward has a gradient, and why the noise schedule must forget the start.
# - Potaptchik et al., *Tilt Matching for Scalable Sampling and Fine-Tuning*, arXiv 2512.21829: the weighted loss with a control variate.
# - Zheng et al., *DiffusionNFT: Online Diffusion Reinforcement with Forward Process*, arXiv 2509.16117: positive and negative denoising
#   losses on the model's own samples; no likelihoods of paths.
# - Su et al., *Iterative Distillation for Reward-Guided Fine-Tuning of Diffusion Models in Biomolecular Design*, arXiv 2507.00445:
#   a close modern relative, imitation of a soft-optimal policy.
# - Li et al., *Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding*, arXiv 2408.08252:
#   steering at sampling time by values, without gradients.
# - Uehara et al., *Understanding Reinforcement Learning-Based Fine-Tuning of Diffusion Models: A Tutorial and Review*,
#   arXiv 2407.13734: the whole field in one notation.
# - Delaney 2004, *ESOL: Estimating Aqueous Solubility Directly from Molecular Structure*, J. Chem. Inf. Comput. Sci. 44: the
#   example's formula.

# %% [markdown]
# ## Next
#
# Your own model. [00 · Start here](00_start_here.ipynb) has the map, should you want to go back.

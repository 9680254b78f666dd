"""A small notebook that follows every convention, as text; tests build, run and break it."""

from rgdm_lib.course.bootstrap import PLACEHOLDER

NAME = "98_example"

SOURCE = f'''\
# %% [markdown]
# # 98 · Example
# A promise.

# %% tags=["bootstrap"]
{PLACEHOLDER}

# %% tags=["parameters"]
PRESET = "quick"
SEED = 0
OUT_DIR = "runs"
SCALE = 1.0

# %%
import matplotlib.pyplot as plt
import torch

from rgdm_lib.course import exercises, notebook

run = notebook.start("98_example", PRESET, SEED, OUT_DIR)
settings = run.settings(quick={{"n": 10}}, laptop={{"n": 20}}, full={{"n": 30}})

# %%
@exercises.exercise("98.1")
def check_double(double):
    exercises.require_close(double(3.0), 6.0, "doubling means times two")


@exercises.exercise("98.2")
def check_answer(answer):
    exercises.require_close(answer, 42.0, "six times seven")

# %% [markdown]
# <!-- eq: unit-gaussian | derived here -->
# $$
# x \\sim N(0, 1)
# $$
#
# <!-- definition -->
# $$ y = 2 x $$

# %% tags=["nbval-check-output"]
print(settings.n)

# %%
x = SCALE * torch.randn(settings.n)
fig, ax = plt.subplots()
ax.plot(x)
run.figure(fig, "noise", alt="A line that wiggles about zero.", see="It wiggles.")
run.metric("mean", x.mean(), "1", settings.n, "mean of the draws", floor=0.0)

# %% tags=["exercise"]
# Exercise 98.1
def double(x):
    """Twice x."""
    # STUB: return None
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %% tags=["check"]
exercises.check("98.1", double)

# %% tags=["exercise"]
# Exercise 98.2
# STUB: answer = None
### BEGIN SOLUTION
answer = 6 * 7
### END SOLUTION

# %% tags=["check"]
exercises.check("98.2", answer)

# %%
run.finish()
'''

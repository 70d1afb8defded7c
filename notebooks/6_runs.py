# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. Resume, inspect, compare
#
# A run is a folder. What trained it is not needed any more: it can be continued bit for bit, looked into, and compared
# with others, from the command line or from Python. The cells call the command as a function, `jaxrl_command([...])`;
# on a command line the same words follow `jaxrl`.
#
# On two CPU cores this takes half a minute. A run that a GPU began is continued on a GPU: another device rounds differently.

# %% tags=["parameters"]
num_seeds = 8
total_steps = 40_960  # of each seed, 80 iterations
settings = []  # further words for the command, as config.num_envs=8

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from jaxrl.analysis.curves import learning_curve
from jaxrl.analysis.style import COLORS, tidy
from jaxrl.cli import build
from jaxrl.cli import main as jaxrl_command
from jaxrl.ops import trees
from jaxrl.runs import Run

runs = Path(tempfile.mkdtemp())
train = ["train", "ppo", "gymnax/CartPole-v1", *settings, "--num-seeds", num_seeds, "--evaluations", 2]


def call(*words):
    """The command; 0 means that it succeeded."""
    assert jaxrl_command([str(word) for word in words]) == 0


# %% [markdown]
# ## Stop and go on
#
# One run to the end, and one that is stopped half way. A learning rate that falls must know when it ends, `horizon`, so
# that it falls alike in both. Between *segments* the host looks; with the same length of a segment both runs are the
# same program.

# %%
horizon = ["learning_rate=1e-3", f"horizon={total_steps}"]
call(*train, "--total-steps", total_steps, "--segments", 4, *horizon, "--out", runs / "whole")
call(*train, "--total-steps", total_steps // 2, "--segments", 2, *horizon, "--out", runs / "parts")

# %%
call("resume", runs / "parts", "--total-steps", total_steps)

# %% [markdown]
# The two agree in every bit of the state. In another session, on the same machine and with the same versions, they
# would too.

# %%
whole, parts = Run.open(runs / "whole"), Run.open(runs / "parts")


def final_state(run):
    return build.load_state(run, build.from_record(run), "latest")[0]


ends = [trees.named_leaves(final_state(run)) for run in (whole, parts)]
differing = [name for name in ends[0] if not bool((ends[0][name] == ends[1][name]).all())]
assert not differing
len(ends[0]), differing

# %% [markdown]
# ## What is in the folder
#
# The record says what was run, with which versions, where, and what was changed later.

# %%
sorted(path.name for path in whole.path.iterdir())

# %%
{name: parts.record[name] for name in ("algorithm", "env", "seed", "num_seeds", "total_steps", "command")}

# %%
parts.record["changes"]

# %% [markdown]
# Metrics are labelled arrays, readable while a run goes on. Sums and counts are added before they are divided.

# %%
metrics = whole.metrics()
metrics[["policy/entropy", "policy/kl", "value/explained_variance"]].mean("seed").to_dataframe().tail(3).round(3)

# %%
whole.evaluations()["returns"].mean("episode").to_pandas().round(1)

# %% [markdown]
# The weights are there as well. Here: the singular values of the policy's second layer, which show how many directions
# it uses. `build.from_record` makes the algorithm again, so the state can be evaluated, drawn or trained on.

# %%
layers = {name: leaf for name, leaf in ends[0].items() if name.startswith("params") and name.endswith("kernel")}
{name: leaf.shape for name, leaf in layers.items()}

# %%
figure, panel = plt.subplots(figsize=(7, 3.5), layout="constrained")
kernels = next(leaf for leaf in layers.values() if leaf.shape[-2] == leaf.shape[-1])
for seed, kernel in enumerate(np.asarray(kernels)):
    panel.plot(np.linalg.svd(kernel, compute_uv=False), color=COLORS[0], alpha=0.4, label="" if seed else "each seed")
panel.set_xlabel("index of the singular value")
panel.set_ylabel("singular value, no unit")
panel.legend(frameon=False)
tidy(panel)

# %% [markdown]
# ## Compare
#
# Another learning rate is the same program. What differs in what was run, and do the returns differ?

# %%
slower = ["learning_rate=1e-4", f"horizon={total_steps}"]
call(*train, "--total-steps", total_steps, "--segments", 4, *slower, "--out", runs / "slow")

# %%
call("compare", runs / "whole", runs / "slow")

# %%
figure, panel = plt.subplots(figsize=(7, 4), layout="constrained")
slow = Run.open(runs / "slow")
for run, color, label in ((whole, COLORS[0], "learning rate 1e-3"), (slow, COLORS[1], "learning rate 1e-4")):
    curve = learning_curve(run.metrics(), 20)
    panel.plot(curve["step"], curve.transpose("step", "seed"), color=color, alpha=0.25, linewidth=0.8)
    panel.plot(curve["step"], curve.mean("seed"), color=color, label=f"{label}: mean of {num_seeds} seeds")
panel.set_xlabel("environment steps of each seed")
panel.set_ylabel("undiscounted episode return")
panel.legend(frameon=False)
tidy(panel)

# %% [markdown]
# The same three questions on a command line: `jaxrl resume FOLDER --total-steps N`, `jaxrl evaluate FOLDER`,
# `jaxrl compare FOLDER FOLDER`.

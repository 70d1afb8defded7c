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
# # 2. Sweeps as labelled arrays
#
# A sweep trains every setting of a space with several seeds. What differs in data is one compiled program, what differs
# in shape one each. Back comes one `xarray.Dataset` whose dimensions have the names of what was swept.
#
# On two CPU cores this takes about 75 seconds. On a GPU the same cells would take more members in each program.

# %% tags=["parameters"]
num_seeds = 8
total_steps = 50_000  # of each member
num_rates = 5

# %%
import matplotlib.pyplot as plt

import jaxrl
from jaxrl.sweeps import log

# %% [markdown]
# The leaf `env.gravity` is a parameter of the environment; it is swept like any other.

# %%
data = jaxrl.sweep(
    "ppo",
    "gymnax/CartPole-v1",
    {"learning_rate": log(1e-4, 1e-2, num_rates), "env.gravity": [9.8, 19.6], "config.num_envs": [4, 8]},
    num_seeds,
    total_steps=total_steps,
    num_points=20,
)
data

# %% [markdown]
# `score` is the mean return of the evaluation at the end, `return` the learning curve. Dimensions are reduced and chosen
# by name.

# %%
score = data["score"].squeeze(drop=True)
score.mean("seed").sel({"config.num_envs": 8}).to_pandas().round(1)

# %%
curves = data["return"].squeeze(drop=True).sel({"config.num_envs": 8, "env.gravity": 9.8}).mean("seed")
curves = curves.assign_coords(learning_rate=curves["learning_rate"].round(5))
curves.plot.line(x="step", hue="learning_rate", size=4, aspect=1.8)
plt.ylabel("undiscounted episode return, mean of seeds")
plt.xlabel("environment steps of each member")

# %% [markdown]
# ## Which setting is best, and how sure is that?
#
# The best of many settings looks better than it is. `best_setting` chooses on one half of the seeds and reports on the
# other.

# %%
from jaxrl.analysis import sensitivity

best = sensitivity.best_setting(data)
best

# %% [markdown]
# ## What matters
#
# The share of the variance between settings that each name explains: alone, and with its interactions.

# %%
sensitivity.importance(data)[["first_order", "total"]].to_dataframe().round(2)

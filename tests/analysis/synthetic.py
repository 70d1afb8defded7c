"""Datasets as a sweep makes them, with a known truth."""

import json

import numpy as np
import xarray


def sweep(
    grid=None,
    envs=("gymnax/CartPole-v1",),
    algorithms=("ppo",),
    num_seeds=6,
    num_steps=10,
    effect=None,
    noise=5.0,
    samples=None,
    diverged=(),
    record=None,
    seed=0,
):
    """A sweep whose score is 100 + effect(values) + noise, and whose curves rise to the score.

    `grid`: values by name. `samples`: how many settings are drawn for the names `learning_rate` and `clip`.
    `diverged`: places (indices over all dimensions of the score) of members that diverged half-way.
    """
    generator = np.random.default_rng(seed)
    if grid is None:
        grid = {"learning_rate": [1e-4, 1e-3, 1e-2], "clip": [0.1, 0.2]} if samples is None else {}
    coords = {"algorithm": list(algorithms), "env": list(envs), **grid}
    dims = [*coords]
    columns = {name: np.array(values) for name, values in grid.items()}
    shape = [len(values) for values in coords.values()]
    if samples is not None:
        dims.append("sample")
        shape.append(samples)
        drawn = {
            "learning_rate": np.exp(generator.uniform(np.log(1e-4), np.log(1e-2), samples)),
            "clip": generator.uniform(0.1, 0.3, samples),
        }
        coords |= {"sample": np.arange(samples)} | {name: ("sample", values) for name, values in drawn.items()}
        columns |= drawn
    effect = effect or (lambda values: 30.0 * np.log10(values["learning_rate"] * 1e4) / 2)
    level = np.zeros(shape)
    for place in np.ndindex(*shape):
        values = {}
        for name in columns:
            values[name] = columns[name][place[dims.index(name if name in dims else "sample")]]
        level[place] = 100.0 + effect(values) + 10.0 * place[0] + 50.0 * place[1]
    score = level[..., None] + noise * generator.standard_normal((*shape, num_seeds))
    steps = np.linspace(512.0, 512.0 * num_steps, num_steps)
    curve = score[..., None] * (1 - np.exp(-4 * steps / steps[-1]))
    curve = curve + noise * generator.standard_normal(curve.shape)
    if num_steps > 1:
        curve[..., 0] = np.nan
    diverged_at = np.full(score.shape, np.nan)
    for place in diverged:
        diverged_at[place] = steps[num_steps // 2]
        score[place] = np.nan
    return xarray.Dataset(
        {
            "score": ((*dims, "seed"), score),
            "return": ((*dims, "seed", "step"), curve),
            "diverged_at": ((*dims, "seed"), diverged_at),
            "loss/value": ((*dims, "seed", "step"), np.abs(curve)),
        },
        {**coords, "seed": np.arange(num_seeds), "step": steps},
        {} if record is None else {"record": json.dumps(record)},
    )


def run(num_seeds=5, level=100.0, noise=5.0, num_steps=20, seed=0, record=None):
    """A run alone: only the dimensions seed and step."""
    dataset = sweep(
        {}, num_seeds=num_seeds, num_steps=num_steps, effect=lambda _: level - 100.0, noise=noise, seed=seed
    )
    dataset = dataset.isel(algorithm=0, env=0, drop=True)
    return dataset.assign_attrs({} if record is None else {"record": json.dumps(record)})

"""Do columns with exact gradients predict better than truncated backpropagation through time at equal cost?

    .venv/bin/python experiments/columnar/run.py     --tiny to see that it works
    .venv/bin/python experiments/columnar/plot.py

Claim tried: Javed et al. 2023 (arXiv:2302.05326), on trace patterning. Every learner is TD(λ) with RMSProp on a stream
of its own; the arms differ in the network and in how its gradient is found. Each arm gets the same rates, and the best
one is reported (by the mean over the seeds at the end).
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.algorithms import ccn
from jaxrl.analysis.statistics import bootstrap_interval, mean
from jaxrl.envs import conditioning
from jaxrl.networks import columnar
from jaxrl.networks.columnar import ColumnarConfig
from jaxrl.ops import statistics, traces
from jaxrl.types import Env

GAMMA, LAMBDA, BETA2 = 0.9, 0.99, 0.999


@dataclasses.dataclass(frozen=True)
class Columns:
    """A columnar-constructive learner.

    Attributes:
      num_stages: S.
      width: d.
    """

    num_stages: int
    width: int


@dataclasses.dataclass(frozen=True)
class Truncated:
    """A fully connected LSTM learned by truncated backpropagation through time.

    Attributes:
      num_steps: k, through which the gradient of a prediction goes back.
      hidden: units.
      normalize: whether observations are centered and divided by their running deviation, as columns do. The
        authors' baseline does not.
    """

    num_steps: int
    hidden: int
    normalize: bool = False


Arm = Columns | Truncated
ARMS: dict[str, Arm] = {
    "columnar, 7": Columns(1, 7),
    "constructive, 10 x 1": Columns(10, 1),
    "columnar-constructive, 5 x 4": Columns(5, 4),
    "T-BPTT 15, 4 units": Truncated(15, 4),
    "T-BPTT 8, 5 units": Truncated(8, 5),
    "T-BPTT 3, 10 units": Truncated(3, 10),
    "T-BPTT 15, 4 units, normalized": Truncated(15, 4, normalize=True),
    "T-BPTT 8, 5 units, normalized": Truncated(8, 5, normalize=True),
    "T-BPTT 3, 10 units, normalized": Truncated(3, 10, normalize=True),
}
RATES = (1e-2, 3e-3, 1e-3, 3e-4)


def columnar_learner(arm: Columns, env: Env, total_steps: int) -> tuple[Callable, Callable]:
    """`init(key, rate) -> state` and `step(state, rate) -> (state, (prediction, environment's state))`."""
    config = ccn.Config(num_steps=1, columns=ColumnarConfig(arm.num_stages, arm.width, WEIGHT_SCALE))
    agent = ccn.ccn(env, config)
    rates = columnar.rates(steps_per_stage=total_steps / arm.num_stages, decay=DECAY, min_std=MIN_STD)
    base = agent.hyperparams(columns=rates, gamma=GAMMA, trace_lambda=LAMBDA, beta2=BETA2)

    def step(state: Any, rate: jax.Array) -> tuple[Any, Any]:
        after, metrics = agent.step(state, dataclasses.replace(base, learning_rate=rate))
        return after, (metrics["value/mean"], jax.tree.map(lambda x: x[0], state.actor.env_state))

    return lambda key, rate: agent.init(key, dataclasses.replace(base, learning_rate=rate)), step


def truncated_learner(arm: Truncated, env: Env, total_steps: int) -> tuple[Callable, Callable]:
    """The same for an LSTM that sees the last k observations again at each step, as the authors' baseline does."""
    del total_steps
    optimizer, params_env = ccn.rmsprop(), env.default_params()
    (size,) = env.observation_space.shape

    def cell(params: Any, state: Any, x: jax.Array) -> tuple[Any, None]:
        h, c = state
        before = (jnp.concatenate([x, h, jnp.ones(1)]) @ params["kernel"]).reshape(4, arm.hidden)
        put, forget, out = jax.nn.sigmoid(before[:3])
        c = forget * c + put * jnp.tanh(before[3])
        return (out * jnp.tanh(c), c), None

    def predict(params: Any, start: Any, window: jax.Array) -> jax.Array:
        (h, _), _ = jax.lax.scan(lambda state, x: cell(params, state, x), start, window)
        return jnp.sum(params["head"] * h)

    def init(key: jax.Array, rate: jax.Array) -> Any:
        del rate
        key, key_env, key_params = jax.random.split(key, 3)
        env_state, obs = env.reset(key_env, params_env)
        bound = arm.hidden**-0.5
        kernel = jax.random.uniform(key_params, (size + arm.hidden + 1, 4 * arm.hidden), minval=-bound, maxval=bound)
        params = {"kernel": kernel, "head": jnp.zeros(arm.hidden)}
        start = (jnp.zeros(arm.hidden), jnp.zeros(arm.hidden))
        seen, x = look(statistics.init_statistics(obs), obs)
        window = jnp.zeros((arm.num_steps, size)).at[-1].set(x)
        return key, env_state, params, traces.zeros(params), optimizer.init(params), start, window, seen

    def look(seen: Any, obs: jax.Array) -> tuple[Any, jax.Array]:
        if not arm.normalize:
            return seen, obs
        seen = statistics.update_statistics(seen, obs, 0)
        return seen, statistics.normalize(seen, obs, clip=math.inf, epsilon=MIN_STD**2)

    def step(carry: Any, rate: jax.Array) -> tuple[Any, Any]:
        key, env_state, params, trace, square, start, window, seen = carry
        key, key_env = jax.random.split(key)
        value, gradient = jax.value_and_grad(predict)(params, start, window)
        next_state, result = env.step(key_env, env_state, jnp.int32(0), params_env)
        following, _ = cell(params, start, window[0])
        seen, x = look(seen, result.obs)
        window = jnp.concatenate([window[1:], x[None]])
        delta = result.reward + GAMMA * predict(params, following, window) - value
        trace = traces.accumulate(trace, gradient, jnp.float32(GAMMA * LAMBDA))
        params, square, _ = optimizer.update(params, square, trace, delta, rate, 0.0, BETA2)
        return (key, next_state, params, trace, square, following, window, seen), (value, env_state)

    return init, step


def learner(arm: Arm, env: Env, total_steps: int) -> tuple[Callable, Callable]:
    """`init` and `step` of an arm."""
    return (columnar_learner if isinstance(arm, Columns) else truncated_learner)(arm, env, total_steps)


def cost(arm: Arm, env: Env) -> int:
    """Multiplications that a prediction and its gradient take, without padding and with nothing computed twice.

    Columns, in the last stage: one for each weight, and five more for each one that learns, whose two sensitivities are
    carried on. Truncated: one for each weight, and back through k steps one for each weight and each recurrent one.
    """
    (size,) = env.observation_space.shape
    if isinstance(arm, Columns):
        weights = [4 * arm.width * (size + stage * arm.width + 2) for stage in range(arm.num_stages)]
        return sum(weights) + 5 * weights[-1]
    weights = 4 * arm.hidden * (size + arm.hidden + 1)
    return weights + arm.num_steps * (weights + 4 * arm.hidden**2)


def errors(arm: Arm, env: Env, total_steps: int, num_bins: int, num_seeds: int) -> np.ndarray:
    """Mean squared distance of predictions to the expected return, [rates, seeds, bins]."""
    init, step = learner(arm, env, total_steps)
    params, gamma = env.default_params(), jnp.float32(GAMMA)

    def member(key: jax.Array, rate: jax.Array) -> jax.Array:
        def one(carry: Any, _: None) -> tuple[Any, jax.Array]:
            state, total = carry
            state, (value, env_state) = step(state, rate)
            return (state, total + jnp.square(value - conditioning.expected_return(env_state, params, gamma))), None

        def one_bin(state: Any, _: None) -> tuple[Any, jax.Array]:
            per_bin = total_steps // num_bins
            (state, total), _ = jax.lax.scan(one, (state, jnp.float32(0.0)), None, per_bin)
            return state, total / per_bin

        return jax.lax.scan(one_bin, init(key, rate), None, num_bins)[1]

    keys = jax.random.split(jax.random.key(0), num_seeds)
    run = jax.jit(jax.vmap(jax.vmap(member, (0, None)), (None, 0)))
    return np.asarray(run(keys, jnp.float32(RATES)), np.float64)


def bounds(env: Env, num_steps: int = 200_000) -> dict[str, float]:
    """Errors of the best predictor with perfect memory, of the best one without any, and of the best constant."""
    params, gamma = env.default_params(), jnp.float32(GAMMA)

    def body(state: Any, key: jax.Array) -> tuple[Any, Any]:
        after, _ = env.step(key, state, jnp.int32(0), params)
        # 0: the US or nothing is seen apart from noise, 1: nothing; 2 and 3: a pattern that is valid or is not.
        us = state.valid & (state.until_us == 0)
        seen = jnp.where(state.elapsed > 0, jnp.where(us, 0, 1), 2 + state.valid)
        return after, (
            conditioning.expected_return(state, params, gamma), conditioning.best_prediction(state, params, gamma), seen
        )  # fmt: skip

    state, _ = env.reset(jax.random.key(0), params)
    target, best, seen = jax.jit(lambda s: jax.lax.scan(body, s, jax.random.split(jax.random.key(1), num_steps)))(
        state
    )[1]
    target, best, seen = (np.asarray(x, np.float64) for x in (target, best, seen))
    by_sight = sum(target[seen == s].var() * np.mean(seen == s) for s in np.unique(seen))
    return {"perfect memory": float(np.mean((best - target) ** 2)), "no memory": float(by_sight),
            "a constant": float(target.var())}  # fmt: skip


def interval(values: np.ndarray) -> str:
    """Mean of [seeds] in thousandths and its 95% bootstrap interval."""
    low, high = bootstrap_interval(1e3 * values, mean)
    return f"{mean(1e3 * values):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Runs all arms; a row for each is printed and all curves are written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/columnar/results.json"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=STEPS)
    default = [name for name in ARMS if not name.startswith("T-BPTT 8")]
    parser.add_argument("--arms", nargs="+", default=default, choices=ARMS)
    parser.add_argument("--tiny", action="store_true", help="few transitions of few members of two arms")
    arguments = parser.parse_args()
    num_seeds, total_steps = (2, 2_000) if arguments.tiny else (arguments.seeds, arguments.steps)
    names = list(ARMS)[2:4] if arguments.tiny else arguments.arms
    env = conditioning.make("TracePatterning", isi=ISI, iti=ITI)
    num_bins = 50
    limits = bounds(env, 20_000 if arguments.tiny else 200_000)
    results = {"steps": total_steps, "rates": RATES, "bounds": limits, "arms": {}}
    print({name: round(1e3 * error, 2) for name, error in limits.items()})
    print(
        "| arm | multiplications | rate | error, thousandths [95%] | CPU seconds |\n|---|---|---|---|---|",
        flush=True,
    )
    for name in names:
        began = time.process_time()
        got = errors(ARMS[name], env, total_steps, num_bins, num_seeds)
        late = np.nan_to_num(got[:, :, -num_bins // 5 :].mean(-1), nan=np.inf)
        best = int(np.argmin(late.mean(1)))
        num_operations = cost(ARMS[name], env)
        results["arms"][name] = {"multiplications": num_operations, "best": best, "curves": np.round(got, 6).tolist()}
        print(
            f"| {name} | {num_operations} | {RATES[best]:g} | {interval(late[best])} | "
            f"{time.process_time() - began:.0f} |   " + ", ".join(f"{1e3 * x:.2f}" for x in late.mean(1)),
            flush=True,
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results))


ISI, ITI, STEPS = (12, 16), (25, 35), 150_000
WEIGHT_SCALE, DECAY, MIN_STD = 0.1, 0.9999, 0.1

if __name__ == "__main__":
    main()

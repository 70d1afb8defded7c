"""The layout of a population changes its speed, not its results; each member is its own."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import toy

import jaxrl
from jaxrl import fit
from jaxrl.ops.members import over_members

LAYOUTS = [(1, None), (1, 1), (8, None), (2, 2)]

# Run in a process of its own, since the number of devices is fixed when jax starts.
_COMPARE = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp, numpy as np, jaxrl
from jaxrl import fit
from jaxrl.algorithms import ppo

agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"), config=ppo.Config(num_envs=2, num_steps=16))
gravity = agent.hyperparams().env.replace(gravity=jnp.linspace(5, 15, 8))
report = []
for num_devices, chunk in json.loads(sys.argv[1]):
    agents = jaxrl.population(agent, 8, ("learning_rate", "env.gravity", "objective.clip"), num_devices, chunk)
    hparams = agents.hyperparams(
        learning_rate=np.geomspace(1e-4, 1e-2, 8), env=gravity,
        objective=agent.hyperparams().objective.replace(clip=jnp.linspace(0.1, 0.3, 8)),
    )
    play = fit.play_episodes(agent, 2, max_steps=20, num_seeds=8, num_devices=num_devices, chunk=chunk)
    keys = jax.random.split(jax.random.key(3), 8)
    result = fit.fit(agents, hparams, seed=keys, total_iterations=3, segment=2, num_seeds=8,
                     evaluation=fit.EvaluationPlan(1, play))
    programs = fit.prepare(agents, keys, hparams, 2, 8, fit.EvaluationPlan(1, play))
    text = programs.advance.as_text() + programs.play.as_text()
    talk = [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
    leaves = [np.asarray(leaf, np.float64).ravel().tolist() for leaf in jax.tree.leaves(result.state.params)]
    report.append({"params": leaves, "returns": [row["return"] for row in result.results["seeds"]], "talk": talk,
                   "devices": len(jax.tree.leaves(result.state.params)[0].sharding.device_set)})
print("REPORT" + json.dumps(report))
"""


@pytest.fixture(scope="module")
def layouts():
    done = subprocess.run(
        [sys.executable, "-c", _COMPARE, json.dumps(LAYOUTS)],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(LAYOUTS, json.loads(done.stdout.rpartition("REPORT")[2]), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_layout_gives_the_same_members(layouts, layout):
    """Equal up to the order of float sums: 1e-4 after 3 iterations of 16 updates with rates up to 0.01."""
    assert layouts[layout]["devices"] == layout[0]
    for got, want in zip(layouts[layout]["params"], layouts[1, None]["params"], strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    np.testing.assert_allclose(layouts[layout]["returns"], layouts[1, None]["returns"], atol=0.6)


def test_devices_never_talk_to_each_other(layouts):
    assert not any(report["talk"] for report in layouts.values())


def test_members_differ(layouts):
    first = np.asarray(layouts[1, None]["params"][0]).reshape(8, -1)
    assert len(np.unique(first[:, 0])) == 8


def test_a_member_is_its_key_not_its_place():
    agent = toy.noisy_descent()
    keys = jax.random.split(jax.random.key(0), 4)

    def train(keys):
        agents = jaxrl.population(agent, len(keys))
        return fit.fit(agents, agents.hyperparams(), seed=keys, total_iterations=5, segment=2, num_seeds=len(keys))

    all_of_them, last_two = train(keys).state.params["w"], train(keys[2:]).state.params["w"]
    np.testing.assert_array_equal(all_of_them[2:], last_two)
    assert not np.array_equal(all_of_them[0], all_of_them[1])


def test_over_members_takes_trees_of_axes():
    def f(x, options):
        return {"sum": x["a"] + options["own"] * options["shared"], "size": jnp.float32(1)}

    x, options = {"a": jnp.arange(6.0)}, {"own": jnp.arange(6.0), "shared": jnp.float32(10)}
    axes = (0, {"own": 0, "shared": None})
    want = jax.vmap(f, axes)(x, options)
    for chunk in (None, 1, 2, 3, 6, 8):
        got = jax.jit(over_members(f, axes, chunk=chunk))(x, options)
        jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_members": 0}, "num_members must be at least 1; got num_members = 0"),
        ({"num_members": 6, "num_devices": 4}, "divisible by num_devices; got 6 and 4"),
        ({"num_members": 6, "chunk": 4}, r"divisible by chunk; got 6 members / 1 devices = 6, chunk = 4"),
        ({"num_members": 6, "chunk": 0}, "chunk must be at least 1"),
        ({"num_members": 6, "num_devices": 0}, "num_devices must be at least 1"),
    ],
)
def test_bad_layouts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        jaxrl.population(toy.noisy_descent(), **arguments)


def test_more_devices_than_there_are():
    agents = jaxrl.population(toy.noisy_descent(), 4096, num_devices=4096)
    with pytest.raises(ValueError, match=r"num_devices = 4096, but there are \d+ .*jax_num_cpu_devices"):
        jax.eval_shape(agents.init, jax.random.key(0), agents.hyperparams())

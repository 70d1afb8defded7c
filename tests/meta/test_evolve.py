"""Evolution over a leaf: each generation against a loop written out, keys, chunks, resuming, and real agents."""

import functools
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
from jaxrl import checkpoint, fit, runs, strategies
from jaxrl.algorithms import lpg, ppo
from jaxrl.envs import grids
from jaxrl.meta.evolve import evolve
from jaxrl.networks import NetworkConfig
from jaxrl.objectives import lpo
from jaxrl.objectives.rules import Rule, Targets
from jaxrl.ops import trees

RATE = "learning_rate"


@pytest.fixture(autouse=True)
def _compile_quickly(request):
    """Compiling is most of the work, but for the slow ones."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", "slow" not in request.keywords)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def last_loss(state, metrics):
    return -metrics["loss/value"][-1]


def fails_when_fast(state, metrics):
    """NaN for the learners that have gone down more than a little."""
    loss = metrics["loss/value"]
    return jnp.where(loss[-1] < 0.9 * loss[0], jnp.nan, -loss[-1])


def searching(strategy=None, **changes):
    arguments = {"log": (RATE,), "num_steps": 3, "num_held_out": 2, "fitness": last_loss, **changes}
    return evolve(toy.noisy_descent(), strategy or strategies.open_es(4), RATE, **arguments)


def words(tree):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


@functools.cache
def learners():
    """`(keys, rates) -> states, losses [num_steps]` of many toy learners."""
    agent = toy.noisy_descent()

    def one(key, rate):
        return jaxrl.train(agent, 3)(key, agent.hyperparams(learning_rate=rate))

    return jax.jit(jax.vmap(one))


@pytest.mark.parametrize(
    "common_keys", ["all", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pairs", "none"))]
)
def test_a_generation_is_ask_train_and_tell(common_keys):
    """The same written out: P = 4, two seeds, two generations, and the mean on the held-out keys."""
    search = strategies.open_es(4)
    agents = searching(search, num_seeds=2, num_generations=2, common_keys=common_keys)
    hparams = agents.hyperparams(learning_rate=0.05, strategy=search.hyperparams(sigma=0.7))
    before = jax.jit(agents.init)(jax.random.key(0), hparams)
    after, metrics = jax.jit(agents.step)(before, hparams)

    group = {"all": [0] * 4, "pairs": [0, 1, 0, 1], "none": [0, 1, 2, 3]}[common_keys]
    key, own, fitness_rows, tell = before.key, before.strategy, [], jax.jit(search.tell)
    for _ in range(2):
        key, key_train = jax.random.split(key)
        keys = jax.random.split(key_train, (max(group) + 1, 2))
        candidates = search.ask(own, hparams.strategy)
        lanes = keys[jnp.array(group)].reshape(8)
        train_keys = jax.vmap(lambda k: jax.random.split(k)[0])(lanes)
        _, rows = learners()(train_keys, jnp.repeat(jnp.exp(candidates[RATE]), 2))
        fitness = jnp.mean(-rows["loss/value"][:, -1].reshape(4, 2), axis=1)
        fitness_rows.append(np.asarray(fitness))
        own, _ = tell(own, candidates, fitness, hparams.strategy)
    np.testing.assert_allclose(after.strategy.mean[RATE], own.mean[RATE], rtol=1e-5)
    np.testing.assert_allclose(metrics["fitness/best"], np.max(fitness_rows), rtol=1e-5)
    np.testing.assert_allclose(metrics["fitness/mean"], np.mean(fitness_rows), rtol=1e-5)

    mean = jnp.exp(own.mean[RATE])
    held = jax.vmap(lambda k: jax.random.split(k)[0])(jax.random.split(before.key_held_out, 2))
    states, rows = learners()(held, jnp.broadcast_to(mean, 2))
    scores = -np.asarray(rows["loss/value"])[:, -1]
    np.testing.assert_allclose(metrics["held_out/fitness"], scores.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["held_out/std"], scores.std(), rtol=1e-3)
    np.testing.assert_allclose(after.values[RATE], mean, rtol=1e-5)
    np.testing.assert_allclose(after.agent.params["w"], states.params["w"][0], rtol=1e-4, atol=1e-6)
    assert int(after.num_generations) == 2
    assert words(after.key_held_out)[0].tolist() == words(before.key_held_out)[0].tolist()
    # Half of the toy's steps end an episode: 2 of 3.
    assert float(metrics["episode/count"]) == 2 * (2 * 8 + 2)
    assert agents.env_steps == (2 * 8 + 2) * 3 * toy.noisy_descent().env_steps


def test_it_finds_a_good_learning_rate():
    search = strategies.open_es(4)
    agents = searching(search)
    hparams = agents.hyperparams(learning_rate=1e-3, strategy=search.hyperparams(sigma=0.3, learning_rate=0.3))
    state, metrics = jax.jit(jaxrl.train(agents, 40))(jax.random.key(1), hparams)
    assert 0.1 < float(state.values[RATE]) < 1.0
    assert metrics["held_out/fitness"][-1] > metrics["held_out/fitness"][0] + 1.0
    assert set(metrics) >= {
        *(f"fitness/{name}" for name in ("mean", "best", "std", "num_not_finite", "tie_rate")),
        *(f"strategy/{name}" for name in ("snr", "half_cosine", "sigma", "step")),
    }


def test_held_out_learners_stay_the_same_and_failures_are_counted():
    search = strategies.open_es(4)
    agents = searching(search, fitness=fails_when_fast)
    hparams = agents.hyperparams(learning_rate=0.05, strategy=search.hyperparams(sigma=2.0, learning_rate=0.0))
    state, metrics = jax.jit(jaxrl.train(agents, 6))(jax.random.key(2), hparams)
    # The mean stays, so the same learners have the same fitness.
    assert len(np.unique(metrics["held_out/fitness"])) == 1
    assert len(np.unique(metrics["fitness/num_not_finite"])) > 1
    assert np.asarray(metrics["fitness/num_not_finite"]).max() <= 4
    assert np.isfinite(state.values[RATE])


def train(path, total, *, resume, die_after=None):
    agents = searching(strategies.sep_cma_es(4), num_generations=2, chunk=2)
    run = runs.Run.open(path) if resume else runs.Run.create(path, runs.describe())

    def on_segment(progress):
        if progress.iteration == die_after:
            raise RuntimeError("killed")

    return fit.fit(
        agents,
        agents.hyperparams(),
        run=run,
        seed=3,
        total_iterations=total,
        segment=1,
        checkpoint_seconds=0.0,
        resume=resume,
        on_segment=on_segment,
    )


def test_a_run_that_was_killed_continues_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", 4, resume=False)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "cut", 4, resume=False, die_after=2)
    cut = train(tmp_path / "cut", 4, resume=True)
    assert checkpoint.digests(cut.state) == checkpoint.digests(whole.state)
    assert int(whole.state.num_generations) == 8
    one, other = (runs.Run.open(tmp_path / name).metrics() for name in ("whole", "cut"))
    np.testing.assert_array_equal(one["held_out/fitness"], other["held_out/fitness"])
    assert len(np.unique(one["held_out/fitness"])) == 4


@pytest.mark.slow
def test_chunks_and_nesting_give_the_same():
    hparams = searching().hyperparams(learning_rate=0.05)
    keys = jax.random.split(jax.random.key(4), 2)
    plain, _ = jax.jit(jax.vmap(jaxrl.train(searching(num_held_out=3), 2), (0, None)))(keys, hparams)
    pair = jaxrl.population(searching(num_held_out=3, chunk=2), 2)
    nested, _ = jax.jit(jaxrl.train(pair, 2))(keys, hparams)
    for name in ("values", "agent"):
        for a, b in zip(words(getattr(nested, name)), words(getattr(plain, name)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# In a process of its own, since the number of devices is fixed when jax starts.
_DEVICES = """
import json
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from meta.test_evolve import searching
import jaxrl
report = []
for num_devices, chunk in ((1, None), (4, None), (2, 1)):
    agents = searching(num_devices=num_devices, chunk=chunk)
    state, _ = jax.jit(jaxrl.train(agents, 3))(jax.random.key(0), agents.hyperparams())
    report.append([float(state.values["learning_rate"]), *np.asarray(state.agent.params["w"]).tolist()])
print("REPORT" + json.dumps(report))
"""


@pytest.mark.slow
def test_four_devices_give_what_one_gives():
    done = subprocess.run(
        [sys.executable, "-c", _DEVICES],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, *others = json.loads(done.stdout.rpartition("REPORT")[2])
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


@functools.cache
def evolving_lpo():
    config = ppo.Config(num_envs=2, num_steps=4, num_epochs=2, num_minibatches=1, network=NetworkConfig(hidden=(4,)))
    agent = jaxrl.ppo(jaxrl.make_env("probe/Credit"), objective=lpo(2), config=config)
    return agent, evolve(agent, strategies.open_es(2), num_steps=2, num_held_out=1, num_episodes=2)


def test_the_weights_of_an_objective_evolve_in_ppo():
    agent, agents = evolving_lpo()
    hparams = agents.hyperparams(learning_rate=1e-2)
    assert float(hparams.inner.horizon) == 2 * agent.env_steps
    assert float(agents.hyperparams(horizon=5.0).inner.horizon) == 5.0
    state, metrics = jax.eval_shape(jaxrl.train(agents, 1), jax.random.key(0), hparams)
    shapes = {name: value.shape for name, value in state.values.items()}
    assert shapes == {"objective.hidden": (8, 2), "objective.output": (2, 1)}
    assert metrics["held_out/fitness"].shape == (1,)
    played = jax.eval_shape(jaxrl.evaluate(agents, 3), jax.random.key(1), state, hparams.env)
    assert played.returns.shape == (3,)


@pytest.mark.slow
def test_an_evolved_objective_trains_and_plays():
    agent, agents = evolving_lpo()
    hparams = agents.hyperparams(learning_rate=0.1, strategy=strategies.open_es(2).hyperparams(sigma=3.0))
    state, metrics = jax.jit(jaxrl.train(agents, 2))(jax.random.key(0), hparams)
    assert np.isfinite(metrics["held_out/fitness"]).all()
    learned = trees.replace_leaves(hparams.inner, state.values)
    np.testing.assert_array_equal(learned.objective.output, state.values["objective.output"])
    # The agent is what training under these values gives, and the held-out fitness what it plays.
    key, key_play = jax.random.split(jax.random.split(state.key_held_out, 1)[0])
    alone, _ = jax.jit(jaxrl.train(agent, 2))(key, learned)
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    episodes = jax.jit(jaxrl.evaluate(agents, 2))(key_play, state, hparams.env)
    np.testing.assert_allclose(episodes.mean_return, metrics["held_out/fitness"][-1], rtol=1e-5)


LEVELS = {"side": (3, 3), "steps": (5, 5), "num_objects": (1, 1), "num_walls": 0}


@functools.cache
def horizon_seen():
    """A rule whose π̂ is the logarithm of the horizon, in tables on small grids."""

    def targets(params, inputs):
        policy = jnp.broadcast_to(params * inputs.log_horizon, inputs.reward.shape)
        return Targets(policy, jnp.log(inputs.prediction))

    rule = Rule(lambda key: jnp.float32(1.0), targets, 2, "horizon")
    config = lpg.Config(num_envs=1, num_steps=2, tabular=True, optimizer="sgd")
    return lpg.lpg(grids.make("Small", **LEVELS), rule, config)


def of_the_task(score, level):
    """The score, and what tells levels apart: the reward of their object."""
    return score + 100.0 * level.reward[0]


def log_horizon(state, metrics):
    return jnp.sqrt(metrics["rule/policy_square"][0])


def long_or_short(key):
    return jax.random.randint(key, (), 1, 5)


def test_pairs_share_tasks_and_lives_and_held_out_ones_stay():
    draw = grids.levels("Small", **LEVELS)
    agents = evolve(
        horizon_seen(),
        strategies.open_es(4),
        num_steps=4,
        num_held_out=3,
        fitness=log_horizon,
        common_keys="pairs",
        tasks=draw,
        lifetimes=long_or_short,
        normalize=of_the_task,
    )
    hparams = agents.hyperparams(strategy=strategies.open_es(4).hyperparams(sigma=1e-6, learning_rate=0.0))
    state = jax.jit(agents.init)(jax.random.key(0), hparams)

    def expected(key):
        keys = jax.random.split(key, 4)
        return jnp.log(long_or_short(keys[3]).astype(jnp.float32)) + 100.0 * draw(keys[2]).reward[0]

    fitness = jax.jit(jax.vmap(expected))
    held_out = np.asarray(fitness(jax.random.split(state.key_held_out, 3)))
    seen = []
    for _ in range(2):
        pairs = np.asarray(fitness(jax.random.split(jax.random.split(state.key)[1], (2, 1))[:, 0]))
        state, metrics = jax.jit(agents.step)(state, hparams)
        np.testing.assert_allclose(metrics["fitness/mean"], pairs.mean(), rtol=1e-4)
        np.testing.assert_allclose(metrics["fitness/best"], pairs.max(), rtol=1e-4)
        np.testing.assert_allclose(metrics["held_out/fitness"], held_out.mean(), rtol=1e-4)
        np.testing.assert_allclose(metrics["held_out/std"], held_out.std(), rtol=1e-3)
        seen.append(pairs)
    assert len(np.unique(seen)) == 4


def test_a_life_ends_where_it_is_drawn():
    agent = toy.noisy_descent()
    agents = searching(lifetimes=long_or_short, num_steps=4, num_held_out=1, fitness="training")
    hparams = agents.hyperparams(strategy=strategies.open_es(4).hyperparams(learning_rate=0.0))
    lengths = []
    for seed in range(3):
        state, metrics = jax.jit(jaxrl.train(agents, 1))(jax.random.key(seed), hparams)
        key_train, _, key_life = jax.random.split(jax.random.split(state.key_held_out, 1)[0], 3)
        lengths.append(int(long_or_short(key_life)))
        alone, rows = jaxrl.train(agent, lengths[-1])(key_train, hparams.inner)
        np.testing.assert_allclose(state.agent.params["w"], alone.params["w"], rtol=1e-5)
        assert int(state.agent.num_steps) == lengths[-1]
        # Of the episodes, too, only those within the life count.
        expected = rows["episode/return_sum"].sum() / rows["episode/count"].sum()
        np.testing.assert_allclose(metrics["held_out/fitness"][0], expected, rtol=1e-5)
    assert min(lengths) < 4


def test_equal_arguments_give_the_same_record():
    assert searching() is searching()
    assert searching().hyperparams().strategy.sigma == strategies.open_es(4).hyperparams().sigma


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leaves": "learning_rat"}, "No hyperparameter is called 'learning_rat'. Did you mean learning_rate"),
        ({"leaves": ()}, "leaves must name at least one"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1; got num_steps = 0"),
        ({"num_held_out": 0}, "num_held_out must be a whole number"),
        ({"fitness": "return"}, "fitness must be 'evaluation', 'training' or a function .*got fitness = 'return'"),
        ({"common_keys": "some"}, "common_keys must be 'all', 'pairs' or 'none'; got common_keys = 'some'"),
        (
            {"strategy": strategies.snes(4), "common_keys": "pairs"},
            "needs a strategy of antithetic pairs; snes has none",
        ),
        ({"log": ("target",)}, "log names 'target', which does not evolve; there are learning_rate"),
        ({"chunk": 3}, "divisible by chunk"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"strategy": strategies.open_es(4), "leaves": RATE, "num_steps": 2, "fitness": last_loss, **changes}
    with pytest.raises(ValueError, match=message):
        evolve(toy.noisy_descent(), **arguments)


def test_leaves_that_cannot_evolve_are_refused():
    agent = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"))
    with pytest.raises(ValueError, match="max_steps_in_episode must be float to evolve; it is int32"):
        evolve(agent, strategies.open_es(4), "env.max_steps_in_episode", num_steps=1)
    with pytest.raises(ValueError, match="tasks and normalize need an algorithm with an environment"):
        searching(tasks=long_or_short)
    with pytest.raises(ValueError, match="evaluate needs an algorithm with an environment"):
        evolve(toy.noisy_descent(), strategies.open_es(4), RATE, num_steps=1)
    quiet = toy.noisy_descent()._replace(step=lambda state, hparams: (state, {"loss/value": jnp.float32(0.0)}))
    agents = evolve(quiet, strategies.open_es(2), RATE, num_steps=1, num_held_out=1, fitness="training")
    with pytest.raises(ValueError, match="fitness = 'training' needs an algorithm with the metrics"):
        jax.eval_shape(jaxrl.train(agents, 1), jax.random.key(0), agents.hyperparams())
    zero = toy.noisy_descent()._replace(hyperparams=lambda: toy.noisy_descent().hyperparams(learning_rate=0.0))
    with pytest.raises(ValueError, match="learning_rate must be positive to evolve as its logarithm"):
        evolve(zero, strategies.open_es(2), RATE, log=(RATE,), num_steps=1, fitness=last_loss)


@pytest.mark.slow
def test_a_drift_evolves_on_brax():
    """Continuous actions and a time limit, as in the paper of LPO; from PPO, so that there is something to move."""
    config = ppo.Config(num_envs=2, num_steps=32, num_epochs=2, num_minibatches=1, network=NetworkConfig(hidden=(8,)))
    agent = ppo.ppo(jaxrl.make_env("brax/inverted_pendulum"), objective=lpo(hidden=4, start="ppo"), config=config)
    search = strategies.open_es(4)
    learner = evolve(agent, search, "objective", num_steps=4, num_held_out=2, fitness="training")
    hparams = learner.hyperparams(learning_rate=1e-2, strategy=search.hyperparams(sigma=1.0))
    with jax.numpy_rank_promotion("allow"):  # brax relies on it
        start = jax.jit(learner.init)(jax.random.key(0), hparams).values
        state, metrics = jax.jit(jaxrl.train(learner, 2))(jax.random.key(0), hparams)
    assert np.isfinite(metrics["held_out/fitness"]).all()
    assert (metrics["fitness/tie_rate"] < 1.0).all()
    assert any(np.any(leaf != start[name]) for name, leaf in state.values.items())

"""Population-based training: what is copied, what is not, and that it saves, spreads and nests like any algorithm."""

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
from jaxrl import checkpoint, fit, runs
from jaxrl.algorithms import ppo
from jaxrl.meta.pbt import Range, _explore, _select, pbt
from jaxrl.ops import trees

RATES = {"learning_rate": Range(1e-3, 0.3)}
NAN, INF = float("nan"), float("inf")


def words(tree):
    return [np.asarray(jax.random.key_data(leaf) if trees.is_key(leaf) else leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(one, other):
    for a, b in zip(words(one), words(other), strict=True):
        np.testing.assert_array_equal(a, b)


def select(score, sound=None, num_replaced=1, seed=0):
    score = jnp.asarray(score, jnp.float32)
    sound = ~jnp.isnan(score) if sound is None else jnp.asarray(sound)
    return _select(jax.random.split(jax.random.key(seed), len(score)), score, sound, num_replaced).tolist()


def trained(agents, hparams, seed=0, steps=1):
    return jax.jit(jaxrl.train(agents, steps))(jax.random.key(seed), hparams)


def test_the_worst_take_from_the_best():
    assert select([3.0, 1.0, 2.0, 0.0, 4.0], num_replaced=1) == [0, 1, 2, 4, 4]
    found = [select([3.0, 1.0, 2.0, 0.0, 4.0, 5.0], num_replaced=2, seed=seed) for seed in range(40)]
    for parents in found:
        assert [parents[i] for i in (0, 2, 4, 5)] == [0, 2, 4, 5]
        assert {parents[i] for i in (1, 3)} <= {4, 5}
    # Both parents are drawn, and each member draws for itself.
    assert len({(parents[1], parents[3]) for parents in found}) == 4


def test_equal_scores_move_nothing():
    assert select([1.0, 1.0, 1.0, 1.0], num_replaced=2) == [0, 1, 2, 3]
    assert select([-INF] * 4, num_replaced=2) == [0, 1, 2, 3]


def test_members_that_are_not_sound_are_replaced_however_many():
    assert select([NAN, 1.0, NAN, NAN], num_replaced=1) == [1, 1, 1, 1]
    # Its return is the highest, but its parameters are not finite.
    assert select([9.0, 1.0, 2.0, 3.0], [False, True, True, True], num_replaced=1) == [3, 1, 2, 3]
    # A member without a score yet is better than none.
    assert select([NAN, -INF, NAN], num_replaced=1) == [1, 1, 1]
    assert select([NAN, NAN, NAN], num_replaced=1) == [0, 1, 2]
    assert select([NAN, 1.0], num_replaced=0) == [0, 1]


@pytest.mark.parametrize(("members", "truncation", "replaced"), [(10, 0.2, 2), (10, 0.3, 3), (4, 0.1, 1), (6, 0.5, 3)])
def test_truncation_says_how_many_are_replaced(members, truncation, replaced):
    agents = pbt(toy.noisy_descent(), members, RATES, interval=2, truncation=truncation)
    rates = np.geomspace(1e-3, 0.3, members)
    _, metrics = trained(agents, agents.hyperparams(learning_rate=rates))
    assert int(np.sum(metrics["pbt/parent"][0] != np.arange(members))) == replaced


def test_a_bad_member_continues_as_the_best_with_another_value_and_its_own_key():
    agents = pbt(toy.noisy_descent(), 4, RATES, interval=6, truncation=0.25, resample_probability=0.0)
    hparams = agents.hyperparams(learning_rate=[1e-3, 0.2, 0.15, 0.1])
    before = jax.jit(agents.init)(jax.random.key(0), hparams)
    plain = jaxrl.population(toy.noisy_descent(), 4, ("learning_rate",))
    shared = plain.hyperparams(learning_rate=before.values["learning_rate"])
    alone, rows = jax.lax.scan(lambda state, _: plain.step(state, shared), before.members, None, 6)
    state, metrics = jax.jit(agents.step)(before, hparams)
    score = np.sum(rows["episode/return_sum"], 0) / np.sum(rows["episode/count"], 0)
    best = int(np.argmax(score))
    assert np.argmin(score) == 0
    np.testing.assert_array_equal(metrics["pbt/parent"], [best, 1, 2, 3])
    np.testing.assert_allclose(state.score, np.asarray(score)[[best, 1, 2, 3]], rtol=1e-5)
    np.testing.assert_allclose(state.members.params["w"], alone.params["w"][jnp.array([best, 1, 2, 3])], rtol=1e-5)
    rates = np.asarray(before.values["learning_rate"])
    np.testing.assert_array_equal(metrics["pbt/learning_rate"], rates)
    np.testing.assert_array_equal(state.values["learning_rate"][1:], rates[1:])
    assert np.isclose(state.values["learning_rate"][0], rates[best] * np.array([0.8, 1.2])).any()
    np.testing.assert_array_equal(*map(jax.random.key_data, (state.members.key, alone.key)))
    # Equal weights, but other noise: the copies part.
    after, _ = jax.jit(agents.step)(state, hparams)
    assert not np.array_equal(after.members.params["w"][0], after.members.params["w"][best])


def test_keys_stay_distinct():
    agents = pbt(toy.noisy_descent(), 6, RATES, interval=1, truncation=0.5)
    state, metrics = trained(agents, agents.hyperparams(), steps=20)
    assert np.sum(np.asarray(metrics["pbt/parent"]) != np.arange(6)) > 20
    for keys in (state.key, state.members.key):
        assert len(np.unique(jax.random.key_data(keys), axis=0)) == 6
    assert (
        len(np.unique(np.concatenate([jax.random.key_data(k) for k in (state.key, state.members.key)]), axis=0)) == 12
    )


def test_a_diverged_member_is_replaced():
    agents = pbt(toy.noisy_descent(), 8, {"learning_rate": Range(1e-3, 1e30)}, interval=8, truncation=0.125)
    rates = [1e30, 0.1, 1e30, 0.1, 0.2, 0.1, 0.1, 1e30]
    state, metrics = trained(agents, agents.hyperparams(learning_rate=rates))
    parent = np.asarray(metrics["pbt/parent"][0])
    assert not {parent[0], parent[2], parent[7]} & {0, 2, 7}
    # All three take the place of the one that would have been replaced for its score.
    np.testing.assert_array_equal(parent[[1, 3, 4, 5, 6]], [1, 3, 4, 5, 6])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(state.score).all()


def test_without_truncation_it_is_the_plain_population():
    agents = pbt(toy.noisy_descent(), 5, RATES, interval=3, truncation=0.0)
    state, metrics = trained(agents, agents.hyperparams(), steps=4)
    plain = jaxrl.population(toy.noisy_descent(), 5, ("learning_rate",))
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(jax.random.split(jax.random.key(0), 5))[:, 2]
    want, rows = jax.jit(jaxrl.train(plain, 12))(keys, plain.hyperparams(learning_rate=state.values["learning_rate"]))
    assert_same(state.members, want)
    np.testing.assert_array_equal(metrics["pbt/parent"], np.tile(np.arange(5), (4, 1)))
    np.testing.assert_array_equal(metrics["episode/count"], np.sum(rows["episode/count"].reshape(4, 3, 5), 1))
    np.testing.assert_allclose(metrics["loss/value"], np.mean(rows["loss/value"].reshape(4, 3, 5), 1), rtol=1e-6)


def test_a_score_stays_where_no_episode_ends():
    """The toy ends an episode in every other step: with an interval of 1 every other score is the one before."""
    agents = pbt(toy.noisy_descent(), 3, RATES, interval=1, truncation=0.0)
    hparams = agents.hyperparams(learning_rate=0.1)
    state = jax.jit(agents.init)(jax.random.key(0), hparams)
    assert np.all(state.score == -INF)
    scores = []
    for _ in range(4):
        state, metrics = jax.jit(agents.step)(state, hparams)
        scores.append((metrics["episode/count"][0], state.score))
    assert [int(count) for count, _ in scores] == [1, 0, 1, 0]
    np.testing.assert_array_equal(scores[0][1], scores[1][1])
    assert np.all(scores[1][1] != scores[2][1])


def test_initial_values_are_drawn_where_none_is_given():
    ranges = {"learning_rate": Range(1e-4, 1e-1), "target": Range(-2.0, 3.0, "linear")}
    agents = pbt(toy.noisy_descent(), 2000, ranges, interval=1)
    given = trees.replace_leaf(agents.hyperparams(), "target", jnp.full(2000, 0.5).at[-1].set(NAN))
    state = jax.jit(agents.init)(jax.random.key(0), given)
    rates, targets = (np.asarray(state.values[name]) for name in ("learning_rate", "target"))
    # Uniform in the logarithm: 5 standard errors of 1/sqrt(12 * 2000).
    assert abs(np.mean((np.log10(rates) + 4) / 3) - 0.5) < 5 / np.sqrt(12 * 2000)
    assert rates.min() < 1.1e-4
    assert rates.max() > 0.9e-1
    assert np.all(targets[:-1] == 0.5)
    assert -2 <= targets[-1] <= 3
    assert targets[-1] != 0.5


def test_exploring_perturbs_or_draws_and_stays_inside():
    ranges = {"a": Range(1e-3, 1.0), "b": Range(0.0, 1.0, "linear"), "c": Range(1e-3, 1.0)}
    keys = jax.random.split(jax.random.key(0), 4000)
    values = {"a": jnp.full(4000, 0.1), "b": jnp.full(4000, 0.5), "c": jnp.full(4000, 0.9)}
    explored = {name: np.asarray(v) for name, v in _explore(keys, values, ranges, (0.8, 1.2), 0.25).items()}
    factor = explored["a"] / 0.1
    shares = [np.mean(np.isclose(factor, f, rtol=1e-5)) for f in (0.8, 1.2)]
    # 5 standard errors of a share of 3/8 of 4000.
    np.testing.assert_allclose(shares, 0.375, atol=5 * np.sqrt(0.375 * 0.625 / 4000))
    # A linear range moves by parts of its length.
    np.testing.assert_allclose(
        np.mean(np.isclose(explored["b"], 0.3) | np.isclose(explored["b"], 0.7)), 0.75, atol=0.04
    )
    np.testing.assert_allclose(np.mean(explored["c"] == 1.0), 0.375, atol=0.04)
    for name, allowed in ranges.items():
        assert np.all((explored[name] >= allowed.low) & (explored[name] <= allowed.high))
    # Leaves are drawn apart.
    assert abs(np.corrcoef(factor > 1, explored["b"] > 0.5)[0, 1]) < 0.1


def train(path, total, *, resume):
    agents = pbt(toy.noisy_descent(), 5, RATES, interval=3, truncation=0.4)
    run = runs.Run.open(path) if resume else runs.Run.create(path, runs.describe())
    return fit.fit(
        agents, agents.hyperparams(), run=run, seed=3, total_iterations=total, segment=3, num_seeds=5, resume=resume
    )


def test_a_run_that_was_stopped_continues_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", 11, resume=False)
    train(tmp_path / "cut", 5, resume=False)
    cut = train(tmp_path / "cut", 11, resume=True)
    assert checkpoint.digests(cut.state) == checkpoint.digests(whole.state)
    assert int(whole.state.num_intervals) == 11
    one, other = (runs.Run.open(tmp_path / name).metrics() for name in ("whole", "cut"))
    np.testing.assert_array_equal(one["pbt/parent"].values[-6:], other["pbt/parent"].values[-6:])
    assert np.any(one["pbt/parent"].values != np.arange(5))


# In a process of its own, since the number of devices is fixed when jax starts.
_DEVICES = """
import json
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from runs import toy
import jaxrl
from jaxrl import fit
from jaxrl.meta.pbt import Range, pbt
report = []
for num_devices, chunk in ((1, None), (4, None), (2, 2)):
    agents = pbt(toy.noisy_descent(), 8, {"learning_rate": Range(1e-3, 0.3)}, interval=3, truncation=0.25,
                 num_devices=num_devices, chunk=chunk)
    result = fit.fit(agents, agents.hyperparams(), seed=0, total_iterations=6, segment=4, num_seeds=8)
    state = result.state
    report.append({"w": np.asarray(state.params["w"]).tolist(), "score": np.asarray(state.score).tolist(),
                   "rate": np.asarray(state.values["learning_rate"]).tolist(),
                   "devices": len(state.params["w"].sharding.device_set)})
print("REPORT" + json.dumps(report))
"""


def test_four_devices_give_what_one_gives():
    done = subprocess.run(
        [sys.executable, "-c", _DEVICES],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, *others = json.loads(done.stdout.rpartition("REPORT")[2])
    assert [report["devices"] for report in (one, *others)] == [1, 4, 2]
    for report in others:
        for name in ("w", "score", "rate"):
            np.testing.assert_allclose(report[name], one[name], rtol=1e-5, atol=1e-6)


def test_it_nests():
    pair = jaxrl.population(pbt(toy.noisy_descent(), 3, RATES, interval=2), 2)
    state, metrics = trained(pair, pair.hyperparams(), steps=3)
    assert metrics["pbt/learning_rate"].shape == (3, 2, 3)
    assert len(np.unique(metrics["pbt/learning_rate"][0])) == 6
    assert state.params["w"].shape == (2, 3, 3)
    assert pair.env_steps == 2 * 3 * 2 * toy.noisy_descent().env_steps


def test_any_float_leaf_of_an_unmodified_algorithm_evolves():
    ranges = {"objective.clip": Range(0.05, 0.5), "gamma": Range(0.9, 1.0, "linear")}
    agents = pbt(_small_ppo(), 3, ranges, interval=2)

    def run(key):
        state, metrics = jaxrl.train(agents, 2)(key, agents.hyperparams(learning_rate=1e-3))
        obs = jax.tree.map(lambda x: x[:, 0], state.actor.obs)
        return metrics, agents.act(state, agents.initial_memory(), obs, None)[0]

    metrics, action = jax.eval_shape(run, jax.random.key(0))
    assert action.shape == (3,)
    assert metrics["pbt/objective.clip"].shape == metrics["pbt/gamma"].shape == (2, 3)


def _small_ppo():
    config = ppo.Config(num_envs=2, num_steps=8, num_minibatches=2)
    return jaxrl.ppo(jaxrl.make_env("probe/Credit"), config=config)


def test_equal_arguments_give_the_same_record():
    make = lambda: pbt(toy.noisy_descent(), 3, {"learning_rate": Range(1e-3, 0.3)}, interval=2)
    assert make() is make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": 0}, "interval must be at least 1; got interval = 0"),
        ({"truncation": 0.6}, r"truncation must be from 0 to 0.5; got truncation = 0.6"),
        ({"num_members": 1}, "num_members must be at least 2, or 1 without truncation; got 1"),
        ({"perturb": (0.8, -1.0)}, "perturb must be two factors above 0"),
        ({"perturb": (0.8,)}, "perturb must be two factors above 0"),
        ({"resample_probability": 1.5}, "resample_probability must be from 0 to 1"),
        ({"ranges": {}}, "ranges must name at least one leaf"),
        ({"ranges": {"lr": Range(0.1, 1.0)}}, r"'lr', which is no leaf; there are \['learning_rate', 'target'\]"),
        ({"num_devices": 3}, "num_members must be divisible by num_devices; got 4 and 3"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"num_members": 4, "ranges": RATES, "interval": 2, **changes}
    with pytest.raises(ValueError, match=message):
        pbt(toy.noisy_descent(), **arguments)


def test_leaves_and_ranges_that_do_not_fit_are_refused():
    agent = _small_ppo()
    with pytest.raises(ValueError, match=r"range of gamma does not fit: gamma must be from 0.0 to 1.0"):
        pbt(agent, 2, {"gamma": Range(0.9, 1.5, "linear")}, interval=1)
    cartpole = jaxrl.ppo(jaxrl.make_env("gymnax/CartPole-v1"))
    with pytest.raises(ValueError, match="max_steps_in_episode must be one float to evolve; it is int32"):
        pbt(cartpole, 2, {"env.max_steps_in_episode": Range(10, 20)}, interval=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 1.0), "low must be below high"),
        ((0.0, 1.0), r"log range must lie above 0; got low = 0.0: raise it, or use scale='linear'"),
        ((0.1, INF), "low must be below high, both finite"),
        ((0.1, 1.0, "geometric"), "scale must be 'log' or 'linear'; got scale = 'geometric'"),
    ],
)
def test_bad_ranges_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Range(*arguments)


def test_an_algorithm_without_returns_is_refused():
    toy_agent = toy.noisy_descent()

    def step(state, hparams):
        state, metrics = toy_agent.step(state, hparams)
        return state, {"loss/value": metrics["loss/value"]}

    agents = pbt(toy_agent._replace(step=step), 2, RATES, interval=1)
    with pytest.raises(ValueError, match=r"episode/return_sum and episode/count; this one has \['loss/value'\]"):
        jax.eval_shape(jaxrl.train(agents, 1), jax.random.key(0), agents.hyperparams())

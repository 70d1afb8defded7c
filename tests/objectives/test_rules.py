"""LPG's rule: its network against NumPy, read backward, cut at ends; the agent's loss and its sign."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.objectives import rules
from jaxrl.objectives.rules import RuleInputs, Targets

T, B, M = 6, 2, 3


@functools.cache
def inputs():
    keys = jax.random.split(jax.random.key(0), 5)
    terminated = jnp.zeros((T, B), bool).at[2, 0].set(True)
    truncated = jnp.zeros((T, B), bool).at[3, 1].set(True)
    return RuleInputs(
        reward=jax.random.normal(keys[0], (T, B)),
        terminated=terminated,
        ended=terminated | truncated,
        probability=jax.random.uniform(keys[1], (T, B)),
        prediction=jax.nn.softmax(jax.random.normal(keys[2], (T, B, M))),
        next_prediction=jax.nn.softmax(jax.random.normal(keys[3], (T, B, M))),
        gamma=jnp.float32(0.9),
        progress=jnp.float32(0.25),
        log_horizon=jnp.float32(2.0),
    )


@functools.cache
def built(core="lstm", progress=False):
    rule = rules.lpg(hidden=4, num_bins=M, embedding=2, core=core, progress=progress)
    # Biases are 0 at first; here all weights count.
    weights = jax.jit(lambda key: jax.tree.map(lambda x: x + 0.2, rule.init(key)))(jax.random.key(1))
    return rule, weights, jax.jit(rule.targets)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def written_out(weights, given, core, progress):
    """π̂ and log ŷ in float64, step by step from the last one."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), weights["params"])
    x = jax.tree.map(lambda x: np.asarray(x, np.float64), given)
    dense = lambda name, v: v @ w[name]["kernel"] + w[name]["bias"]
    embed = lambda y: dense("embedded", np.maximum(dense("embedding", y), 0.0))[..., 0]
    policy, prediction = np.zeros((T, B)), np.zeros((T, B, M))
    for b in range(B):
        h = c = np.zeros(4)
        for t in range(T)[::-1]:
            if x.ended[t, b]:
                h = c = np.zeros(4)
            later = 0.0 if x.terminated[t, b] else embed(x.next_prediction[t, b])
            seen = [x.reward[t, b], x.terminated[t, b], x.gamma, x.probability[t, b], embed(x.prediction[t, b]), later]
            if progress:
                seen += [x.progress, x.log_horizon]
            gate = np.array(seen) @ w["core"]["input"]["kernel"] + w["core"]["input"]["bias"]
            if core == "lstm":
                put, forget, new, out = np.split(gate + h @ w["core"]["kernel"], 4)
                c = sigmoid(forget + 1.0) * c + sigmoid(put) * np.tanh(new)
                h = sigmoid(out) * np.tanh(c)
            else:
                back = h @ w["core"]["kernel"]
                reset, update = sigmoid(gate[:4] + back[:4]), sigmoid(gate[4:8] + back[4:8])
                new = np.tanh(gate[8:] + reset * (back[8:] + w["core"]["bias"]))
                h = (1.0 - update) * new + update * h
            seen = np.maximum(h, 0.0)
            policy[t, b] = dense("policy", seen)[0]
            prediction[t, b] = log_softmax(dense("prediction", seen))
    return policy, prediction


@pytest.mark.parametrize(("core", "progress"), [("lstm", False), ("gru", True)])
def test_the_network_is_what_its_docstring_says(core, progress):
    _, weights, targets = built(core, progress)
    got = targets(weights, inputs())
    policy, prediction = written_out(weights, inputs(), core, progress)
    np.testing.assert_allclose(got.policy, policy, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.prediction, prediction, rtol=1e-4, atol=1e-5)


def changed_rows(given):
    """Which entries of π̂ a change of the inputs moves, [T, B]."""
    _, weights, targets = built()
    before, after = (np.asarray(targets(weights, x).policy) for x in (inputs(), given))
    return before != after


def test_a_reward_is_seen_by_earlier_steps_of_its_episode_alone():
    """Episode 0 of environment 0 ends with step 2 (terminal), of environment 1 with step 3 (truncated)."""
    for row, expected in ((4, [[3, 4], [4]]), (1, [[0, 1], [0, 1]])):
        moved = changed_rows(inputs().replace(reward=inputs().reward.at[row].add(1.0)))
        assert [np.flatnonzero(moved[:, b]).tolist() for b in range(B)] == expected


def test_a_successor_counts_unless_it_is_terminal():
    other = inputs().next_prediction[:, :, ::-1]
    moved = changed_rows(inputs().replace(next_prediction=other))
    expected = np.ones((T, B), bool)
    expected[2, 0] = False
    np.testing.assert_array_equal(moved, expected)


def test_the_horizon_changes_what_ta_lpg_gives_and_lpg_not():
    for change in ({"progress": jnp.float32(0.75)}, {"log_horizon": jnp.float32(3.0)}):
        given = inputs().replace(**change)
        assert not changed_rows(given).any()
        _, weights, targets = built("gru", True)
        assert (np.asarray(targets(weights, given).policy) != np.asarray(targets(weights, inputs()).policy)).all()


def test_sizes_are_those_of_the_paper_by_default():
    shapes = jax.eval_shape(rules.lpg().init, jax.random.key(0))
    embedding, lstm = 30 * 16 + 16 + 16 + 1, 6 * 1024 + 1024 + 256 * 1024
    heads = 256 + 1 + 256 * 30 + 30
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == embedding + lstm + heads == 277_792
    more = jax.eval_shape(rules.lpg(progress=True).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(more)) == 277_792 + 2 * 1024
    assert rules.lpg().num_bins == 30
    assert (rules.lpg().name, rules.lpg(progress=True).name) == ("lpg", "ta_lpg")


def test_a_positive_target_makes_the_action_more_likely():
    """The sign: π̂ = 1 pulls the taken action up, π̂ = -1 down, and y moves to ŷ."""
    aim = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    action = jnp.zeros((1, 1), jnp.int32)

    def loss(params, sign):
        log_policy, log_prediction = (jax.nn.log_softmax(params[name])[None, None] for name in ("policy", "prediction"))
        targets = Targets(jnp.full((1, 1), sign), jnp.broadcast_to(aim, (1, 1, 3)))
        log_prob = jnp.take_along_axis(log_policy, action[..., None], axis=-1)[..., 0]
        return sum(rules.agent_losses(targets, log_prob, log_prediction))

    params = {"policy": jnp.zeros(2), "prediction": jnp.zeros(3)}
    for sign in (1.0, -1.0):
        grads = jax.grad(loss)(params, sign)
        # The derivative of log softmax(0)_0 is (1/2, -1/2).
        np.testing.assert_allclose(-grads["policy"], [0.5 * sign, -0.5 * sign], rtol=1e-6)
        # d KL(y ‖ ŷ) / dz = y (log y - log ŷ - KL).
        log_ratio = np.log(1 / 3) - np.asarray(aim)
        np.testing.assert_allclose(grads["prediction"], (log_ratio - log_ratio.mean()) / 3, rtol=1e-5)
        assert grads["prediction"][0] < 0 < grads["prediction"][2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden and embedding must be at least 1, num_bins at least 2; got hidden = 0"),
        ({"num_bins": 1}, "got hidden = 256, embedding = 16, num_bins = 1"),
        ({"core": "s5"}, "core must be 'lstm' or 'gru'; got core = 's5'"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rules.lpg(**changes)


def test_a2c_as_a_rule():
    """π̂ is the advantage of the values that the predictions stand for, and ŷ the return's, by its own definition."""
    rule = rules.a2c(M, -2.0, 2.0, standardize=False)
    got = jax.jit(rule.targets)(rule.init(jax.random.key(0)), inputs())
    x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), inputs())
    centers = np.array([-2.0, 0.0, 2.0])
    value, following = x.prediction @ centers, x.next_prediction @ centers
    advantage = np.zeros((T, B))
    for t in range(T)[::-1]:
        error = x.reward[t] + 0.9 * (1.0 - x.terminated[t]) * following[t] - value[t]
        later = advantage[t + 1] if t + 1 < T else 0.0
        advantage[t] = error + 0.9 * 0.95 * (1.0 - x.ended[t]) * later
    np.testing.assert_allclose(got.policy, advantage, rtol=1e-4, atol=1e-5)
    distance = ((advantage + value)[..., None] - centers) / 2.0
    np.testing.assert_allclose(got.prediction, log_softmax(-0.5 * distance**2), rtol=1e-4, atol=1e-5)
    even = jax.jit(rules.a2c(M).targets)(rules.a2c(M).init(jax.random.key(0)), inputs()).policy
    np.testing.assert_allclose([even.mean(), even.std()], [0.0, 1.0], atol=1e-5)
    with pytest.raises(ValueError, match="num_bins must be at least 2 and low less than high"):
        rules.a2c(low=1.0, high=1.0)


def test_the_prediction_closest_to_many_targets_has_their_mean():
    """What makes the critic unbiased: y ∝ exp(mean of log ŷ) stands for the mean return."""
    centers = np.linspace(-5.0, 5.0, 30)
    goals = np.array([-1.0, 0.3, 2.2])
    width = centers[1] - centers[0]
    mean = np.mean([log_softmax(-0.5 * ((goal - centers) / width) ** 2) for goal in goals], axis=0)
    np.testing.assert_allclose(np.exp(log_softmax(mean)) @ centers, goals.mean(), atol=1e-6)

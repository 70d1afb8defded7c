"""Levels: the buffer against NumPy, the defects of its forerunner, and regret of learners whose returns are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import jaxrl
from jaxrl import checkpoint, fit, levels, objectives, runs, strategies
from jaxrl.algorithms import lpg, ppo
from jaxrl.envs import grids
from jaxrl.levels import buffer
from jaxrl.meta.evolve import evolve
from jaxrl.networks import NetworkConfig
from jaxrl.objectives import rules
from jaxrl.ops import trees
from jaxrl.types import Algorithm

SIZE, NUM = 7, 3


@pytest.fixture(autouse=True)
def _compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# --- The buffer ------------------------------------------------------------------------------------------------------


def batch(random):
    """Levels, lifetimes, scores, references of three."""
    scores = random.normal(size=NUM).astype(np.float32)
    references = random.normal(size=NUM).astype(np.float32)
    if random.random() < 0.3:
        scores[random.integers(NUM)] = np.nan
    if random.random() < 0.3:
        references[random.integers(NUM)] = np.inf
    return {"x": random.normal(size=(NUM, 2)).astype(np.float32)}, random.integers(1, 9, NUM), scores, references


def put_in(slots, rows, only_better):
    """What `insert` does, one level after the other, on a list of (x, lifetime, score, reference) or None."""
    inactive = [i for i, slot in enumerate(slots) if slot is None]
    lowest = sorted((i for i, slot in enumerate(slots) if slot is not None), key=lambda i: slots[i][2])
    sound = [row for row in rows if np.isfinite(row[2]) and np.isfinite(row[3])]
    result = list(slots)
    for i, row in zip(inactive + lowest, sorted(sound, key=lambda row: -row[2]), strict=False):
        if slots[i] is None or not only_better or row[2] > slots[i][2]:
            result[i] = row
    return result


insert = jax.jit(buffer.insert, static_argnums=5)
rescore = jax.jit(buffer.rescore)


@pytest.mark.parametrize("only_better", [False, True])
def test_insert_is_that_of_a_loop(only_better):
    random = np.random.default_rng(0)
    held, slots = buffer.empty({"x": jnp.zeros(2)}, SIZE), [None] * SIZE
    assert held.size == SIZE
    for _ in range(40):
        new = batch(random)
        held = insert(held, *new, only_better)
        slots = put_in(slots, list(zip(new[0]["x"], *new[1:], strict=True)), only_better)
        assert np.asarray(held.active).tolist() == [slot is not None for slot in slots]
        for i, slot in enumerate(slots):
            if slot is not None:
                found = (held.levels["x"][i], held.lifetime[i], held.score[i], held.reference[i])
                for a, b in zip(found, slot, strict=True):
                    np.testing.assert_array_equal(a, b)
    assert np.asarray(held.active).all()


def filled(scores):
    """A buffer with these scores in order in its first slots."""
    given = np.zeros(SIZE, np.float32)
    given[: len(scores)] = scores
    return buffer.Buffer(
        levels={"x": jnp.asarray(np.arange(2.0 * SIZE, dtype=np.float32).reshape(SIZE, 2))},
        lifetime=jnp.asarray(np.arange(SIZE, dtype=np.int32)),
        score=jnp.asarray(given),
        reference=jnp.asarray(-given),
        active=jnp.asarray(np.arange(SIZE) < len(scores)),
    )


def test_what_is_not_written_stays_as_it_was():
    """A write touches its own slots only: groove's marks every slot that is not being written (meta.md, 1.2)."""
    before = filled([3.0, -1.0, 2.0, 0.5])
    scores, rest = np.array([np.nan, 1.0, np.nan], np.float32), np.full(NUM, 6.0, np.float32)
    after = insert(before, {"x": np.ones((NUM, 2), np.float32)}, np.full(NUM, 4), scores, rest, False)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(np.delete(a, 4, axis=0), np.delete(b, 4, axis=0))
    assert (int(after.active.sum()), float(after.reference[4])) == (5, 6.0)
    told = rescore(before, np.array([2, 5, 0]), np.float32([8.0, 8.0, 8.0]), np.array([True, True, False]))
    assert told.score.tolist() == [3.0, -1.0, 8.0, 0.5, 0.0, 0.0, 0.0]
    np.testing.assert_array_equal(told.active, before.active)


def test_rescore_keeps_what_is_not_known():
    slots, scores = np.array([0, 1, 2]), np.float32([np.nan, 7.0, 8.0])
    told = rescore(filled([1.0, 2.0, 3.0]), slots, scores, np.array([True, True, False]))
    assert told.score.tolist() == [1.0, 7.0, 3.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("transform", ["rank", "proportional"])
def test_at_temperature_zero_the_highest_scores_are_replayed(transform):
    held = filled([1.0, 5.0, -2.0, 4.0])
    slots, known = jax.jit(buffer.replay, static_argnums=(2, 3))(jax.random.key(0), held, 6, transform)
    assert slots.tolist()[:4] == [1, 3, 0, 2]
    assert known.tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("transform", "temperature", "weights"),
    [
        ("rank", 0.5, lambda scores: (1.0 + np.argsort(np.argsort(-scores))) ** -2.0),
        ("proportional", 2.0, lambda scores: np.exp(scores / 2.0)),
    ],
)
def test_replay_draws_without_replacement_by_score(transform, temperature, weights):
    # A high score that is not there must not be drawn; exp(300) would overflow.
    scores, shift = np.array([1.0, 3.0, -2.0, 0.5]), 300.0
    held = filled(scores + shift)
    held = held.replace(score=jnp.asarray(np.append(np.asarray(held.score)[:-1], np.float32(1e6))))
    draw = jax.jit(jax.vmap(lambda key: buffer.replay(key, held, 2, transform, temperature)))
    slots, known = draw(jax.random.split(jax.random.key(0), 20_000))
    slots = np.asarray(slots)
    assert known.all()
    p = weights(scores) / weights(scores).sum()
    first = np.bincount(slots[:, 0], minlength=4) / len(slots)
    np.testing.assert_allclose(first, p, atol=0.015)
    for i in range(4):
        second = np.bincount(slots[slots[:, 0] == i, 1], minlength=4)
        rest = np.where(np.arange(4) == i, 0.0, p)
        np.testing.assert_allclose(second / second.sum(), rest / rest.sum(), atol=0.06)
        assert second[i] == 0


def test_levels_must_fit():
    with pytest.raises(ValueError, match="8 levels do not go into a buffer of 7"):
        buffer.insert(filled([]), *[jnp.zeros(8)] * 4)


# --- Regret ----------------------------------------------------------------------------------------------------------


@struct.dataclass
class Toy:
    env: dict
    luck: jax.Array
    horizon: jax.Array


@functools.cache
def lucky():
    """Gains the level's gain a step, on top of luck from its key; and the logarithm of its horizon."""

    def hyperparams(**changes):
        default = trees.as_arrays(Toy(env={"gain": 0.0}, luck=1.0, horizon=jnp.inf))
        return trees.with_changes(default, changes, {})

    def init(key, hparams):
        return hparams.luck * jax.random.normal(key) + 100.0 * jnp.log(hparams.horizon)

    def step(state, hparams):
        return state + hparams.env["gain"], {"loss/value": state}

    act = lambda state, memory, obs, key: (obs, memory)
    return Algorithm(init, step, act, hyperparams, env_steps=5, name="lucky", env=jaxrl.make_env("probe/Credit"))


def gains(key):
    return {"gain": jax.random.uniform(key)}


def one_to_three(key):
    return jax.random.randint(key, (), 1, 4)


def reached(state, metrics):
    return state


def doubled(score, env):
    return score + 0.0 * env["gain"]


def course_of(**changes):
    arguments = {"num_levels": 4, "num_steps": 3, "lifetimes": one_to_three, "size": 6, "fitness": reached, **changes}
    return levels.regret(lucky(), gains, **arguments)


@functools.cache
def compiled():
    """A curriculum whose levels are drawn and told by one program each."""
    course = course_of()
    return course, jax.jit(course.draw), jax.jit(course.tell)


@functools.cache
def expected_outcome():
    def one(key, gain, life):
        return 2.0 * jax.random.normal(jax.random.split(key)[0]) + 100.0 * jnp.log(5.0 * life) + life * gain

    return jax.jit(jax.vmap(one))


def test_regret_is_told_and_the_antagonist_learns_once():
    """Six generations against a list of (gain, life, score, reference); R = 2 of G = 4 are replayed."""
    course, draw, tell = compiled()
    hparams = course.hyperparams(antagonist=lucky().hyperparams(luck=2.0))
    state, slots, random = course.init(jax.random.key(0), hparams), [None] * 6, np.random.default_rng(1)
    kept_reference = 0
    for generation in range(6):
        drawn, lives, tickets = draw(state, hparams)
        again, *_ = draw(state, hparams)
        np.testing.assert_array_equal(drawn["gain"], again["gain"])
        gain, lives = np.asarray(drawn["gain"]), np.asarray(lives)
        held = sorted((i for i in range(6) if slots[i] is not None), key=lambda i: -slots[i][2])[:2]
        # Nothing is there in the first generation: levels in the place of replayed ones are new, and are not kept.
        assert tickets.known.tolist() == [generation > 0] * 2
        assert len(set(gain)) == 4
        assert gain.min() > 0
        assert lives.min() >= 1
        for place, i in enumerate(held):
            assert (gain[2 + place], lives[2 + place]) == slots[i][:2]

        fitness = random.normal(size=4).astype(np.float32)
        fitness[3] = np.nan if generation == 4 else fitness[3]
        before = state
        state, metrics = tell(state, tickets, jnp.asarray(fitness), hparams)
        for place, i in enumerate(held):
            score = slots[i][3] - fitness[2 + place]
            slots[i] = (*slots[i][:2], slots[i][2] if np.isnan(score) else score, slots[i][3])
        keys = jax.random.split(tickets.key_antagonist, 2)
        references = np.asarray(expected_outcome()(keys, gain[:2], lives[:2].astype(np.float32)))
        new = list(zip(gain[:2], lives[:2], references - fitness[:2], references, strict=True))
        slots = put_in(slots, new, False)
        table = (state.buffer.levels["gain"], state.buffer.lifetime, state.buffer.score, state.buffer.reference)
        for i, slot in enumerate(slots):
            assert bool(state.buffer.active[i]) == (slot is not None)
            if slot is not None:
                np.testing.assert_allclose([float(column[i]) for column in table], slot, rtol=1e-5, atol=1e-4)
        kept_reference += sum(float(before.buffer.reference[i]) == float(state.buffer.reference[i]) for i in held)

        np.testing.assert_allclose(metrics["curriculum/score_new"], np.mean(references - fitness[:2]), rtol=1e-5)
        np.testing.assert_allclose(metrics["curriculum/reference"], np.mean(references), rtol=1e-5)
        replayed = [slots[i][3] - fitness[2 + place] for place, i in enumerate(held)]
        assert bool(np.isnan(metrics["curriculum/score_replayed"])) == (generation == 0)
        assert float(metrics["curriculum/num_active"]) == sum(slot is not None for slot in slots)
        assert float(metrics["curriculum/num_replayed"]) == len(replayed)
    # Of the eight replays after the buffer was filled, those that survived have the antagonist's return of their entry.
    assert kept_reference >= 6
    assert len({float(x) for x in state.buffer.reference}) == 6
    # Two antagonists a generation, three steps of five transitions each.
    assert course.env_steps == 2 * 3 * 5


@pytest.mark.slow
def test_without_lifetimes_all_live_to_the_end():
    course = course_of(lifetimes=None, p_replay=0.0, normalize=doubled)
    hparams = course.hyperparams(temperature=0.5)
    state = course.init(jax.random.key(3), hparams)
    drawn, lives, tickets = course.draw(state, hparams)
    state, _ = jax.jit(course.tell)(state, tickets, jnp.zeros(4), hparams)
    assert lives.tolist() == [3] * 4
    keys = jax.vmap(lambda key: jax.random.split(key)[0])(jax.random.split(tickets.key_antagonist, 4))
    expected = jax.vmap(jax.random.normal)(keys) + 3.0 * drawn["gain"] + 100.0 * jnp.log(15.0)
    np.testing.assert_allclose(np.sort(state.buffer.reference[:4]), np.sort(expected), rtol=1e-5)
    assert float(hparams.temperature) == 0.5


def test_equal_arguments_give_the_same_curriculum():
    assert course_of() is course_of()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_levels": 0}, "num_levels must be a whole number of at least 1"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1"),
        ({"size": 3}, "the buffer must hold the levels of a generation; got size = 3, num_levels = 4"),
        ({"p_replay": 1.0}, "must be a whole number below num_levels.*got p_replay = 1.0, num_levels = 4"),
        ({"p_replay": 0.3}, "must be a whole number below num_levels"),
        ({"transform": "positive_value_loss"}, "transform must be one of rank, proportional; got transform = 'posit"),
        ({"fitness": "regret"}, "regret: fitness must be 'evaluation', 'training' or a function"),
        ({"chunk": 3, "num_levels": 16, "size": 16}, "divisible by chunk"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        course_of(**changes)


def test_an_antagonist_needs_an_environment():
    with pytest.raises(ValueError, match="levels need an antagonist with an environment; 'lucky' has env = None"):
        levels.regret(lucky()._replace(env=None), gains, num_levels=2, num_steps=1, fitness=reached)


# --- Under evolution -------------------------------------------------------------------------------------------------


def evolving(**changes):
    arguments = {"num_steps": 3, "num_held_out": 2, "fitness": reached, "common_keys": "pairs", **changes}
    return evolve(lucky(), strategies.open_es(8), "luck", **{"curriculum": course_of(), **arguments})


def test_evolution_meets_the_levels_and_tells_what_was_made_of_them():
    """Two generations written out. The two of a pair lie around a mean luck of 1, which stays."""
    agents, (course, draw, tell) = evolving(num_generations=2), compiled()
    hparams = agents.hyperparams(strategy=strategies.open_es(8).hyperparams(sigma=0.3, learning_rate=0.0))
    before = jax.jit(agents.init)(jax.random.key(5), hparams)
    after, metrics = jax.jit(agents.step)(before, hparams)

    @jax.jit
    @jax.vmap
    def outcome(key, gain, life):
        steps = life.astype(jnp.float32)
        return jax.random.normal(jax.random.split(key, 4)[0]) + 100.0 * jnp.log(5.0 * steps) + steps * gain

    state, key, scores = before.curriculum, before.key, []
    for _ in range(2):
        drawn, lives, tickets = draw(state, hparams.curriculum)
        key, key_train = jax.random.split(key)
        fitness = outcome(jax.random.split(key_train, (4, 1))[:, 0], drawn["gain"], lives)
        state, told = tell(state, tickets, fitness, hparams.curriculum)
        scores.append(told)
    for a, b in zip(jax.tree.leaves(after.curriculum.buffer), jax.tree.leaves(state.buffer), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    mean = np.mean([told["curriculum/score_new"] for told in scores])
    np.testing.assert_allclose(metrics["curriculum/score_new"], mean, rtol=1e-4)
    # Of the first generation there is none: a mean over those that there are.
    np.testing.assert_allclose(metrics["curriculum/score_replayed"], scores[1]["curriculum/score_replayed"], rtol=1e-3)

    # Held-out learners meet levels of the distribution itself, always the same.
    keys = jax.random.split(before.key_held_out, 2)
    of_task, of_life = jax.jit(jax.vmap(lambda key: tuple(jax.random.split(key, 4)[2:])))(keys)
    expected = outcome(
        keys, *jax.jit(jax.vmap(lambda task, life: (gains(task)["gain"], one_to_three(life))))(of_task, of_life)
    )
    np.testing.assert_allclose(metrics["held_out/fitness"], np.mean(expected), rtol=1e-5)
    assert agents.env_steps == (2 * 8 + 2) * 3 * 5 + 2 * course.env_steps


def train(path, total, *, resume, die_after=None):
    agents = evolving(num_generations=2)
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


@pytest.mark.slow
def test_a_run_that_was_killed_continues_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", 3, resume=False)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "cut", 3, resume=False, die_after=1)
    cut = train(tmp_path / "cut", 3, resume=True)
    assert checkpoint.digests(cut.state) == checkpoint.digests(whole.state)
    assert int(whole.state.curriculum.buffer.active.sum()) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": gains}, "give tasks and lifetimes to the curriculum"),
        ({"lifetimes": one_to_three}, "give tasks and lifetimes to the curriculum"),
        ({"common_keys": "all"}, "take common_keys = 'pairs'; got common_keys = 'all'"),
        ({"num_steps": 4}, "must have num_levels = 4, one for each antithetic pair, and num_steps = 4; got num_levels"),
        ({"curriculum": course_of(num_levels=2)}, "must have num_levels = 4.*got num_levels = 2, num_steps = 3"),
    ],
)
def test_a_curriculum_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        evolving(**changes)


@pytest.mark.slow
def test_learning_rules_under_regret():
    """With real learners: the reference is what the antagonist alone reaches on the level, and all is finite."""
    worlds = {"side": (3, 3), "steps": (5, 5), "num_objects": (1, 1), "num_walls": 0}
    env, draw = grids.make("Small", **worlds), grids.levels("Small", **worlds)
    agent = lpg.lpg(env, rules.lpg(4, 3, core="gru"), lpg.Config(2, 4, tabular=True, optimizer="sgd"))
    config = ppo.Config(num_envs=2, num_steps=4, num_epochs=1, num_minibatches=1, network=NetworkConfig(hidden=()))
    a2c = jaxrl.ppo(env, objective=objectives.policy_gradient(), config=config)
    course = levels.regret(a2c, draw, num_levels=4, num_steps=5, size=8, num_episodes=4, sampled=True, chunk=1)
    search = strategies.open_es(8, strategies.pairwise)
    agents = evolve(
        agent,
        search,
        num_steps=5,
        num_held_out=2,
        num_episodes=4,
        sampled=True,
        common_keys="pairs",
        curriculum=course,
        chunk=4,
    )
    antagonist = a2c.hyperparams(learning_rate=1.0)
    hparams = agents.hyperparams(learning_rate=40.0, curriculum=course.hyperparams(antagonist=antagonist))
    state = jax.jit(agents.init)(jax.random.key(0), hparams)
    levels_met, _, tickets = course.draw(state.curriculum, hparams.curriculum)
    step = jax.jit(agents.step)
    state, metrics = step(state, hparams)

    def alone(key, level):
        key_train, key_play = jax.random.split(key)
        own = antagonist.replace(env=level, horizon=jnp.float32(5 * a2c.env_steps))
        trained, _ = jaxrl.train(a2c, 5)(key_train, own)
        return jaxrl.evaluate(a2c, 4, sampled=True)(key_play, trained, level).mean_return

    keys = jax.random.split(tickets.key_antagonist, 2)
    expected = jax.jit(jax.vmap(alone))(keys, jax.tree.map(lambda x: x[:2], levels_met))
    found = state.curriculum.buffer.reference[:2]
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-4, atol=1e-5)
    for _ in range(5):
        state, metrics = step(state, hparams)
    assert all(np.isfinite(value) for value in metrics.values())
    assert int(state.curriculum.buffer.active.sum()) == 8
    assert step._cache_size() == 1

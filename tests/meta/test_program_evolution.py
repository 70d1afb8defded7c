"""The search's bookkeeping on a learner of one number, checked against a NumPy replay, and that it finds TD's loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import jaxrl
from jaxrl import values
from jaxrl.algorithms import dqn
from jaxrl.meta.regularized_evolution import programs, regularized_evolution
from jaxrl.networks.q_network import QNetworkConfig
from jaxrl.ops import expressions
from jaxrl.types import Algorithm

DRAWS = np.random.default_rng(0)
BATCH = expressions.LossInputs(
    *(jnp.asarray(DRAWS.normal(size=(16, 3)), jnp.float32) for _ in range(4)),
    jnp.asarray(DRAWS.integers(0, 3, 16)),
    jnp.asarray(DRAWS.normal(size=16), jnp.float32),
    jnp.full(16, 0.9),
)
WANT = expressions.evaluate(expressions.program_of(expressions.TD), BATCH)


@struct.dataclass
class Toy:
    """Hyperparameters and state in one: the program, and how far it is from the loss of TD."""

    head: expressions.Program
    params: jax.Array


def error(program):
    """Not finite for a program whose values are not."""
    return jnp.mean(jnp.abs(expressions.evaluate(program, BATCH) - WANT))


def toy():
    start = Toy(expressions.program_of(expressions.TD, 6), jnp.float32(0.0))
    step = lambda state, hparams: (state.replace(params=error(hparams.head)), {"loss": error(hparams.head)})
    act = lambda state, memory, obs, key: (jnp.int32(0), memory)
    return Algorithm(lambda key, hparams: hparams, step, act, lambda **changes: start, env_steps=1, name="toy")


TOY = toy()
P, T, C, M, K = 24, 6, 5, 12, 16
score = lambda state, metrics: -state.params
SEARCH = regularized_evolution(
    TOY,
    programs(6),
    num_steps=1,
    population_size=P,
    tournament_size=T,
    num_children=C,
    num_proposals=M,
    num_known=K,
    num_held_out=1,
    fitness=score,
)
step = jax.jit(SEARCH.step)
errors_of = jax.jit(jax.vmap(error))
prints_of = jax.jit(jax.vmap(expressions.fingerprint))


def test_the_population_is_the_last_that_entered_each_with_its_own_fitness():
    hparams = SEARCH.hyperparams()
    state = jax.jit(SEARCH.init)(jax.random.key(0), hparams)
    trained, num_entered, best, known_rows = {}, 0, -np.inf, []
    for i in range(12):
        before = state
        state, metrics = step(before, hparams)
        # What entered stands in the next places of the ring, and nothing else has changed.
        entered = int(state.num_entered) - num_entered
        places = (num_entered + np.arange(entered)) % P
        others = np.setdiff1d(np.arange(P), places)
        for old, new in zip(jax.tree.leaves(before.genomes), jax.tree.leaves(state.genomes), strict=True):
            np.testing.assert_array_equal(old[others], new[others])
        np.testing.assert_array_equal(before.fitness[others], state.fitness[others])
        num_entered += entered
        # Fitness is that of the genome itself, however it got it.
        with_best = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), state.genomes, state.best)
        *own, of_best = -np.asarray(errors_of(with_best))
        own = np.where(np.isfinite(own), own, -np.inf)
        filled = np.arange(P) < num_entered
        np.testing.assert_allclose(np.asarray(state.fitness)[filled], own[filled], rtol=1e-4)
        assert np.isneginf(np.asarray(state.fitness)[~filled]).all()
        # Nothing is trained twice while it is known.
        new = int(state.num_trained) - len(known_rows)
        assert metrics["search/num_new"] == new
        assert entered >= new
        rows = [(len(known_rows) + j) % K for j in range(new)]
        codes = [tuple(np.asarray(state.known)[row].tolist()) for row in rows]
        assert not set(codes) & set(known_rows[-K:])
        assert len(set(codes)) == len(codes)
        known_rows += codes
        trained |= {code: float(state.known_fitness[row]) for code, row in zip(codes, rows, strict=True)}
        best = max([best, *(trained[code] for code in codes)])
        assert metrics["fitness/best"] == state.best_fitness == pytest.approx(best)
        assert of_best == pytest.approx(best, rel=1e-4)
        assert metrics["held_out/fitness"] == pytest.approx(best, rel=1e-4)
        if num_entered < P:
            assert i < 4, "the population fills up at once"
    assert 0.0 < float(metrics["search/share_known"]) < 1.0
    assert num_entered > 2 * P


@pytest.mark.slow
def test_tournaments_prefer_the_fitter_and_a_probability_of_zero_only_draws():
    """With T = P the parent is one of the best members; its child differs from it in one node at most."""
    search = regularized_evolution(
        TOY,
        programs(6),
        num_steps=1,
        population_size=P,
        tournament_size=P,
        num_children=C,
        num_held_out=1,
        fitness=score,
    )
    filled = SEARCH.hyperparams()
    state = jax.jit(SEARCH.init)(jax.random.key(1), filled)
    for _ in range(6):
        state, _ = step(state, filled)
    state = state.replace(
        known=jnp.zeros((4096, 2), jnp.uint32), known_fitness=jnp.full(4096, -jnp.inf), num_trained=jnp.int32(0)
    )
    best = np.asarray(state.fitness) == np.max(state.fitness)
    champions = [np.asarray(x)[best] for x in jax.tree.leaves(state.genomes)]

    def nodes_changed(probability):
        after, _ = jax.jit(search.step)(state, search.hyperparams(mutation_probability=probability))
        places = (int(state.num_entered) + np.arange(int(after.num_entered) - int(state.num_entered))) % P
        pairs = zip(jax.tree.leaves(after.genomes), champions, strict=True)
        changed = np.any([np.asarray(x)[places, None] != y[None] for x, y in pairs], axis=0)
        return changed.sum(-1).min(-1)

    assert nodes_changed(1.0).max() <= 1
    assert nodes_changed(0.0).min() > 1


@pytest.mark.slow
def test_a_program_without_a_finite_score_is_last():
    """Its parameters are not finite, though its fitness would be the best."""
    bad = lambda state, metrics: jnp.where(jnp.isfinite(state.params), -state.params, jnp.inf)
    odd = ("add", expressions.TD, ("exp", ("exp", ("square", ("select", "q", "action")))))
    broken = Algorithm(
        TOY.init,
        lambda state, hparams: (state.replace(params=jnp.float32(jnp.nan)), {}),
        TOY.act,
        lambda **changes: Toy(expressions.program_of(odd), jnp.float32(0.0)),
        env_steps=1,
    )
    search = regularized_evolution(
        broken,
        programs(6),
        num_steps=1,
        population_size=4,
        tournament_size=2,
        num_children=2,
        num_held_out=1,
        fitness=bad,
    )
    state, metrics = jax.jit(search.step)(search.init(jax.random.key(0), search.hyperparams()), search.hyperparams())
    assert metrics["fitness/num_not_finite"] == metrics["search/num_new"] == 2
    assert np.isneginf(state.fitness).all()
    assert np.isneginf(state.best_fitness)


def test_messages():
    make = functools.partial(regularized_evolution, TOY, programs(6), num_steps=1, fitness=score)
    with pytest.raises(ValueError, match="leaf must be one of head, params; got leaf = 'loss'"):
        make("loss")
    with pytest.raises(ValueError, match="num_children must be at least 1"):
        make(num_children=0)
    with pytest.raises(ValueError, match="num_children <= num_proposals <= population_size"):
        make(num_children=8, num_proposals=4)
    with pytest.raises(ValueError, match="and tournament_size <= population_size; got 8, 12, 12 and 25"):
        make(population_size=12)
    with pytest.raises(ValueError, match="num_nodes must be above those of start; got 5 and 5"):
        programs(5, expressions.TD)


@pytest.mark.slow
def test_from_a_loss_without_reward_and_discount_it_comes_close_to_that_of_td():
    """Symbolic regression on the values. It finds the reward, not the discount (key 0: from 0.79 to 0.08)."""
    near = ("half_squared_distance", ("select", "q", "action"), ("max_list", "target_next"))
    search = regularized_evolution(
        TOY,
        programs(6, near),
        num_steps=1,
        population_size=256,
        tournament_size=16,
        num_children=32,
        num_proposals=128,
        num_held_out=1,
        fitness=score,
    )
    state, metrics = jax.jit(jaxrl.train(search, 100))(jax.random.key(0), search.hyperparams())
    print(expressions.describe(state.best), np.asarray(metrics["fitness/best"])[::10])
    assert state.best_fitness > 0.25 * metrics["fitness/best"][0], state.best_fitness


@pytest.mark.slow
def test_a_search_over_losses_of_dqn():
    config = dqn.Config(num_envs=4, num_rounds=8, batch_size=16, capacity=256, num_warmup_steps=8)
    config = dqn.dataclasses.replace(config, network=QNetworkConfig(hidden=(8,)))
    agent = dqn.dqn(jaxrl.make_env("probe/Credit"), head=values.graph(expressions.TD, 8), config=config)
    search = regularized_evolution(
        agent,
        programs(8, expressions.TD),
        num_steps=20,
        population_size=8,
        tournament_size=4,
        num_children=4,
        num_held_out=2,
        chunk=2,
    )
    hparams = search.hyperparams(learning_rate=1e-2)
    run = jax.jit(jaxrl.train(search, 3))
    state, metrics = run(jax.random.key(0), hparams)
    assert np.isfinite(metrics["fitness/best"]).all()
    assert (np.diff(metrics["fitness/best"]) >= 0).all()
    again, _ = run(jax.random.key(0), hparams)
    for one, other in zip(jax.tree.leaves(state.genomes), jax.tree.leaves(again.genomes), strict=True):
        np.testing.assert_array_equal(one, other)

"""The order of collecting and updating, against a plain loop that writes down what it does."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import alternating

COLLECT, CRITIC, POLICY = 1.0, 2.0, 3.0


def in_a_loop(num_rounds, num_updates, delay):
    """(what, its number) of every event."""
    events, count = [], 0
    for t in range(num_rounds):
        events.append((COLLECT, t))
        for _ in range(num_updates):
            events.append((CRITIC, count))
            count += 1
            if count % delay == 0:
                events.append((POLICY, count // delay - 1))
    return events


@pytest.mark.parametrize("num_rounds, num_updates, delay", [(3, 1, 1), (6, 1, 2), (6, 2, 6), (3, 6, 2), (2, 4, 4)])
def test_order_of_events(num_rounds, num_updates, delay):
    """The carry is a tape: its length so far and what was written."""
    plan = alternating.order("test", num_rounds, num_updates, delay)
    assert plan.updates_shape == (num_rounds, num_updates)
    expected = in_a_loop(num_rounds, num_updates, delay)

    def write(tape, what, row):
        position, cells = tape
        return position + 1, cells.at[position].set(jnp.stack([what, row]))

    def collect(learner, world, row):
        # The learner's tape ends where the last collection left it: the events are merged below by their clock.
        cells, count = world
        cells = cells.at[row.astype(int)].set(jnp.stack([jnp.float32(COLLECT), learner[0].astype(jnp.float32)]))
        return learner, (cells, count + 1), {"rounds": row}

    def update(what):
        return lambda learner, row, world: (write(learner, jnp.float32(what), row), {f"seen/{what}": world[1]})

    cells = jnp.zeros((len(expected) - num_rounds, 2))
    carry = (jnp.int32(0), cells), (jnp.zeros((num_rounds, 2)), jnp.float32(0.0))
    rows = alternating.Draws(
        collect=jnp.arange(num_rounds, dtype=jnp.float32),
        critic=jnp.arange(num_rounds * num_updates, dtype=jnp.float32).reshape(num_rounds, num_updates),
        policy=jnp.arange(plan.num_policy_updates, dtype=jnp.float32),
    )
    (learner, (collected, count)), _ = alternating.alternate(plan, carry, rows, collect, update(CRITIC), update(POLICY))
    np.testing.assert_array_equal(learner[1], [event for event in expected if event[0] != COLLECT])
    before = [i - t for t, i in enumerate(i for i, event in enumerate(expected) if event[0] == COLLECT)]
    np.testing.assert_array_equal(collected[:, 1], before)
    assert count == num_rounds


def test_a_policy_update_sees_the_draw_of_the_critic_update_before_it():
    draws = jnp.arange(12).reshape(3, 4)
    assert alternating.last_of_each(alternating.order("test", 3, 4, 2), draws).tolist() == [1, 3, 5, 7, 9, 11]
    assert alternating.last_of_each(alternating.order("test", 3, 4, 4), draws).tolist() == [3, 7, 11]
    late = jnp.arange(6).reshape(6, 1)
    assert alternating.last_of_each(alternating.order("test", 6, 1, 3), late).tolist() == [2, 5]


@pytest.mark.parametrize("counts", [(4, 2, 3), (5, 1, 2), (4, 3, 2)])
def test_orders_that_there_are_not(counts):
    with pytest.raises(ValueError, match="one must divide the other"):
        alternating.order("test", *counts)

"""Warm starts of sequence rules: a network learns to give the targets of a written rule before a search goes on.

One round, with its shapes; L learners with levels of their own, half taught by the teacher, half by the student:

    live           each learner updates once by its rule; what the rule saw is kept      RuleInputs [L, T, B]
    ask            the teacher's targets of it                                           [L, T, B], [L, T, B, m]
    learn          one Adam step of the student on
                     E[ (π̂ - π̂_teacher)² ] + E[ KL( ŷ_teacher ‖ ŷ ) ]

Since half of the learners live by the student, it sees the predictions that its own mistakes lead to (as DAgger does,
Ross et al. 2011). Learners begin anew, with new levels, after each life.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxrl import validation
from jaxrl.meta.evolve import Tasks
from jaxrl.objectives.rules import Rule, RuleInputs, Targets
from jaxrl.ops import trees
from jaxrl.types import Algorithm, Key, Metrics, State

Make = Callable[[Rule], Algorithm]
"""The agent of a rule, for instance `lambda rule: lpg.lpg(env, rule, config)`."""


def observed(make: Make, rule: Rule) -> Callable[[State, Any], tuple[State, Metrics, RuleInputs]]:
    """One step of an agent of a rule, with what the rule saw in it.

    Args:
      make: the agent of a rule.
      rule: the rule.

    Returns:
      `(state, hparams) -> (state, metrics, inputs [T, B])`, pure.
    """
    seen: list[RuleInputs] = []

    def targets(params: PyTree, inputs: RuleInputs) -> Targets:
        seen.append(inputs)
        return rule.targets(params, inputs)

    agent = make(rule._replace(targets=targets))

    def step(state: State, hparams: Any) -> tuple[State, Metrics, RuleInputs]:
        state, metrics = agent.step(state, hparams)
        return state, metrics, seen.pop()

    return step


def distance(targets: Targets, aim: Targets) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How far targets are from others: E[ (π̂ - π̂')² ] and E[ KL( ŷ' ‖ ŷ ) ].

    Args:
      targets: of the student.
      aim: of the teacher.

    Example:
      >>> even = jnp.log(jnp.full((1, 1, 2), 0.5))
      >>> square, kl = distance(Targets(jnp.ones((1, 1)), even), Targets(jnp.zeros((1, 1)), even))
      >>> float(square), float(kl)
      (1.0, 0.0)
    """
    divergence = jnp.sum(jnp.exp(aim.prediction) * (aim.prediction - targets.prediction), axis=-1)
    return jnp.mean(jnp.square(targets.policy - aim.policy)), jnp.mean(divergence)


def imitate(
    make: Make,
    student: Rule,
    teacher: Rule,
    *,
    tasks: Tasks | None = None,
    num_learners: int = 32,
    num_iterations: int = 50,
    num_lives: int = 20,
    learning_rate: float = 3e-3,
    max_grad_norm: float = 1.0,
) -> Callable[..., tuple[PyTree, Metrics]]:
    """Teaches a rule's network the targets of a written rule, on the rollouts of agents that live by either.

    A teacher whose π̂ is standardized over all environments of a rollout cannot be imitated by a rule that sees one of
    them at a time: take `rules.a2c(num_bins, standardize=False)`.

    Args:
      make: the agent of a rule.
      student: its network learns.
      teacher: gives the targets; the number of bins must be the same.
      tasks: draws the environment's parameters of each learner; None: those of the hyperparameters.
      num_learners: L, even.
      num_iterations: of a life.
      num_lives: one after another.
      learning_rate: of Adam, at the beginning; it falls linearly to 0.
      max_grad_norm: gradients of a greater global norm are scaled down to it.

    Returns:
      `(key, hparams) -> (weights, metrics [num_lives])`, pure, to be compiled by the caller. `hparams` are the agent's
      under the teacher, whose coefficients are `hparams.objective`. Metrics: `imitation/policy`, the mean squared error
      of π̂ by the teacher's mean square, and `imitation/prediction`, the mean KL(ŷ_teacher ‖ ŷ), both over a life.

    Raises:
      ValueError: a count is not positive, L is odd, or the numbers of bins differ.

    Example:
      >>> import jaxrl
      >>> from jaxrl.algorithms import lpg
      >>> from jaxrl.objectives import rules
      >>> env, config = jaxrl.make_env("chains/Short"), lpg.Config(num_envs=2, tabular=True, optimizer="sgd")
      >>> student, teacher = rules.lpg(hidden=4, num_bins=3), rules.a2c(3, standardize=False)
      >>> make = lambda rule: lpg.lpg(env, rule, config)
      >>> learn = imitate(make, student, teacher, num_learners=2, num_lives=3)
      >>> weights, metrics = jax.eval_shape(learn, jax.random.key(0), make(teacher).hyperparams())
      >>> metrics["imitation/policy"].shape
      (3,)
    """
    counts = {"num_learners": num_learners, "num_iterations": num_iterations, "num_lives": num_lives}
    for name, value in counts.items():
        validation.count("imitate", name, value)
    if num_learners % 2:
        raise ValueError(f"imitate: num_learners must be even, half for each rule; got num_learners = {num_learners}.")
    if student.num_bins != teacher.num_bins:
        raise ValueError(
            f"imitate: the rules must have the same number of bins; got {student.num_bins} of {student.name} and "
            f"{teacher.num_bins} of {teacher.name}."
        )

    def mixed_targets(params: PyTree, inputs: RuleInputs) -> Targets:
        own, written = student.targets(params["student"], inputs), teacher.targets(params["teacher"], inputs)
        return trees.where(params["by_student"], own, written)

    init = lambda key: {"student": student.init(key), "teacher": teacher.init(key), "by_student": jnp.bool_(False)}
    mixed = Rule(init, mixed_targets, student.num_bins, "mixed")
    agent, step = make(mixed), observed(make, mixed)
    num_updates = num_lives * num_iterations
    optimizer = optax.chain(
        optax.clip_by_global_norm(max_grad_norm), optax.adam(optax.linear_schedule(learning_rate, 0.0, num_updates))
    )

    def learn(key: Key, hparams: Any) -> tuple[PyTree, Metrics]:
        key_student, key_lives = jax.random.split(key)
        params = student.init(key_student)
        by_student = jnp.arange(num_learners) % 2 == 1

        def hparams_of(params: PyTree, follows: Array, env: PyTree) -> Any:
            objective = {"student": params, "teacher": hparams.objective, "by_student": follows}
            return dataclasses.replace(hparams, objective=objective, env=env)

        def loss(params: PyTree, inputs: RuleInputs, aim: Targets) -> tuple[Array, Metrics]:
            square, kl = distance(jax.vmap(student.targets, (None, 0))(params, inputs), aim)
            scale = jnp.mean(jnp.square(aim.policy))
            return square + kl, {"imitation/policy": square / scale, "imitation/prediction": kl}

        def life(carry: tuple[PyTree, Any], key: Key) -> tuple[tuple[PyTree, Any], Metrics]:
            keys = jax.random.split(key, (2, num_learners))
            envs = (
                jax.vmap(tasks)(keys[0])
                if tasks
                else jax.tree.map(lambda x: jnp.broadcast_to(x, (num_learners, *x.shape)), hparams.env)
            )
            begin = lambda key, follows, env: agent.init(key, hparams_of(carry[0], follows, env))
            learners = jax.vmap(begin)(keys[1], by_student, envs)

            def update(carry: Any, _: None) -> tuple[Any, Metrics]:
                params, opt_state, learners = carry
                one = lambda state, follows, env: step(state, hparams_of(params, follows, env))
                learners, _metrics, inputs = jax.vmap(one)(learners, by_student, envs)
                aim = jax.vmap(teacher.targets, (None, 0))(hparams.objective, inputs)
                grads, metrics = jax.grad(loss, has_aux=True)(params, inputs, aim)
                updates, opt_state = optimizer.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state, learners), metrics

            (params, opt_state, _), metrics = jax.lax.scan(update, (*carry, learners), None, num_iterations)
            return (params, opt_state), jax.tree.map(jnp.mean, metrics)

        (params, _), metrics = jax.lax.scan(
            life, (params, optimizer.init(params)), jax.random.split(key_lives, num_lives)
        )
        return params, metrics

    return learn

"""Distillation of a learned drift into closed forms, by symbolic regression (gplearn), as DPO was found from LPO.

Positive and negative advantages are distilled apart, each into

    f(r, A) = ReLU( g( (r - 1) A, A log r, r - 1, log r ) )

with g a tree of +, -, *, / (protected), tanh and constants. All inputs are 0 at ratio 1. The search is drawn away from
forms that break f = 0 and df/dr = 0 at ratio 1 by a penalty, constants of the best are fitted by least squares, and of
these the forms that still break a rule are rejected.

gplearn is the extra `distill`.
"""

import importlib.util
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import PyTree

from jaxrl.objectives.learned import drift_objective, drift_of
from jaxrl.types import Objective

FEATURES = ("(r-1)A", "A·log(r)", "(r-1)", "log(r)")
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_LOG_RATIO = float(np.log(2.0))
# Distance from ratio 1 of the points that tell the slope there, and what it and f may be.
_NEAR = 1e-3
_TOLERANCE = 1e-2
_PENALTY = 10.0
# Trees whose constants are fitted, and their greatest size.
_NUM_FITTED = 600
_MAX_FITTED = 15


class Form(NamedTuple):
    """A closed form g of one sign of the advantage; the drift is ReLU(g).

    Attributes:
      text: for people.
      program: the tree in prefix order: names of functions, numbers of inputs (int), constants (float).
      error: root mean square of f less the drift that was distilled, by the root mean square of that drift.
      num_rejected: forms that fitted better and broke a rule.
    """

    text: str
    program: tuple[Any, ...]
    error: float
    num_rejected: int


class Distilled(NamedTuple):
    """A drift in closed form.

    Attributes:
      positive: where the advantage is at least 0.
      negative: where it is less.
    """

    positive: Form
    negative: Form

    def objective(self, name: str = "distilled") -> Objective:
        """The surrogate less this drift; it has no coefficients."""

        def drift(params: PyTree, log_ratio: jax.Array, advantage: jax.Array, progress: jax.Array) -> jax.Array:
            del params, progress
            features = _features(jnp, log_ratio, advantage)
            values = [jax.nn.relu(evaluate(form.program, features, jnp)) for form in self]
            return jnp.where(advantage >= 0, *(jnp.broadcast_to(value, advantage.shape) for value in values))

        return drift_objective(name, lambda key: (), drift)


def distill(
    objective: Objective,
    params: PyTree,
    *,
    num_inputs: int = 4,
    num_points: int = 21,
    population: int = 1000,
    generations: int = 20,
    seed: int = 0,
    progress: float = 0.0,
) -> Distilled:
    """Finds closed forms of an objective's drift.

    Args:
      objective: of single samples; see `jaxrl.objectives.learned.drift_of`.
      params: its coefficients or weights.
      num_inputs: of the four, the first so many may be used; 2 leaves functions of (r - 1) A and A log r.
      num_points: points on each axis of the grid: log r from -log 2 to log 2, |A| from 0.1 to 3.
      population: programs of a generation.
      generations: of the search.
      seed: of the search.
      progress: share of training that has passed.

    Returns:
      The forms. They keep f >= 0 by their ReLU, and |f| and |df/dr| at ratio 1 are at most 0.01 for all advantages of
      the grid, as measured at a distance of 0.001. They are close in value and seldom the expression itself: a test has
      DPO's own drift back to within 15% of its root mean square.

    Raises:
      ValueError: gplearn is not installed, or no form kept the rules.
    """
    if importlib.util.find_spec("gplearn") is None:
        raise ValueError("distill needs the package gplearn, which is not installed: pip install 'jaxrl[distill]'.")
    forms = [
        _distilled(objective, params, sign, num_inputs, num_points, population, generations, seed, progress)
        for sign in (1.0, -1.0)
    ]
    return Distilled(*forms)


def evaluate(program: tuple[Any, ...], features: Any, xp: Any = np) -> Any:
    """The value of a program.

    Args:
      program: as in `Form`.
      features: inputs, the first axis numbers them.
      xp: numpy or jax.numpy.

    Example:
      >>> evaluate(("sub", 0, "mul", 2.0, "tanh", 0), np.array([[0.0, 1.0]])).round(4).tolist()
      [0.0, -0.5232]
    """
    functions = _functions(xp)
    stack: list[Any] = []
    for node in reversed(program):
        if isinstance(node, str):
            function, arity = functions[node]
            stack.append(function(*(stack.pop() for _ in range(arity))))
        else:
            stack.append(features[node] if isinstance(node, int) else xp.asarray(node))
    return stack[0]


def breach(near: np.ndarray) -> float:
    """By how much a form breaks the rules at ratio 1: the greatest of |f| and of its slopes on both sides.

    Args:
      near: values of g just below, at, and just above ratio 1, for one advantage after another.

    Example:
      >>> breach(np.array([0.0, 0.0, 0.001])), breach(np.array([1e-6, 0.0, 1e-6])) < 0.01
      (1.0, True)
    """
    left, middle, right = np.maximum(near, 0.0).reshape(-1, 3).T
    return float(max(np.abs(middle).max(), np.abs(left - middle).max() / _NEAR, np.abs(right - middle).max() / _NEAR))


def _functions(xp: Any) -> dict[str, Any]:
    def protected(a: Any, b: Any) -> Any:
        # As gplearn has it.
        small = xp.abs(b) <= 1e-3
        return xp.where(small, 1.0, a / xp.where(small, 1.0, b))

    return {
        "add": (lambda a, b: a + b, 2),
        "sub": (lambda a, b: a - b, 2),
        "mul": (lambda a, b: a * b, 2),
        "div": (protected, 2),
        "tanh": (xp.tanh, 1),
    }


def _features(xp: Any, log_ratio: Any, advantage: Any) -> Any:
    less = xp.expm1(log_ratio)
    return xp.stack([less * advantage, advantage * log_ratio, less, log_ratio])


def _distilled(
    objective: Objective,
    params: PyTree,
    sign: float,
    num_inputs: int,
    num_points: int,
    population: int,
    generations: int,
    seed: int,
    progress: float,
) -> Form:
    from gplearn import fitness, functions, genetic

    size = np.linspace(0.1, 3.0, num_points)
    log_ratio, advantage = (x.ravel() for x in np.meshgrid(np.linspace(-1, 1, num_points) * _LOG_RATIO, sign * size))
    log_r, a = jnp.asarray(log_ratio, jnp.float32), jnp.asarray(advantage, jnp.float32)
    target = np.asarray(drift_of(objective, params, log_r, a, progress), np.float64)
    near = np.tile([-_NEAR, 0.0, _NEAR], num_points), np.repeat(sign * size, 3)
    inputs = _features(np, *(np.concatenate(pair) for pair in zip((log_ratio, advantage), near, strict=True)))
    scale, num = max(float(np.sqrt(np.mean(target**2))), 1e-6), len(target)
    wanted = np.concatenate([target, np.zeros(len(near[0]))])

    def misfit(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean((np.maximum(values[:num], 0.0) - target) ** 2))) / scale

    def score(y: np.ndarray, values: np.ndarray, weight: np.ndarray) -> float:
        del y, weight
        # gplearn tries its functions on two numbers.
        if len(values) != len(wanted) or not np.isfinite(values).all():
            return 1e6
        return misfit(values) + _PENALTY * max(0.0, breach(values[num:]) - _TOLERANCE)

    tanh = functions.make_function(function=np.tanh, name="tanh", arity=1)
    model = genetic.SymbolicRegressor(
        population_size=population,
        generations=generations,
        function_set=("add", "sub", "mul", "div", tanh),
        metric=fitness.make_fitness(function=score, greater_is_better=False, wrap=False),
        const_range=(-3.0, 3.0),
        init_depth=(2, 4),
        parsimony_coefficient=1e-3,
        stopping_criteria=1e-3,
        random_state=seed,
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        model.fit(inputs[:num_inputs].T, wanted)
        programs = {_plain(one): None for generation in model._programs for one in generation if one is not None}
        ranked = sorted(programs, key=lambda program: (score(wanted, _spread(program, inputs), wanted), len(program)))
        # The best of each shape: what a shape is worth shows once its constants are fitted.
        shapes: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        for program in ranked:
            if len(program) <= _MAX_FITTED:
                shapes.setdefault(tuple("c" if isinstance(node, float) else node for node in program), program)
        fitted = [_fitted(program, inputs, num, target) for program in list(shapes.values())[:_NUM_FITTED]]
        values = {program: _spread(program, inputs) for program in fitted}
        by_error = sorted(values, key=lambda program: misfit(values[program]) + 1e-3 * len(program))
        kept = [program for program in by_error if breach(values[program][num:]) <= _TOLERANCE]
    if not kept:
        raise ValueError("distill: no form kept f = 0 and df/dr = 0 at ratio 1: raise population or generations.")
    best = kept[0]
    return Form(f"ReLU({_text(list(best))})", best, misfit(values[best]), by_error.index(best))


def _plain(program: Any) -> tuple[Any, ...]:
    names = [node.name if hasattr(node, "arity") else node for node in program.program]
    return tuple(
        node if isinstance(node, str) else int(node) if isinstance(node, int) else float(node) for node in names
    )


def _spread(program: tuple[Any, ...], inputs: np.ndarray) -> np.ndarray:
    return np.broadcast_to(evaluate(program, inputs), inputs.shape[1:])


def _fitted(program: tuple[Any, ...], inputs: np.ndarray, num: int, target: np.ndarray) -> tuple[Any, ...]:
    """The program with its constants fitted by least squares."""
    places = [place for place, node in enumerate(program) if isinstance(node, float)]
    if not places:
        return program

    def with_constants(values: np.ndarray) -> tuple[Any, ...]:
        changed = list(program)
        for place, value in zip(places, values, strict=True):
            changed[place] = float(value)
        return tuple(changed)

    def residual(values: np.ndarray) -> np.ndarray:
        found = np.maximum(_spread(with_constants(values), inputs), 0.0)
        return np.nan_to_num(np.concatenate([found[:num] - target, found[num:]]), nan=1e3, posinf=1e3, neginf=-1e3)

    start = np.array([program[place] for place in places])
    return with_constants(scipy.optimize.least_squares(residual, start, max_nfev=30).x)


def _text(program: list[Any]) -> str:
    """The tree as a person writes it; takes what it reads from the front."""
    node = program.pop(0)
    if isinstance(node, int):
        return FEATURES[node]
    if isinstance(node, float):
        return f"{node:.4g}"
    if node == "tanh":
        return f"tanh({_text(program)})"
    left, right = _text(program), _text(program)
    return f"({left} {_SIGNS[node]} {right})"

"""What to say of a name that nothing has. Needs no jax.

A bare name is a leaf of the hyperparameters by dotted path (`learning_rate`, `objective.clip`); `config.<field>` is a
field of the config.
"""

import difflib
from collections.abc import Iterable

CONFIG = "config."
_MAX_LISTED = 30
_MAX_NEAR = 4


def hint(name: str, known: Iterable[str], others: Iterable[str] = ()) -> str:
    """The names that are nearest to one, or else those that there are.

    People forget the prefix of the config, or know only the last part of a path: both are found.

    Args:
      name: that nothing has.
      known: names that there are.
      others: names of another kind, which are offered where they are near, but not listed.

    Returns:
      A sentence.

    Example:
      >>> hint("clip", ["objective.clip", "learning_rate"])
      'Did you mean objective.clip?'
      >>> hint("zzz", ["objective.clip", "learning_rate"])
      'There are objective.clip, learning_rate.'
    """
    known, last = list(known), lambda path: path.rpartition(".")[2]
    wanted = name.removeprefix(CONFIG).lower()
    pool = {candidate.removeprefix(CONFIG).lower(): candidate for candidate in (*others, *known)}
    near = [short for short in pool if last(short) == last(wanted)]
    if not near:
        near = difflib.get_close_matches(wanted, pool, n=3, cutoff=0.6)
        endings = difflib.get_close_matches(last(wanted), {last(short) for short in pool}, n=3, cutoff=0.7)
        near += [short for short in pool if last(short) in endings]
    if near:
        return f"Did you mean {' or '.join([pool[short] for short in dict.fromkeys(near)][:_MAX_NEAR])}?"
    more = f" and {len(known) - _MAX_LISTED} more" if len(known) > _MAX_LISTED else ""
    return f"There are {', '.join(known[:_MAX_LISTED]) or 'none'}{more}."


def unknown(name: str, known: Iterable[str], others: Iterable[str] = (), kind: str | None = None) -> str:
    """The message for a name that nothing has.

    Args:
      name: as it was given.
      known: names of its kind.
      others: as for `hint`.
      kind: of what the name would be; None: a field of the config, or a hyperparameter, by its prefix.

    Returns:
      The message, with the nearest names.

    Example:
      >>> unknown("num_envs", ["learning_rate"], ["config.num_envs"])
      "No hyperparameter is called 'num_envs'. Did you mean config.num_envs?"
    """
    kind = kind or ("field of the config" if name.startswith(CONFIG) else "hyperparameter")
    return f"No {kind} is called {name!r}. {hint(name, known, others)}"

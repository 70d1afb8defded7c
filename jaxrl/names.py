"""What to say of a name that nothing has, and names that tell paths apart. Needs no jax.

A bare name is a leaf of the hyperparameters by dotted path (`learning_rate`, `objective.clip`); `config.<field>` is a
field of the config.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

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


def distinct(paths: Sequence[Path | str]) -> list[str]:
    """The last parts of paths, as many as tell them apart, the same number for all.

    Args:
      paths: of files or folders, which need not exist; equal ones get equal names.

    Returns:
      A name for each, in order.

    Example:
      >>> distinct(["runs/lpo", "runs/open"])
      ['lpo', 'open']
      >>> distinct(["a/lpo", "b/lpo", "b/open"])
      ['a/lpo', 'b/lpo', 'b/open']
    """
    # Not resolved: a link goes by the name that it was given.
    parts = [Path(os.path.abspath(path)).parts[1:] for path in paths]
    longest = max(map(len, parts), default=1)
    depth = next((n for n in range(1, longest) if len({p[-n:] for p in parts}) == len(set(parts))), longest)
    return ["/".join(p[-depth:]) for p in parts]

"""The folder of a sweep, which survives a kill.

    sweep.json              what is swept, the groups with their layouts, versions, machine
    settings.csv            one row a setting
    batches/<batch>/        the folder of one batch, a run as `jaxrl.runs` has it; `split.json` if it did not fit and
                            two of half its size take its place
    results.nc              the whole sweep, written at the end

A batch is whole when its results.json says so, and is never computed again.
"""

import dataclasses
import datetime
import fcntl
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrl import runs
from jaxrl.checkpoint import StorageError, write_file
from jaxrl.meta.layout import Layout
from jaxrl.sweeps.plan import Batch, Plan
from jaxrl.sweeps.texts import to_json

SCHEMA = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep in its folder.

    Attributes:
      path: the folder.
      plan: with the layouts that the folder records.
      record: what sweep.json holds.
      eval_episodes: of each member at the end; 0 for none.
    """

    path: Path
    plan: Plan
    record: dict[str, Any]
    eval_episodes: int

    def __repr__(self) -> str:
        batches = self.batches()
        done = sum(map(self.is_whole, batches))
        return f"Sweep({str(self.path)!r}, {self.plan!r}, batches: {done} of {len(batches)} done)"

    def folder(self, batch: Batch) -> Path:
        """Of one batch."""
        return self.path / "batches" / batch.name

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """The batch, or those that took its place because it did not fit."""
        if not (self.folder(batch) / "split.json").exists():
            yield batch
            return
        for half in batch.halves(self.plan.groups[batch.group].layout.multiple):
            yield from self.parts(half)

    def batches(self, shard: tuple[int, int] = (0, 1)) -> list[Batch]:
        """All batches of the i-th of n shares, split ones in their parts."""
        index, count = shard
        return [part for batch in self.plan.batches[index::count] for part in self.parts(batch)]

    def split(self, batch: Batch, reason: str) -> list[Batch]:
        """Puts two of half its size in the place of a batch that does not fit; what it has written is removed."""
        write_file(self.folder(batch) / "split.json", json.dumps({"reason": reason}).encode())
        for name in ("metrics", "evaluations", "checkpoints"):
            shutil.rmtree(self.folder(batch) / name, ignore_errors=True)
        return list(self.parts(batch))

    def is_whole(self, batch: Batch) -> bool:
        """Whether the batch is done."""
        try:
            return bool(json.loads((self.folder(batch) / "results.json").read_text())["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


def open_sweep(path: Path | str, plan: Plan, eval_episodes: int, **entries: Any) -> Sweep:
    """Makes the folder of a sweep, or finds it with the same sweep in it. Processes may do so at the same time.

    Args:
      path: the folder.
      plan: of the sweep; a folder that is there already tells the layouts and widths that its batches were made with.
      eval_episodes: of each member at the end.
      **entries: for sweep.json: what makes the sweep again.

    Raises:
      ValueError: the folder holds another sweep, or something else.
      StorageError: it cannot be read or written.
    """
    path = Path(path)
    record = _record(plan, eval_episodes, entries)
    # Listed before sweep.json is looked for: another process may be writing it at this moment.
    found = [p.name for p in path.iterdir()] if path.exists() else []
    others = [name for name in found if name != ".lock" and not name.startswith(".sweep.json.")]
    if others and not (path / "sweep.json").exists():
        raise ValueError(f"{path} holds something else than a sweep: name another folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with open(path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path / "sweep.json").exists():
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                about = {"created": now, "environment": runs.environment(), "command": sys.argv}
                write_file(path / "sweep.json", json.dumps({**record, **about}, indent=1).encode())
                _write_settings(path, plan)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
    there = read_record(path)
    if changed := [name for name in record["sweep"] if record["sweep"][name] != there["sweep"].get(name)]:
        lines = [f"{name}: {there['sweep'].get(name)} there, {record['sweep'][name]} here" for name in changed]
        raise ValueError(f"{path} holds another sweep ({'; '.join(lines)}): name another folder.")
    groups = [
        dataclasses.replace(group, layout=Layout(*kept["layout"]), width=kept["width"])
        for group, kept in zip(plan.groups, there["groups"], strict=True)
    ]
    return Sweep(path, dataclasses.replace(plan, groups=tuple(groups)), there, eval_episodes)


def read_record(path: Path | str) -> dict[str, Any]:
    """What sweep.json holds.

    Raises:
      ValueError: the folder is not that of a sweep, or a newer jaxrl made it.
      StorageError: sweep.json is damaged.
    """
    try:
        record = json.loads((Path(path) / "sweep.json").read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{path} is not the folder of a sweep: it has no sweep.json.") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{Path(path) / 'sweep.json'} is damaged: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("schema"), int):
        raise StorageError(f"{Path(path) / 'sweep.json'} is damaged: it has no schema number.")
    if record["schema"] > SCHEMA:
        raise ValueError(f"{path} was made by a newer jaxrl (schema {record['schema']} > {SCHEMA}): update jaxrl.")
    return record


def _record(plan: Plan, eval_episodes: int, entries: dict[str, Any]) -> dict[str, Any]:
    groups = [
        {
            "algorithm": group.algorithm,
            "env": group.env,
            "config": runs.plain(group.config),
            "members": group.num_members,
            "iterations": group.iterations,
            "layout": list(group.layout),
            "width": group.width,
        }
        for group in plan.groups
    ]
    pairs = [list(pair) for pair in plan.pairs]
    what = {
        "pairs": pairs,
        "space": to_json(plan.space),
        "fixed": plan.fixed,
        "num_seeds": plan.num_seeds,
        "seed": plan.seed,
        "total_steps": plan.total_steps,
        "num_points": plan.num_points,
        "eval_episodes": eval_episodes,
        **entries,
    }
    # As it will be read again: tuples are lists.
    return json.loads(
        json.dumps(
            {
                "schema": SCHEMA,
                "sweep": runs.plain(what),
                "defaults": {name: value for name, value in runs.plain(plan.defaults).items() if value is not None},
                "groups": groups,
            }
        )
    )


def _write_settings(path: Path, plan: Plan) -> None:
    """settings.csv, for people and for spreadsheets: one row a setting."""
    names = plan.space.names
    lines = [",".join(["algorithm", "env", "setting", *names])]
    for (algorithm, env), settings in plan.pairs.items():
        for index, row in enumerate(settings.rows):
            cells = [str(row.get(name, "")) for name in names]
            quoted = [f'"{cell}"' if "," in cell else cell for cell in cells]
            lines.append(",".join([algorithm, env, str(index), *quoted]))
    write_file(path / "settings.csv", ("\n".join(lines) + "\n").encode())

"""All tasks by name."""

from jaxrl.envs.mjx import floating, planar, tabletop

TASKS = planar.TASKS | floating.TASKS | tabletop.TASKS

"""Small tasks whose numbers are known by hand."""

import numpy as np

from jaxrl.analysis.finite_mdps import FiniteMDP


def misleading(num_actions, sure=0.4):
    """Either `sure` at once, or a state where one of all actions pays 1: the random policy thinks it worth 1 / A."""
    transitions = np.zeros((3, num_actions, 3))
    transitions[:, :, 2] = 1.0
    transitions[0, 0] = [0, 1, 0]
    rewards = np.zeros((3, num_actions))
    rewards[0, 1], rewards[1, 0] = sure, 1.0
    return FiniteMDP(transitions, rewards, np.eye(3)[0], 2)

"""What the numbers of runs say: statistics over seeds and tasks, learning curves, plots."""

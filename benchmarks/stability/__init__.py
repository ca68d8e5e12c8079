"""Which strategy, and what limit: tasks, strategies, learning rates, limits, seeds."""

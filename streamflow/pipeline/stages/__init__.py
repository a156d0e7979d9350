"""One stage: its layers, its updates, and what else it keeps from sample to sample."""

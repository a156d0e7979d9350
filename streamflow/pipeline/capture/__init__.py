"""From stages to programs: what they do with a sample, recorded as pure functions."""

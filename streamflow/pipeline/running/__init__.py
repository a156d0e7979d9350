"""What runs eager stages: a worker for each, in one thread or in several."""

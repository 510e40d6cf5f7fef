"""What is needed to measure how well a model answers, with compression and without it."""

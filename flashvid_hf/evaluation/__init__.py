"""Measures how well a model answers, with compression and without it: benchmarks, studies, tables and pictures."""

"""Hyperparameter search over the trainings of a cluster."""

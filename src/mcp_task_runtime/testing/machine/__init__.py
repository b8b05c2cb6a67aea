"""A stateful Hypothesis machine that drives a store and a model of it in lock-step."""

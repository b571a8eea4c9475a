"""Behaviour of the models: benchmarks, interventions on what they compute, and how much of a gain is recovered."""

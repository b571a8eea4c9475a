"""What the models do: benchmarks, interventions on what they compute, and how much of a gain is recovered."""

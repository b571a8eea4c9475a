"""The two models alone, without a dictionary."""

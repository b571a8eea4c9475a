"""What low-rank adapters hold: single directions, groups of them, and their share in behaviour."""

"""Low-rank adapters: single directions, groups of them, and their share in behaviour."""

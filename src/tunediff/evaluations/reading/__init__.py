"""Latents one by one: fidelity, geometry, labels, examples."""

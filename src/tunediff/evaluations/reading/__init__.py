"""What a latent is: fidelity, geometry, labels, examples."""

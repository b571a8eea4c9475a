"""Choice, statistics and edits of latents, which several evaluations share."""

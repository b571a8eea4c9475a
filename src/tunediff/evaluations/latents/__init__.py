"""Which latents, how often they fire, and how they are written back: what several evaluations share."""

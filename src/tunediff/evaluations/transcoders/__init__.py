"""Models with transcoder adapters: replacement, recovery, sets of latents, attribution graphs."""

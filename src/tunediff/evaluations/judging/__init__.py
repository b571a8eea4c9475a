"""Descriptions of latents by a language model, and how good they are."""

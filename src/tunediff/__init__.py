"""tunediff shows what fine-tuning changed inside a language model."""

__version__ = "0.1.0"

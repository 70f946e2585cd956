"""mixlab: a research lab for efficient small language models."""

__version__ = "0.1.0"

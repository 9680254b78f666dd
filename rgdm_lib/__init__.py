"""Reward-guided diffusion models from scratch: the library behind the course."""

__version__ = "0.1.0"

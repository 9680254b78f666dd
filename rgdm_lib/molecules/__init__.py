"""Molecules: QM9, bonds, metrics, rewards, pictures, and the equivariant denoiser."""

"""The rivals of RGDM, one file each, on the core's denoiser and sampler."""

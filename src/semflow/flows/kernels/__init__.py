"""Fused CPU kernels of affine couplings."""

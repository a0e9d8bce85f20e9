"""Certified repair of neural networks."""

"""Measurements, one command each; none of them is a test."""

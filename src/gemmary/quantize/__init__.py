"""Typed weights, their numpy reading, and quantization."""

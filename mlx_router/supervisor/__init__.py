"""Keeps gateway and specialists alive."""

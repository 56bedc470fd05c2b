"""Corpus in, router version out."""

"""Attacks: searches in a threat model."""

"""Objectives: what one update minimises."""

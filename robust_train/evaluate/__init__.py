"""Evaluators: a network and data to a report."""

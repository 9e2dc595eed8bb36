"""Threat models: sets of allowed perturbations."""

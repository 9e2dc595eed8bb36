"""Mutations that must fail a test, and who tries them."""

"""Training with one gradient step: each method with its own cure for catastrophic overfitting."""

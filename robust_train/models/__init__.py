"""Models: what turns images into logits."""

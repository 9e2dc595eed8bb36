"""Shards to batches: data sets, augmentations and mixings."""

"""Networks whose weights are wrong: how they answer then."""

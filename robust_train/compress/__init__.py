"""A trained network in another structure: smaller, faster, and as robust as it can be held."""

"""Who turns losses into new parameters, and the schedules of their numbers."""

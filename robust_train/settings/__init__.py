"""What a run says beside its nouns: values that engines, records and launchers take from it."""

"""One file a kernel: formula, reference, Triton kernel, launcher."""

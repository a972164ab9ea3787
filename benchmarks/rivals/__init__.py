"""Our step loop against the best public ones, in interleaved turns."""

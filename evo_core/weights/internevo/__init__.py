"""InternEvo's checkpoint folders."""

"""Documents to batches: in which order, packed how, drawn ahead."""

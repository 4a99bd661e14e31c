"""Where things lie: how locations are written, and what stands at them."""

"""The optimizer: ZeRO-1 AdamW (`hybrid_zero` over `bucket`), the loss scale and the schedules."""

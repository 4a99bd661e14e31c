"""The optimizer behind `protocol`: ZeRO-1 AdamW (`zero1`) over parameter groups (`groups`) in messages (`bucket`).

Beside it the norm of the gradients, the loss scale and the schedules.
"""

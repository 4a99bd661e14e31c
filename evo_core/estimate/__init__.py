"""A job before it is queued: what a rank holds and sends, the time of a step, the layouts worth having."""

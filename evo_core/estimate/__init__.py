"""What a job takes before it is queued: memory and messages of one rank, the time of a step, the layouts worth having."""

"""Watching a run: alerts to people, heartbeats to a monitor, a watchdog for what hangs, and who is slow.

`monitoring.Monitoring` is what the training loop talks to. Nothing here delays a step: what is sent is sent by threads
of its own, and what cannot be sent is said once.
"""

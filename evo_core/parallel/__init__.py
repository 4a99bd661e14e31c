"""Ranks and their groups: `process_group` joins all ranks, `layout` says who belongs together.

Nobody else makes a process group or reads a launcher's environment.
"""

"""Ranks and their groups: `process_group` joins all ranks, `degrees` and `mesh` say who works with whom.

Nobody else makes a process group or reads a launcher's environment.
"""

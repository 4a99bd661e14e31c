"""Ranks and their groups: `ranks` joins the process group, `layout` says who belongs together.

Nobody else makes a process group or reads a launcher's environment.
"""

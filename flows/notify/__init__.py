"""Telling people how a run ended: a web hook or a command, with one sentence."""

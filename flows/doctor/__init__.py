"""`evo doctor`: what is installed, reachable and misconfigured, a subject a file.

A check yields findings and changes nothing: what it must write to learn something (a lock, a link, an object) it takes
away again. It runs in a thread of its own and has its time; one that hangs is a finding.
"""

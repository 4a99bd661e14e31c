"""The operations a decoder is made of. Each page holds one, as a function and where it has weights a module."""

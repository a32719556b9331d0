"""Ours beside the straightforward service: the same models, requests and core, in turns."""

"""Training: one visible loop (`loop.py`) and its parts. Systems are reached through the registry only."""

"""Scoring, sampling and completing with any `Autoregressive` model; no system is known here."""

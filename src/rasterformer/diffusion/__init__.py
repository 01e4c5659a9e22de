"""Discrete diffusion over codes: the process, its bound, drawing and filling; no system is known here."""

"""Figures about trained models: likelihoods in bits per dimension, image files for orientation, reports to look at.

Read first: `likelihood.py`.
"""

"""The app that bench/flower_modes.py runs."""

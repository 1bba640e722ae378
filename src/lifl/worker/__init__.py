"""Aggregators: the zygote that forks them, the loop that each one runs, and the tasks."""

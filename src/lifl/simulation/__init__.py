"""A federated training with virtual clients: a user's trainer, in processes of this machine or on a Ray cluster.

What aggregates is a real node, and what takes part are real clients (`virtual_clients.py`): they are selected, get
their models and submit as any others.  Only where one trains is not its own: `pools.py`.
"""

"""A committed round, made again from its updates: by anyone who has them, also where no node is.

`receipt_file` says what a round was made of, `update_files` finds the updates, `again` makes the model with the code of
the workers, and `verify` compares.
"""

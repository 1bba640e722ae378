"""All drawing of the command line: figures as text, tables, trees, the view of `lifl top`.

`figures` is text alone; the others load rich, so commands import them where they draw.
"""

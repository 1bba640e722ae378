"""All drawing of the command line: figures as text, tables, trees, the view of `lifl top`.

`figures` is text alone; the others load rich, so commands import them where they draw.  Names, reasons and paths come
from clients, jobs and other nodes: each goes through `figures.printable`, and into rich as a `Text` (`tables.cell`), so
that it is shown and never read as markup or by the terminal.
"""

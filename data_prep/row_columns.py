"""Columns that every raw table gets beside its own; with a colon, as no feature can be called so."""

LOG_ROW = "log_row"
"""A row's position in the log: files in sorted order, rows in file order."""
UNPARSED = "$:unparsed"
"""Which cell of a text row does not fit its type; null when all do."""
CELL = "$:cell"
"""The text of that cell."""

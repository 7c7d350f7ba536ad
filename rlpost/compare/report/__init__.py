"""The report of a comparison, as HTML and Markdown."""

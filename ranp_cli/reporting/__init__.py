"""The report of a run, on a terminal, as HTML, as a picture."""

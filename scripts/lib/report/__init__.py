"""The report: what stages tell of a finished run, and the page that shows it."""

"""How a stage runs: log, errors, notices, progress, device, resources."""

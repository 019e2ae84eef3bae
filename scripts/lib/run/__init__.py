"""The running of stages: log, errors, notices, progress, device, resources."""

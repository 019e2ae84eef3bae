"""The user's input: the config, the sample sheet, files of all formats."""

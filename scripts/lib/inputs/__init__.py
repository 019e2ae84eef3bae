"""What users give: the config, the sample sheet, the files of all formats."""

"""The explorer: its data, its page, and the JavaScript that it holds."""

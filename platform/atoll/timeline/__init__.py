"""The timeline room."""

"""The command line: typer commands over the public functions; nothing is decided here."""

from atoll.cli.main import app, main

__all__ = ["app", "main"]

"""langfuse-etl: your Langfuse data in a database you own."""

__version__ = "0.1.0"

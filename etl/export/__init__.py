"""Database to session files; reads only `load` and `transform`."""

from etl.export.selection import ExportedSession, Options, Selection
from etl.export.sessions import export_sessions, write_stream
from etl.export.verify import verify_directory

__all__ = ["ExportedSession", "Options", "Selection", "export_sessions", "verify_directory", "write_stream"]

"""Alembic's entry: runs revisions on the connection that `etl.load.migrate` opened, in its transaction."""

from alembic import context

from etl.load.engine import schema_of
from etl.load.tables import VERSION_TABLE, metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    version_table_schema=schema_of(connection),
    render_as_batch=True,
)
context.run_migrations()

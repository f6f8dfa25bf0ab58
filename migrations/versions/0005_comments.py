"""Comments on every table, view and column, on Postgres; SQLite has none.

The texts are those of the program that runs the migration: they are not data, and a later one writes them again.

Revision ID: 0005
"""

from alembic import op

from etl.load.comments import comment_on_all

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    comment_on_all(op.get_bind())


def downgrade() -> None:
    """What a comment says stays true."""

"""Sessions are read in windows like everything else, and a project may have as many as traces.

Revision ID: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"

_INDEX = "ix_sessions_project_id_created_at"


def upgrade() -> None:
    op.create_index(_INDEX, "sessions", ["project_id", "created_at"])


def downgrade() -> None:
    op.drop_index(_INDEX, "sessions")

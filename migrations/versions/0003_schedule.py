"""What the service plans next for each project, and why it waits.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    instant = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
    op.create_table(
        "sync_schedule",
        sa.Column("entry", sa.Text, nullable=False, comment="what the configuration calls the project"),
        sa.Column("owner", sa.Text, nullable=False, comment="of the lease under which this was planned"),
        sa.Column("next_run_at", instant),
        sa.Column("failures", sa.Integer, nullable=False, comment="runs in a row that came to nothing"),
        sa.Column("failing_since", instant),
        sa.Column("reason", sa.Text),
        sa.Column("needs_person", sa.Boolean, nullable=False, comment="it will not pass by waiting"),
        sa.PrimaryKeyConstraint("entry", name="pk_sync_schedule"),
    )


def downgrade() -> None:
    op.drop_table("sync_schedule")

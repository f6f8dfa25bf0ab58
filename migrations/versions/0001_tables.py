"""The tables of API rows, and the ledger of what was read.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    instant = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
    json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")
    op.create_table(
        "traces",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("timestamp", instant),
        sa.Column("environment", sa.Text),
        sa.Column("tags", json),
        sa.Column("bookmarked", sa.Boolean),
        sa.Column("release", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("session_id", sa.Text),
        sa.Column("public", sa.Boolean),
        sa.Column("created_at", instant),
        sa.Column("updated_at", instant),
        sa.Column("total_cost", sa.Double),
        sa.Column("latency", sa.Double),
        sa.Column("html_path", sa.Text),
        sa.Column("external_id", sa.Text),
        sa.Column("extra", json),
        sa.Column("exact", json),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("read_from", sa.Text, nullable=False),
        sa.Column("first_seen_at", instant, nullable=False),
        sa.Column("changed_at", instant, nullable=False),
        sa.Column("deleted_at", instant),
        sa.Column("metadata", json),
        sa.Column("input", json),
        sa.Column("output", json),
        sa.PrimaryKeyConstraint("project_id", "id", name="pk_traces"),
    )
    op.create_index("ix_traces_changed_at", "traces", ["changed_at"])
    op.create_index("ix_traces_project_id_session_id_timestamp", "traces", ["project_id", "session_id", "timestamp"])
    op.create_index("ix_traces_project_id_timestamp", "traces", ["project_id", "timestamp"])
    op.create_table(
        "observations",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("start_time", instant),
        sa.Column("end_time", instant),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("parent_observation_id", sa.Text),
        sa.Column("type", sa.Text),
        sa.Column("environment", sa.Text),
        sa.Column("name", sa.Text),
        sa.Column("level", sa.Text),
        sa.Column("status_message", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("created_at", instant),
        sa.Column("updated_at", instant),
        sa.Column("model", sa.Text),
        sa.Column("model_parameters", json),
        sa.Column("completion_start_time", instant),
        sa.Column("prompt_id", sa.Text),
        sa.Column("prompt_name", sa.Text),
        sa.Column("prompt_version", sa.BigInteger),
        sa.Column("latency", sa.Double),
        sa.Column("time_to_first_token", sa.Double),
        sa.Column("usage_details", json),
        sa.Column("cost_details", json),
        sa.Column("usage_pricing_tier_id", sa.Text),
        sa.Column("usage_pricing_tier_name", sa.Text),
        sa.Column("model_id", sa.Text),
        sa.Column("input_price", sa.Double),
        sa.Column("output_price", sa.Double),
        sa.Column("total_price", sa.Double),
        sa.Column("calculated_input_cost", sa.Double),
        sa.Column("calculated_output_cost", sa.Double),
        sa.Column("calculated_total_cost", sa.Double),
        sa.Column("unit", sa.Text),
        sa.Column("prompt_tokens", sa.BigInteger),
        sa.Column("completion_tokens", sa.BigInteger),
        sa.Column("total_tokens", sa.BigInteger),
        sa.Column("usage", json),
        sa.Column("user_id", sa.Text),
        sa.Column("session_id", sa.Text),
        sa.Column("trace_name", sa.Text),
        sa.Column("release", sa.Text),
        sa.Column("tags", json),
        sa.Column("bookmarked", sa.Boolean),
        sa.Column("public", sa.Boolean),
        sa.Column("is_root_observation", sa.Boolean),
        sa.Column("extra", json),
        sa.Column("exact", json),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("read_from", sa.Text, nullable=False),
        sa.Column("first_seen_at", instant, nullable=False),
        sa.Column("changed_at", instant, nullable=False),
        sa.Column("deleted_at", instant),
        sa.Column("metadata", json),
        sa.Column("input", json),
        sa.Column("output", json),
        sa.PrimaryKeyConstraint("project_id", "trace_id", "id", name="pk_observations"),
    )
    op.create_index("ix_observations_changed_at", "observations", ["changed_at"])
    op.create_index("ix_observations_project_id_start_time", "observations", ["project_id", "start_time"])
    op.create_table(
        "scores",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("environment", sa.Text),
        sa.Column("name", sa.Text),
        sa.Column("value", sa.Double),
        sa.Column("source", sa.Text),
        sa.Column("author_user_id", sa.Text),
        sa.Column("comment", sa.Text),
        sa.Column("config_id", sa.Text),
        sa.Column("queue_id", sa.Text),
        sa.Column("execution_trace_id", sa.Text),
        sa.Column("created_at", instant),
        sa.Column("updated_at", instant),
        sa.Column("timestamp", instant),
        sa.Column("trace_id", sa.Text),
        sa.Column("observation_id", sa.Text),
        sa.Column("session_id", sa.Text),
        sa.Column("dataset_run_id", sa.Text),
        sa.Column("string_value", sa.Text),
        sa.Column("data_type", sa.Text),
        sa.Column("extra", json),
        sa.Column("exact", json),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("read_from", sa.Text, nullable=False),
        sa.Column("first_seen_at", instant, nullable=False),
        sa.Column("changed_at", instant, nullable=False),
        sa.Column("deleted_at", instant),
        sa.Column("metadata", json),
        sa.PrimaryKeyConstraint("project_id", "id", name="pk_scores"),
    )
    op.create_index("ix_scores_changed_at", "scores", ["changed_at"])
    op.create_index("ix_scores_project_id_timestamp", "scores", ["project_id", "timestamp"])
    op.create_index("ix_scores_project_id_trace_id", "scores", ["project_id", "trace_id"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("created_at", instant),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("environment", sa.Text),
        sa.Column("extra", json),
        sa.Column("exact", json),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("read_from", sa.Text, nullable=False),
        sa.Column("first_seen_at", instant, nullable=False),
        sa.Column("changed_at", instant, nullable=False),
        sa.Column("deleted_at", instant),
        sa.PrimaryKeyConstraint("project_id", "id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_changed_at", "sessions", ["changed_at"])
    op.create_table(
        "projects",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("base_url", sa.Text, nullable=False),
        sa.Column("organization_id", sa.Text),
        sa.Column("server_version", sa.Text),
        sa.Column("api", sa.Text),
        sa.Column("retention_days", sa.Integer),
        sa.Column("entry", sa.Text, comment="what the configuration calls the project"),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
    )
    op.create_table(
        "sync_state",
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("api", sa.Text, nullable=False),
        sa.Column("watermark", instant),
        sa.Column("filters_hash", sa.Text, nullable=False),
        sa.Column("origin", instant, nullable=False, comment="where the stream begins; coverage is wanted from here"),
        sa.Column("plan", json, comment="what the planner remembers of its lookback tiers"),
        sa.PrimaryKeyConstraint("project_id", "stream", name="pk_sync_state"),
    )
    op.create_table(
        "sync_absences",
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False, comment="empty but for observations"),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("noticed_at", instant, nullable=False, comment="when a complete read first lacked the row"),
        sa.PrimaryKeyConstraint("project_id", "stream", "trace_id", "id", name="pk_sync_absences"),
    )
    op.create_table(
        "sync_runs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("project_id", sa.Text),
        sa.Column("trigger", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("started_at", instant, nullable=False),
        sa.Column("finished_at", instant),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("rows_read", sa.BigInteger, nullable=False),
        sa.Column("rows_written", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_sync_runs"),
    )
    op.create_table(
        "sync_windows",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("filters_hash", sa.Text, nullable=False),
        sa.Column("window_start", instant, nullable=False),
        sa.Column("window_end", instant, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("api", sa.Text, nullable=False),
        sa.Column("proof", sa.Text, nullable=False),
        sa.Column("promised", sa.BigInteger),
        sa.Column("read", sa.BigInteger, nullable=False),
        sa.Column("stored", sa.BigInteger, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("finished_at", instant, nullable=False),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_sync_windows"),
    )
    op.create_index(
        "ix_sync_windows_project_id_stream_window_end", "sync_windows", ["project_id", "stream", "window_end"]
    )
    op.create_table(
        "sync_lease",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("acquired_at", instant, nullable=False),
        sa.Column("heartbeat_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_sync_lease"),
    )


def downgrade() -> None:
    op.drop_table("sync_lease")
    op.drop_table("sync_windows")
    op.drop_table("sync_runs")
    op.drop_table("sync_absences")
    op.drop_table("sync_state")
    op.drop_table("projects")
    op.drop_table("sessions")
    op.drop_table("scores")
    op.drop_table("observations")
    op.drop_table("traces")

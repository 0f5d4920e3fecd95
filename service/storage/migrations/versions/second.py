"""The table of the processes that write the journals: of two servers, the one that started last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "second"
down_revision = "first"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "journal_writers",
        sa.Column("run", sa.String(100), primary_key=True),
        sa.Column("writer", sa.String(200), nullable=False),
    )


def downgrade() -> None:
    """Take it away."""
    op.drop_table("journal_writers")

"""Quality of judgments: agreement, bias, raters' reliability, and aggregation of votes."""

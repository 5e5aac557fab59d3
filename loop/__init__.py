"""What Flink's workers need; knows no page and no local machine."""

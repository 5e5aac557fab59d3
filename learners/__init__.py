"""What learns; knows arrays only."""

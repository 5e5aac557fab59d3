"""Speed, freshness and accuracy of the loop."""

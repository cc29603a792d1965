"""What runs are doing and how they compare, read from their folders alone: no driver, cluster or model is asked."""

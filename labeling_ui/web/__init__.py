"""The label server: requests are checked, then answered by the routes."""

"""Measures of answers: the yardstick, users' functions, and the statistics of reported figures."""

"""Preparation of data, and supervised fine-tuning."""

"""Exports of a finished model: folders that other programs load, checked by loading them there."""

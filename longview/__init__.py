"""Longview."""

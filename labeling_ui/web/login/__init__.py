"""Accounts, sessions, second factors, and the keys of an identity provider."""

"""The label server: accounts, what it refuses, and the HTTP API behind the pages."""

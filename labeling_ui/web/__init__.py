"""The label server: accounts, request checks, and the HTTP API behind the pages."""

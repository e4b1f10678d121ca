"""A client of the label server's HTTP API, for scripts.

    from tiebreak.client import Client

    with Client("https://labels.example.org", "lead", password) as client:
        print(client.lead_status()["judgments"])

Its methods, and the types of what they send and return, are generated from the server's OpenAPI description.
"""

from tiebreak.client.connection import ClientError
from tiebreak.client.operations import Operations


class Client(Operations):
    """A session with a label server; `with` ends it."""


__all__ = ["Client", "ClientError"]

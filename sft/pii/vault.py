"""The original values behind the tags, encrypted in a file of their own.

    python -m sft.pii.vault FILE          # prints them as JSON; the key is in TIEBREAK_PII_KEY

The file is a salt of 16 bytes and a Fernet token (AES-128-CBC with HMAC-SHA256), whose key is made from the secret by
scrypt (RFC 7914) with n = 2¹⁵, r = 8, p = 1.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tiebreak.errors import ConfigError, DataError, TiebreakError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

_SALT = 16


def secret_of(variable: str, needed_for: str) -> bytes:
    """The secret in an environment variable.

    Raises:
        ConfigError: it is not set, or shorter than 16 characters.
    """
    secret = os.environ.get(variable, "")
    if len(secret) < 16:
        state = "is not set" if not secret else "has fewer than 16 characters"
        raise ConfigError(
            f"{needed_for} needs a secret key, and {variable} {state}: set it, for example with "
            f"export {variable}=$(openssl rand -hex 32), and keep it"
        )
    return secret.encode()


def write_map(path: Path, values: Mapping[str, Mapping[str, str]], secret: bytes) -> None:
    """Write the values, by row and tag, readable for the owner alone."""
    salt = os.urandom(_SALT)
    token = _cipher(secret, salt).encrypt(json.dumps(values, ensure_ascii=False, sort_keys=True).encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(salt + token)
    half.replace(path)


def read_map(path: Path, secret: bytes) -> dict[str, dict[str, str]]:
    """The values, by row and tag.

    Raises:
        DataError: not such a file, or another key.
    """
    from cryptography.fernet import InvalidToken

    content = path.read_bytes()
    try:
        values: dict[str, dict[str, str]] = json.loads(_cipher(secret, content[:_SALT]).decrypt(content[_SALT:]))
    except InvalidToken as error:
        raise DataError(f"{path}: not the map of an anonymisation, or made with another key") from error
    return values


def _cipher(secret: bytes, salt: bytes) -> Fernet:
    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Fernet(base64.urlsafe_b64encode(Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(secret)))


def main() -> None:
    """Print a map."""
    try:
        if len(sys.argv) != 2:
            raise ConfigError("python -m sft.pii.vault FILE, with the key in TIEBREAK_PII_KEY")
        values = read_map(Path(sys.argv[1]), secret_of("TIEBREAK_PII_KEY", "reading the map"))
    except (TiebreakError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(values, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()

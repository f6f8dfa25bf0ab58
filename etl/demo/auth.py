"""Who may ask: HTTP Basic with the project's keys. Only the secret is looked at, as on a real server."""

import base64
import binascii

from etl.demo.answers import ApiError, error

PUBLIC_KEY = "pk-lf-00000000-0000-4000-8000-000000000001"
SECRET_KEY = "sk-lf-00000000-0000-4000-8000-000000000001"  # noqa: S105 - the mock server's own, known to everybody


def check_keys(header: str | None, keys: tuple[str, str]) -> None:
    """Raise the 401 or 403 of a real server unless `header` holds the secret key."""
    public_key, secret_key = keys
    if not header:
        raise error(401, "No authorization header")
    scheme, _, credentials = header.partition(" ")
    if scheme == "Bearer":
        if credentials == public_key:
            raise error(403, "Access denied - insufficient permissions for this endpoint")
        raise _refused("Invalid public key")
    if scheme != "Basic":
        raise error(401, "Invalid authorization header")
    try:
        _, _, secret = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise _refused("Invalid character") from None
    if secret != secret_key:
        raise _refused("Invalid credentials")


def _refused(reason: str) -> ApiError:
    return error(401, f"{reason}. Confirm that you've configured the correct host.")

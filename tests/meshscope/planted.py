"""Secrets to plant, and headers to plant them in."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode

from parsers.base import REQUESTS, Message

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2VjcmV0LXNpZ25hdHVyZQ"
_BYTES = bytes(range(7, 250, 7))
SECRETS = {
    "jwt": JWT,
    "jwt_encrypted": "eyJhbGciOiJSU0EifQ.OKOawDo13gRp2ojaHV7L.48V1_ALb6US04U3b.5eym8TW_c8SuK0l.XFBoMYUZodetZ",
    "hex": "5f4dcc3b5aa765d61d8327deb882cf99",
    "base64": b64encode(_BYTES).decode(),
    "base64_url": urlsafe_b64encode(_BYTES).decode().rstrip("="),
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "mail": "alice.planted@example.org",
    "card": "4111111111111111",
    "card_dashes": "4111-1111-1111-1111",
    "phone": "491701234567",
    "stripe": "sk_live_abcdefghijklmnop",
    "github": "ghp_abcdefghijklmnopqrst",
    "aws": "AKIAIOSFODNNEXAMPLEX",
    "user_info": "alice:planted@example.org",
}
EVERY_HEADER = {
    "authorization": "Bearer planted",
    "proxy-authorization": "Basic cGxhbnRlZA==",
    "proxy-authenticate": "Basic realm=planted",
    "authentication-info": "planted",
    "cookie": "a=planted",
    "set-cookie": "a=planted",
    "x-api-key": "planted",
    "apikey": "planted",
    "x_api_key": "planted",
    "x-auth": "planted",
    "x-auth-token": "planted",
    "x-csrf-token": "planted",
    "x-amz-security-token": "planted",
    "x-goog-iap-jwt-assertion": "planted",
    "x-hub-signature-256": "planted",
    "sec-websocket-key": "planted",
    "x-session-id": "planted",
    "x-client-secret": "planted",
    "x-password": "planted",
}


def message(half: int = REQUESTS, target: str | None = None, **headers: str) -> Message:
    made = Message(half, 0, 0, 0)
    made.target = target
    made.headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return made

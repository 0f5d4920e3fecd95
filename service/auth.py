"""Bearer tokens: 256 random bits, stored as a digest, compared in constant time, revocable; read < train < admin.

A plain SHA-256 is right here: it is passwords, which can be guessed, that need a slow hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, get_args

import orjson
import sqlalchemy as sa

from mixer.cache import written_whole
from service import tables
from service.errors import BindError, ForbiddenError, StoreError, UnauthorizedError
from service.settings import Settings
from service.store import Store

Scope = Literal["read", "train", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "mixer"
FRESH_S = 2.0  # a token that is revoked is refused after this long at most


@dataclass(frozen=True)
class Token:
    """What is kept of a token: never the token."""

    id: str
    name: str
    scope: Scope
    digest: str
    created_at: float
    revoked_at: float | None = None


@dataclass(frozen=True)
class Identity:
    """Who sends a request, and how far it may reach."""

    name: str
    scope: Scope

    def check(self, needed: Scope) -> None:
        """Raise ForbiddenError unless this scope includes ``needed``."""
        if SCOPES.index(self.scope) < SCOPES.index(needed):
            raise ForbiddenError(f"this needs scope {needed}, and the token {self.name!r} has {self.scope}")


LOCAL = Identity("local", "admin")  # anybody on this machine, while there are no tokens


class Shelf(Protocol):
    """Where tokens are kept."""

    def all(self) -> list[Token]:
        """Return every token, revoked ones too."""

    def add(self, token: Token) -> None:
        """Keep a new token."""

    def revoke(self, token_id: str, at: float) -> bool:
        """Mark a token; False if there is none of that id."""


class StoreShelf:
    """Tokens in the database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[Token]:
        """Return every token."""
        with self._store.transaction(is_reading=True) as connection:
            query = sa.select(tables.tokens).order_by(tables.tokens.c.created_at)
            return [Token(**row) for row in connection.execute(query).mappings()]

    def add(self, token: Token) -> None:
        """Keep a new token."""
        with self._store.transaction() as connection:
            connection.execute(sa.insert(tables.tokens).values(asdict(token)))

    def revoke(self, token_id: str, at: float) -> bool:
        """Mark a token."""
        changed = sa.update(tables.tokens).where(tables.tokens.c.id == token_id).values(revoked_at=at)
        with self._store.transaction() as connection:
            return connection.execute(changed).rowcount > 0


class FileShelf:
    """Tokens in a file of JSON lines, for servers whose secrets are files."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> list[Token]:
        """Return every token; none if there is no file."""
        try:
            return [Token(**orjson.loads(line)) for line in self._path.read_bytes().splitlines() if line.strip()]
        except FileNotFoundError:
            return []
        except (OSError, orjson.JSONDecodeError, TypeError) as error:
            raise StoreError(f"{self._path}: not a file of tokens: {error}; `mixer token create` writes one") from error

    def add(self, token: Token) -> None:
        """Keep a new token."""
        with self._locked():
            self._write([*self.all(), token])

    def revoke(self, token_id: str, at: float) -> bool:
        """Mark a token."""
        with self._locked():
            known = self.all()
            self._write([replace(token, revoked_at=at) if token.id == token_id else token for token in known])
        return any(token.id == token_id for token in known)

    def _write(self, tokens: list[Token]) -> None:
        with written_whole(self._path) as file:
            file.writelines(orjson.dumps(asdict(token)).decode() + "\n" for token in tokens)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class TokenBook:
    """Makes tokens, and knows whose a token is."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._known: dict[str, Token] = {}
        self._read_at = -FRESH_S

    def create(self, scope: Scope, name: str) -> str:
        """Return a new token: the only time that it can be read."""
        token_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        self._shelf.add(Token(token_id, name, scope, _digest(secret), time.time()))
        self._read_at = -FRESH_S
        return f"{PREFIX}_{token_id}_{secret}"

    def list(self) -> list[Token]:
        """Return every token, revoked ones too."""
        return self._shelf.all()

    def revoke(self, token_id: str) -> bool:
        """Revoke a token; False if there is none of that id."""
        self._read_at = -FRESH_S
        return self._shelf.revoke(token_id, time.time())

    @property
    def is_empty(self) -> bool:
        """Whether no token was ever made: then this machine alone is served, without one."""
        if self.is_stale:
            self.read()
        return not self._known

    def identify(self, header: str | None) -> Identity:
        """Return who sends an Authorization header, as far as was read last; asks nothing of the shelf.

        Raises:
            UnauthorizedError: nobody is known by it.
            StoreError: nothing was ever read.
        """
        known = self._known
        if not known and self._read_at < 0:
            raise StoreError("the tokens were not read yet")
        if not known:
            return LOCAL
        if not header:
            raise UnauthorizedError("the request has no token")
        kind, _, token = header.partition(" ")
        parts = token.strip().split("_", 2)
        if kind.lower() != "bearer" or len(parts) != 3 or parts[0] != PREFIX:
            raise UnauthorizedError("the Authorization header does not hold a token of this service")
        found = known.get(parts[1])
        expected = found.digest if found is not None else "0" * 64  # an unknown id takes as long as a wrong secret
        is_right = hmac.compare_digest(_digest(parts[2]), expected)
        if found is None or not is_right:
            raise UnauthorizedError("the token is unknown")
        if found.revoked_at is not None:
            raise UnauthorizedError(f"the token {found.name!r} was revoked")
        return Identity(found.name, found.scope)

    @property
    def is_due(self) -> bool:
        """Whether the tokens are to be read again before they are too old."""
        return time.monotonic() - self._read_at > FRESH_S / 2

    @property
    def is_stale(self) -> bool:
        """Whether the tokens are too old to let anybody in."""
        return time.monotonic() - self._read_at > FRESH_S

    def read(self) -> None:
        """Read the tokens, which may take as long as the database does; those known stay if it does not answer.

        Raises:
            StoreError: it does not, and none is known: nobody is let in.
        """
        begin = time.monotonic()
        try:
            self._known = {token.id: token for token in self._shelf.all()}
        except StoreError:
            if not self._known:
                raise
        self._read_at = begin

    def wait_no_longer(self) -> None:
        """Go on with those known for a while: the database takes its time; raise StoreError if none is known."""
        if not self._known:
            raise StoreError("the database does not answer, and no token is known without it")
        self._read_at = time.monotonic()


def token_book(settings: Settings, store: Store) -> TokenBook:
    """Return the tokens that the settings name: those of a file, or of the database."""
    return TokenBook(FileShelf(settings.tokens_file) if settings.tokens_file is not None else StoreShelf(store))


def check_bind(settings: Settings, book: TokenBook) -> None:
    """Raise BindError if anybody could reach the server beyond this machine without a token."""
    if book.is_empty and not settings.is_loopback:
        where = f" --tokens-file {settings.tokens_file}" if settings.tokens_file is not None else ""
        raise BindError(
            f"there are no tokens, so {settings.host} would serve anybody who can reach it; run `mixer token create "
            f"--scope admin{where}` first, or serve this machine alone with --host 127.0.0.1"
        )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

"""Bearer tokens: 256 random bits, stored as a digest, compared in constant time, revocable; read < train < admin.

A plain SHA-256 is enough: only passwords, which can be guessed, need a slow hash. ``TokenBook`` identifies who sends a
request; the three classes of ``TokenStorage`` keep the tokens. ``middleware.Gate`` asks the book at every request.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol, get_args

import orjson
import sqlalchemy as sa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mixer.system.files import written_whole
from service.errors import BindError, ForbiddenError, StoreError, UnauthorizedError
from service.settings import Settings
from service.storage import tables
from service.storage.store import Store

Scope = Literal["read", "train", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "mixer"
FRESH_S = 2.0  # a token that is revoked is refused after this long at most

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Token:
    """What is stored of a token: its digest, never the secret."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(min_length=1, max_length=16)]
    name: str
    scope: Scope
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: float
    revoked_at: float | None = None


_TOKEN = TypeAdapter(Token)


@dataclass(frozen=True)
class Identity:
    """Who sends a request, and with which scope."""

    name: str
    scope: Scope
    token_id: str | None = None  # unique, as names are not

    def check(self, needed: Scope) -> None:
        """Raise ForbiddenError unless this scope includes ``needed``."""
        if SCOPES.index(self.scope) < SCOPES.index(needed):
            raise ForbiddenError(f"this needs scope {needed}, and the token {self.name!r} has {self.scope}")


LOCAL = Identity("local", "admin")  # anybody on this machine, while there are no tokens


class TokenStorage(Protocol):
    """Where tokens are kept."""

    def all(self) -> list[Token]:
        """Return every token, revoked ones too."""

    def add(self, token: Token) -> None:
        """Keep a new token."""

    def revoke(self, token_id: str, at: float) -> bool:
        """Mark a token; False if there is none of that id."""


class TableTokens:
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


class NoTokens:
    """No tokens and no storage: of a recorded run that is served to this machine alone."""

    def all(self) -> list[Token]:
        """Return none."""
        return []

    def add(self, token: Token) -> None:
        """Refuse a token."""
        raise StoreError(f"there is no place to keep token {token.id} in; give --tokens-file")

    def revoke(self, token_id: str, at: float) -> bool:
        """Return False: there is no such token."""
        return False


class FileTokens:
    """Tokens in a file of JSON lines, for servers whose secrets are files."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> list[Token]:
        """Return every token; none if there is no file.

        Raises:
            StoreError: the file cannot be read, everybody may write to it, or a line of it is no token.
        """
        number = 0
        tokens: list[Token] = []
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                    raise StoreError(
                        f"{self._path}: anybody on this machine may write to this file, and so make a token of any "
                        f"scope; run `chmod o-w {self._path}`"
                    )
                for line in file:
                    number += 1
                    if line.strip():
                        tokens.append(_TOKEN.validate_json(line))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self._path}: the file of tokens cannot be read: {error}") from error
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)[0]
            what = " ".join([".".join(map(str, found["loc"])), found["msg"]]).strip()
            raise StoreError(
                f"{self._path}, line {number}: not a token: {what}; restore the file, or remove it and make new tokens "
                "with `mixer token create`"
            ) from error
        return tokens

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
    """Creates and revokes tokens, and identifies who sends one.

    Tokens are cached. The cache stays valid when the storage cannot be read or is suddenly empty: a file that is
    truncated for a moment, or a table that is gone, must not open the server to everybody.

    Args:
        storage: where the tokens are kept.
        may_be_open: while no token was ever made, serve anybody who can reach the server, as an admin.
    """

    def __init__(self, storage: TokenStorage, *, may_be_open: bool = True) -> None:
        self._storage, self._may_be_open = storage, may_be_open
        self._known: dict[str, Token] | None = None  # None: never read
        self._read_at = -FRESH_S
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tokens")  # a thread that no other work delays
        self._started_at: float | None = None  # of the read in progress
        self._problem = ""

    def create(self, scope: Scope, name: str) -> str:
        """Return a new token; it cannot be shown again."""
        token_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        self._storage.add(Token(token_id, name, scope, _digest(secret), time.time()))
        self._read_at = -FRESH_S
        return f"{PREFIX}_{token_id}_{secret}"

    def list(self) -> list[Token]:
        """Return every token, revoked ones too."""
        return self._storage.all()

    def revoke(self, token_id: str) -> bool:
        """Revoke a token; False if there is none of that id."""
        self._read_at = -FRESH_S
        return self._storage.revoke(token_id, time.time())

    @property
    def is_open(self) -> bool:
        """Whether requests need no token: none was ever made, and the server listens to this machine alone."""
        return self._known is not None and not self._known

    def identify(self, header: str | None) -> Identity:
        """Return who sends an Authorization header, according to the cache.

        Raises:
            UnauthorizedError: the header holds no valid token.
            StoreError: the tokens were never read.
        """
        known = self._known
        if known is None:
            raise StoreError("the tokens cannot be read, and none is known from before; the server's log says why")
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
        return Identity(found.name, found.scope, found.id)

    @property
    def is_due(self) -> bool:
        """Whether it is time to read the tokens again, so that the cache does not get too old."""
        return time.monotonic() - self._read_at > FRESH_S / 2

    @property
    def is_stale(self) -> bool:
        """Whether the cache is too old to identify anybody."""
        return time.monotonic() - self._read_at > FRESH_S

    @property
    def reading_s(self) -> float:
        """How long the read in progress has taken so far; 0 if there is none.

        Measured from where the thread starts: a busy event loop must not pass for a database that does not answer.
        """
        started_at = self._started_at
        return 0.0 if started_at is None else time.perf_counter() - started_at

    def begin_reading(self) -> Future[None]:
        """Read the tokens in the book's own thread; see ``read``."""
        return self._reader.submit(self.read)

    def read(self) -> None:
        """Read the tokens into the cache, which may take as long as the database does; a failed read leaves the cache.

        Raises:
            StoreError: the read failed and the cache is empty: nobody is let in.
        """
        start, self._started_at = time.monotonic(), time.perf_counter()
        try:
            self._known, self._problem = self._all(), ""
        except StoreError as error:
            self._log_problem(str(error))
            if self._known is None:
                raise
        finally:
            self._started_at = None
        self._read_at = start

    def _all(self) -> dict[str, Token]:
        """Return the stored tokens by id; raise StoreError if there are none though there must be."""
        found = {token.id: token for token in self._storage.all()}
        if not found and (self._known or not self._may_be_open):
            raise StoreError("there are no tokens")
        return found

    def extend_cache(self) -> None:
        """Use the cache for a while longer, as the database is slow; raise StoreError if it was never filled."""
        if self._known is None:
            raise StoreError("the database does not answer, and no token is known without it")
        self._read_at = time.monotonic()

    def _log_problem(self, problem: str) -> None:
        """Log a problem, once."""
        if problem != self._problem:
            what = "nobody is let in" if self._known is None else "those known from before stay good"
            log.warning("the tokens cannot be read: %s; %s", problem, what)
        self._problem = problem


def token_book(settings: Settings, store: Store | None) -> TokenBook:
    """Return the tokens that the settings name: those of a file, else of the database if there is one."""
    if settings.tokens_file is not None:
        return TokenBook(FileTokens(settings.tokens_file), may_be_open=False)
    storage = NoTokens() if store is None else TableTokens(store)
    return TokenBook(storage, may_be_open=settings.is_loopback)


def check_bind(settings: Settings, book: TokenBook) -> None:
    """Raise BindError if the server would listen beyond this machine while there is no token."""
    try:
        book.read()
    except StoreError as error:
        if settings.is_loopback:  # requests get 503 until there are tokens
            return
        where = f" --tokens-file {settings.tokens_file}" if settings.tokens_file is not None else ""
        raise BindError(
            f"{error}, and {settings.host} can be reached by others; run `mixer token create --scope admin{where}` "
            "first, or serve this machine alone with --host 127.0.0.1"
        ) from error


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

"""Composition root of the gateway: builds every object, and is its only reader of Settings."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp

from agentmem.administration.oidc import OidcSettings
from agentmem.administration.services import Administration, SignInSettings
from agentmem.api.application import create_application
from agentmem.api.auth import Authenticator
from agentmem.api.sse import SEND_SECONDS_MAX
from agentmem.catalog import Catalog, DatabaseOptions, SchemaState, migrate, schema_state
from agentmem.catalog.records import Worker
from agentmem.config import Settings
from agentmem.engine.base import Engine
from agentmem.errors import ConfigurationInvalid, WorkerUnavailable
from agentmem.router.registry import EngineFactory, Router
from agentmem.secretfile import read_secret_text
from agentmem.sessions.context import Context
from agentmem.sessions.limits import Limits
from agentmem.sessions.nodestate import NodeState
from agentmem.sessions.owner import make_owner
from agentmem.sessions.ports import Pages
from agentmem.sessions.secrets import load_secrets
from agentmem.sessions.service import SessionsService
from agentmem.telemetry import Metrics, configure_logging

if TYPE_CHECKING:
    from agentmem.testing.fake_worker import FakeWorker

T = TypeVar("T")

# Longer than a stream waits for its reader: that ends the turn, this the connection.
UNREAD_SECONDS_MAX = 1.5 * SEND_SECONDS_MAX

_COLLECT_AFTER_OBJECTS = 20_000


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of a gateway, on `app.state.gateway`; for tests and for the lifespan."""

    settings: Settings
    catalog: Catalog
    router: Router
    pages: Pages
    service: SessionsService
    metrics: Metrics
    node: NodeState
    administration: Administration


def build_app(
    settings: Settings,
    *,
    engine_factory: EngineFactory | None = None,
    pages: Pages | None = None,
) -> FastAPI:
    """The gateway as an ASGI application; its lifespan opens and closes everything.

    `engine_factory` makes the engine client of a worker, `pages` is the node agent; both are the
    real ones by default, or the fakes where `settings.engine` is "fake" (which also registers a
    worker of its own). Raises ConfigurationInvalid for secrets that cannot be used.
    """
    fake = None
    if settings.engine == "fake" and engine_factory is None:
        fake = _fake_worker(settings)
        engine_factory = fake.engine_for
        pages = pages or fake.pages
    secrets = load_secrets(settings.secrets_dir)
    metrics = Metrics()
    catalog = open_catalog(settings)
    pages = pages or _node_pages(settings)
    router = Router(
        catalog,
        engine_factory or _sglang_engine,
        silence_seconds_max=settings.worker_silence_seconds_max,
    )
    context = Context(catalog, router, pages, secrets, _limits(settings), metrics, make_owner())
    service = SessionsService(context)
    node = NodeState(pages, metrics.registry)
    administration = Administration(catalog, secrets, _sign_in_settings(settings))
    gateway = Gateway(settings, catalog, router, pages, service, metrics, node, administration)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(catalog.aclose)
            await catalog.check_schema()
            stack.push_async_callback(pages.aclose)
            stack.push_async_callback(router.aclose)
            if fake is not None:
                await stack.enter_async_context(fake.running(catalog))
            await stack.enter_async_context(administration.running())
            await stack.enter_async_context(
                service.running(drain_seconds=settings.shutdown_seconds_max)
            )
            yield

    app = create_application(
        service,
        Authenticator(catalog, secrets, administration.uses),
        metrics,
        {
            "catalog": catalog.ping,
            "workers": lambda: _check_workers(router),
        },
        node,
        administration=administration,
        request_bytes_max=settings.request_bytes_max,
        request_seconds_max=settings.request_seconds_max,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    return app


def run_gateway(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets running turns finish within their bound.

    A second signal ends it at once. Raises ConfigurationInvalid when the catalog's schema is not
    this version's, or the address cannot be listened on.
    """
    configure_logging(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


def open_catalog(settings: Settings) -> Catalog:
    """The catalog, unchecked; close it with `aclose`. Raises ConfigurationInvalid for its URL."""
    return Catalog(
        settings.catalog_url,
        DatabaseOptions(
            settings.database_pool_size,
            settings.database_statement_seconds_max,
            settings.database_lock_seconds_max,
            "agentmem gateway",
        ),
    )


def migrate_catalog(settings: Settings) -> str:
    """Brings the schema up to date and returns its revision."""
    return asyncio.run(migrate(settings.catalog_url))


def check_catalog(settings: Settings) -> SchemaState:
    """The schema's revision beside this version's. Raises ConfigurationInvalid where it cannot be
    told."""
    return asyncio.run(schema_state(settings.catalog_url))


def in_catalog(settings: Settings, work: Callable[[Catalog], Awaitable[T]]) -> T:
    """Does one thing to the catalog, for a command. Raises ConfigurationInvalid where its schema
    is not this version's."""
    return asyncio.run(with_catalog(settings, work))


async def with_catalog(settings: Settings, work: Callable[[Catalog], Awaitable[T]]) -> T:
    """Opens the catalog, checks its schema, does the work and closes it again."""
    catalog = open_catalog(settings)
    try:
        await catalog.check_schema()
        return await work(catalog)
    finally:
        await catalog.aclose()


async def _serve(settings: Settings) -> None:
    catalog = open_catalog(settings)
    try:
        # Before the server starts, so that the reason is a sentence and not a traceback.
        await catalog.check_schema()
    finally:
        await catalog.aclose()
    await serve_app(build_app(settings), settings)


async def serve_app(app: ASGIApp, settings: Settings) -> None:
    """Serves an application where and as the settings say, until SIGTERM or SIGINT.

    Raises ConfigurationInvalid when the address cannot be listened on.
    """
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds_max)),
    )
    # What was made until now stays: the collector need not look at it again, which takes as long
    # as several turns. What a request makes is mostly freed without it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS)
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await server.serve()
    if not server.started:
        raise ConfigurationInvalid(
            f"The gateway could not start on {settings.host}:{settings.port}.",
            hint="Its log says why; the port may be taken.",
        )


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: they would end the process with the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The composition root has handlers of its own."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens; the kernel drops a connection whose peer takes nothing that was written."""
        await super().startup(sockets)
        for listening in (sock for server in self.servers for sock in server.sockets):
            # Connections inherit it. The event loop's own object for a socket need not have it.
            with socket.fromfd(listening.fileno(), listening.family, listening.type) as same:
                milliseconds = round(UNREAD_SECONDS_MAX * 1_000)
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def stop(self) -> None:
        """The first call lets requests finish, the second one does not."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


async def _check_workers(router: Router) -> None:
    if not await router.ready():
        raise WorkerUnavailable(f"no worker is ready: {await router.describe_states()}")


def _limits(settings: Settings) -> Limits:
    return Limits(
        turn_seconds_max=settings.turn_seconds_max,
        turn_tokens_default=settings.turn_tokens_default,
        hibernate_seconds_max=settings.hibernate_seconds_max,
        idle_hibernate_seconds=settings.idle_hibernate_seconds,
        lease_seconds=settings.lease_seconds,
        kv_retention_seconds=settings.kv_retention_seconds,
        log_retention_seconds=settings.log_retention_seconds,
        log_cache_bytes=settings.log_cache_bytes,
        default_model=settings.model_name,
        model_aliases=tuple(part.strip() for part in settings.model_aliases.split(",") if part),
        retry_grace_seconds=settings.retry_grace_seconds,
        disk_encrypted=settings.disk_encrypted,
    )


def _sign_in_settings(settings: Settings) -> SignInSettings:
    url, oidc = settings.operators_url, None
    if settings.oidc_issuer:
        secret = settings.oidc_client_secret_file
        oidc = OidcSettings(
            issuer=settings.oidc_issuer,
            client_id=settings.oidc_client_id,
            redirect_url=f"{url}/v1/admin/oidc/callback",
            client_secret=read_secret_text(Path(secret)) if secret else "",
        )
    return SignInSettings(
        url=url,
        idle_seconds=settings.operator_idle_seconds,
        seconds_max=settings.operator_session_seconds,
        oidc=oidc,
    )


def _sglang_engine(worker: Worker) -> Engine:
    from agentmem.engine.sglang.client import SglangEngine
    from agentmem.engine.sglang.parsing.client import ParsingClient

    return SglangEngine(worker.url, parsing=ParsingClient.of(worker))


def _node_pages(settings: Settings) -> Pages:
    from agentmem.node.access import TlsFiles
    from agentmem.node.address import parse_address
    from agentmem.sessions.node import NodePages

    tls = TlsFiles(settings.node_tls_cert, settings.node_tls_key, settings.node_tls_ca)
    return NodePages(
        parse_address(
            settings.node_url,
            default=settings.node_socket,
            tls=tls,
            token_file=settings.node_token_file,
        )
    )


def _fake_worker(settings: Settings) -> FakeWorker:
    from agentmem.testing.fake_worker import FakeWorker
    from agentmem.testing.models import write_tokenizer

    path = Path(settings.model) if settings.model else settings.models_dir / "fake"
    if not settings.model:
        write_tokenizer(path)
    return FakeWorker(
        path,
        model=settings.model_name or "fake",
        page_tokens=settings.page_tokens,
        context_tokens=settings.context_tokens or 32_768,
        hbm_tokens=settings.hbm_tokens,
    )

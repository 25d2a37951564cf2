"""Settings: the only reader of the environment. A variable is `AGENTMEM_` plus the field's name.

`docs/settings.md` lists them all, and a test holds the two together.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

# A Unix socket's path must fit in sockaddr_un (108 bytes with the final NUL, unix(7)).
UNIX_PATH_BYTES_MAX = 107


class Settings(BaseSettings):
    """One frozen object, read once at start and handed to the composition root."""

    model_config = SettingsConfigDict(env_prefix="AGENTMEM_", frozen=True, extra="ignore")

    data_dir: Path = Field(Path(".agentmem"), description="Where everything durable lives.")
    host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    port: int = Field(8700, ge=0, le=65535, description="Port that the gateway listens on.")
    database_url: str = Field(
        "",
        description="Catalog: postgresql+psycopg://user:password@host/name, or"
        " sqlite+aiosqlite:///path; empty: SQLite in the data directory.",
    )
    database_pool_size: int = Field(
        10, ge=1, le=1_000, description="Most connections of one process to PostgreSQL."
    )
    database_statement_seconds_max: float = Field(
        30.0, gt=0, description="Longest that a statement may run on PostgreSQL."
    )
    database_lock_seconds_max: float = Field(
        5.0, gt=0, description="Longest that a statement may wait for a lock on PostgreSQL."
    )
    model: str = Field(
        "", description="Path of a Hugging Face model directory; empty: SmolLM2-135M."
    )
    model_name: str = Field("", description="Name that the API shows; empty: the directory's name.")
    engine: Literal["sglang", "fake"] = Field("sglang", description="What computes.")

    page_tokens: int = Field(64, ge=1, le=1024, description="Tokens per page (SGLang's page size).")
    context_tokens: int = Field(0, ge=0, description="Context window; 0: what the model has.")
    hbm_tokens: int = Field(
        0, ge=0, description="Tokens that the engine's KV pool holds; 0: automatic."
    )
    host_pool_ratio: float = Field(2.0, ge=1.0, description="HiCache host pool over the HBM pool.")
    tool_parser: str = Field(
        "",
        description="SGLang's format of tool calls; empty: by the chat template; none: no calls.",
    )
    reasoning_parser: str = Field(
        "",
        description="SGLang's format of thinking; empty: by the chat template; none: no thinking.",
    )
    engine_arguments: str = Field(
        "", description="More arguments for SGLang, as in a shell; they win over agentmem's own."
    )
    engine_start_seconds_max: float = Field(
        900.0, description="Longest that an engine may take to start."
    )
    plugin_module: str = Field(
        "agentmem.engine.sglang.plugin", description="Module of SGLang's storage backend."
    )
    plugin_class: str = Field("PageStorage", description="Its class; tests put a faulty one here.")
    canary_interval_seconds: float = Field(
        30.0, description="Between two canaries of an idle worker."
    )

    dram_bytes: int = Field(2 << 30, ge=0, description="Budget of the dram tier (shared memory).")
    disk_bytes: int = Field(20 << 30, ge=0, description="Budget of the disk tier.")
    tenant_promised_bytes: int = Field(
        0, ge=0, description="Most of the disk that is promised to one tenant; 0: no such bound."
    )
    disk_encrypted: bool = Field(
        False, description="Seal pages on disk, too, with each tenant's key (object: always)."
    )
    object_url: str = Field(
        "",
        description="Object tier: s3://bucket/path, gs://, az://, file:///directory; empty: none.",
    )
    object_endpoint: str = Field(
        "", description="URL of a server that speaks S3's protocol; empty: Amazon's."
    )
    object_pack_bytes: int = Field(
        32 << 20, ge=8 << 20, le=64 << 20, description="Size of one object of the object tier."
    )
    object_bytes: int = Field(
        0, ge=0, description="Above this, pages that nothing claims leave the store; 0: no bound."
    )
    object_leftover_seconds: float = Field(
        2_592_000.0, ge=0, description="How long the store keeps pages that nothing claims."
    )

    node_url: str = Field(
        "",
        description="The gateway's node agent: `unix:/path`, `tcp://host:port` or"
        " `tls://host:port`; empty: this host's.",
    )
    node_listen: str = Field(
        "", description="Address (host:port) that the node agent listens on, besides its socket."
    )
    node_tls_cert: str = Field("", description="Certificate (PEM) of this side of such addresses.")
    node_tls_key: str = Field("", description="Its key (PEM); empty: in the same file.")
    node_tls_ca: str = Field(
        "",
        description="Authority (PEM) that must have signed the other side's certificate; at the"
        " agent, empty: a token does instead.",
    )
    node_token_file: str = Field(
        "",
        description="File (mode 0600) with a token of 32 characters or more, same on both sides.",
    )
    node_token_in_clear: bool = Field(
        False, description="Take the token without TLS from other hosts, too."
    )

    request_bytes_max: int = Field(10 << 20, description="Largest request body accepted.")
    request_seconds_max: float = Field(30.0, gt=0, description="Longest that a body may take.")
    model_aliases: str = Field(
        "gpt-*,o1*,o3*,o4*,chatgpt-*",
        description="Names (patterns, separated by commas) that mean a tenant's default model.",
    )
    retry_grace_seconds: float = Field(
        30.0,
        ge=0,
        description="How long a turn runs on whose client is gone but may send it again.",
    )
    turn_seconds_max: float = Field(600.0, description="Longest that a turn may run.")
    turn_tokens_default: int = Field(
        4096, ge=1, description="max_tokens where the caller sets none."
    )
    hibernate_seconds_max: float = Field(60.0, description="Deadline of hibernate.")
    idle_hibernate_seconds: float = Field(
        600.0, ge=0, description="Idle time after which a session hibernates by itself; 0: never."
    )
    lease_seconds: float = Field(
        15.0, gt=0, description="Term of a session's lease; renewed at a third."
    )
    kv_retention_seconds: int = Field(
        43_200, ge=0, description="How long a session's pages are claimed."
    )
    log_retention_seconds: int = Field(
        2_592_000, ge=0, description="How long a session's id, text and log are valid."
    )
    log_cache_bytes: int = Field(
        64 << 20, ge=0, description="Memory that a gateway keeps token logs in."
    )
    worker_silence_seconds_max: float = Field(
        10.0, gt=0, description="Oldest heartbeat of a worker that is taken to be ready."
    )
    shutdown_seconds_max: float = Field(
        30.0, gt=0, description="How long running turns may take to finish at a shutdown."
    )
    public_url: str = Field(
        "", description="URL that operators' browsers reach the gateway by; empty: its address."
    )
    operator_idle_seconds: float = Field(
        3_600.0, gt=0, description="Idle time after which an operator's browser is signed out."
    )
    operator_session_seconds: float = Field(
        43_200.0, gt=0, description="Longest that an operator's browser stays signed in."
    )
    oidc_issuer: str = Field(
        "", description="Provider of operators' identities (OpenID Connect); empty: passwords only."
    )
    oidc_client_id: str = Field("", description="Who the gateway is to that provider.")
    oidc_client_secret_file: str = Field(
        "", description="File (mode 0600) with the client's secret; empty: a public client."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Log level."
    )

    @property
    def catalog_url(self) -> str:
        """SQLAlchemy URL of the catalog."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'catalog.db'}"

    @property
    def operators_url(self) -> str:
        """URL that operators' browsers reach the gateway by, without a slash at its end."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def run_dir(self) -> Path:
        """Sockets and pid files: in the data directory unless its path is too long for a socket."""
        wanted = self.data_dir.absolute() / "run"
        if len(str(wanted / "node.sock").encode()) <= UNIX_PATH_BYTES_MAX:
            return wanted
        digest = hashlib.sha256(str(wanted).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"agentmem-{digest}"

    @property
    def node_socket(self) -> Path:
        """The node agent's Unix socket."""
        return self.run_dir / "node.sock"

    @property
    def node_dir(self) -> Path:
        """Packs and index of the disk tier."""
        return self.data_dir.absolute() / "node"

    @property
    def secrets_dir(self) -> Path:
        """Root secret files, mode 0600."""
        return self.data_dir.absolute() / "secrets"

    @property
    def models_dir(self) -> Path:
        """Converted models."""
        return self.data_dir.absolute() / "models"

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentmem.core import TenantId
from agentmem.errors import ConfigurationInvalid
from agentmem.sessions.secrets import load_secrets


def test_made_once_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "secrets"
    first = load_secrets(folder)
    assert load_secrets(folder) == first
    assert len({first.pepper, first.salt_secret, first.root_key}) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["pepper", "root_key", "salt_secret"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_size == 32
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_many_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        loaded = list(pool.map(load_secrets, [tmp_path / "secrets"] * 32))
    assert all(one == loaded[0] for one in loaded)
    assert len(list((tmp_path / "secrets").iterdir())) == 3


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_open_to_others(tmp_path: Path, mode: int) -> None:
    load_secrets(tmp_path)
    (tmp_path / "pepper").chmod(mode)
    with pytest.raises(ConfigurationInvalid, match="open to others") as caught:
        load_secrets(tmp_path)
    assert "chmod 600" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_not_a_secret(tmp_path: Path, content: bytes) -> None:
    load_secrets(tmp_path)
    (tmp_path / "salt_secret").write_bytes(content)
    with pytest.raises(ConfigurationInvalid, match=f"has {len(content)} bytes, not 32"):
        load_secrets(tmp_path)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationInvalid, match="cannot be used"):
        load_secrets(tmp_path / "file" / "secrets")


def test_derived_values(tmp_path: Path) -> None:
    secrets = load_secrets(tmp_path)
    one, other = (secrets.tenant_salt(TenantId(name)) for name in ("ten_1", "ten_2"))
    assert len(one) == 64
    assert one != other
    assert secrets.tenant_salt(TenantId("ten_1")) == one
    assert secrets.key_hash("a") != secrets.key_hash("b")
    shown = repr(secrets)
    assert shown == "Secrets()"


def test_tags_tell_tenants_apart_and_follow_from_the_root_key(tmp_path: Path) -> None:
    here, there = load_secrets(tmp_path / "a"), load_secrets(tmp_path / "b")
    tags = [s.tenant_tag(TenantId(t)) for s in (here, there) for t in ("ten_1", "ten_2")]
    assert len(set(tags)) == 4
    assert {len(tag) for tag in tags} == {16}
    assert load_secrets(tmp_path / "a").tenant_tag(TenantId("ten_1")) == tags[0]

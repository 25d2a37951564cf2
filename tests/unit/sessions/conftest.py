from __future__ import annotations

from pathlib import Path

import pytest

from agentmem.sessions.chat import Chat
from agentmem.testing.models import TOOLS_TEMPLATE, TRIMMING_TEMPLATE, write_tokenizer


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def trimming(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder: Path = tmp_path_factory.mktemp("trimming")
    return Chat.load(write_tokenizer(folder, template=TRIMMING_TEMPLATE))


@pytest.fixture(scope="session")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder: Path = tmp_path_factory.mktemp("tooled")
    return Chat.load(write_tokenizer(folder, template=TOOLS_TEMPLATE))

"""The hub is a server on this machine that answers as the real one does, in a process of its own for its settings."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

OPEN = """
import sys
from midblock.base import MidblockError
from midblock.checkpoints.hub import hub_folder
from midblock.checkpoints.reference import ModelReference
try:
    print(hub_folder(ModelReference.parse(sys.argv[1])))
except MidblockError as error:
    print("refused:", error)
"""

REFUSALS = {
    "org/missing": (404, "RepoNotFound"),
    "org/gated": (403, "GatedRepo"),
    "org/old": (404, "RevisionNotFound"),
    "org/broken": (500, ""),
}


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, code = next((reply for name, reply in REFUSALS.items() if name in self.path), (404, "RepoNotFound"))
        body = json.dumps({"error": code}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def endpoint():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def ask(tmp_path):
    def run(name, **settings):
        environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"} | settings
        command = [sys.executable, "-W", "ignore", "-c", OPEN, name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
        return done.stdout.strip()

    return run


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/missing", ["no model org/missing on the hub", "hf auth login"]),
        ("org/gated", ["org/gated is gated", "hf auth login"]),
        ("org/old@v9", ["org/old has no revision 'v9'"]),
        ("org/broken", ["org/broken", "folder"]),
    ],
)
def test_refusals(ask, endpoint, name, words):
    answer = ask(name, HF_ENDPOINT=endpoint)
    assert answer.startswith("refused:")
    assert "\n" not in answer
    assert all(word in answer for word in words), answer


def test_nobody_there(ask):
    answer = ask("org/name", HF_ENDPOINT="http://127.0.0.1:9")
    assert "org/name is not in the cache and the hub cannot be reached (check the network" in answer


def test_a_hub_that_takes_calls_and_never_answers(ask):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = ask("org/name", HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "org/name is not in the cache and the hub cannot be reached (check the network" in answer
    assert "\n" not in answer


def test_a_name_that_nobody_can_resolve(ask):
    answer = ask("org/name", HF_ENDPOINT="http://hub.invalid")
    assert "org/name is not in the cache and the hub cannot be reached (check the network" in answer


def test_mistyped_folder_is_suggested(ask, tmp_path):
    (tmp_path / "runs" / "tuned").mkdir(parents=True)
    answer = ask("runs/tunde", HF_HUB_OFFLINE="1")
    assert "did you mean runs/tuned?" in answer


def test_the_cache_answers_offline(ask, tmp_path):
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "hub" / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    assert ask("org/name", HF_ENDPOINT="http://127.0.0.1:9") == str(snapshot)
    assert "not in the cache" in ask("org/name@v2", HF_HUB_OFFLINE="1")

"""A model's shape from the hub, and what is said where the hub does not answer."""

import json
import re
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import gaierror
from threading import Thread
from urllib.error import HTTPError, URLError

import pytest

from prm_ray.errors import UserError
from prm_ray.planning.knownmodels import model_shape
from prm_ray.planning.shapes import Shape


def test_a_shape_that_is_not_built_in_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    facts = {"model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    facts |= {"num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 1000, "tie_word_embeddings": False}
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(facts).encode())

        def log_message(self, format: str, *args: object):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    Thread(target=server.handle_request, daemon=True).start()
    shape, source = model_shape("owner/a-model-nobody-has")
    server.server_close()
    assert asked == ["/owner/a-model-nobody-has/resolve/main/config.json"]
    assert shape == Shape(64, 2, 128, 4, 2, 1000, False, kind="mistral") and source == "hub"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError(gaierror(-2, "Name or service not known")), "Name or service not known"),
        (URLError(TimeoutError("timed out")), "timed out"),
        (HTTPError("http://hub", 404, "Not Found", Message(), None), "HTTP Error 404: Not Found"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_why_the_hub_did_not_answer_is_said_without_what_urllib_wraps_around_it(
    error: OSError, reason: str, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object, **__: object):
        raise error

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("prm_ray.planning.knownmodels.urlopen", fails)
    with pytest.raises(UserError, match=re.escape(f"from the hub ({reason}): give model.name=FOLDER")):
        model_shape("owner/a-model-nobody-has")

"""`serve`: OpenAI's client asks the server and gets the answers of the pipeline."""

import base64
import functools
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import uvicorn
from checkpoints import CLIP, RETENTION_RATIO, build_pipeline, build_upstream_folder, moving_frames, once
from PIL import Image
from test_pipeline import write_video
from transformers import pipeline

from flashvid_hf import FlashVIDQwen2_5_VLForConditionalGeneration, MediaLimits, load_processor
from flashvid_hf.serving import server as serving
from flashvid_hf.serving.app import ServedModel, build_app
from flashvid_hf.serving.request_limits import RequestLimits
from flashvid_hf.serving.requests import RequestReader
from flashvid_hf.serving.server import is_loopback, serve
from flashvid_hf.video.download import DownloadRules

NUM_FRAMES = 4
QUESTION = "What happens?"
DATA_URL = "data:video/mp4;base64," + base64.b64encode(CLIP.read_bytes()).decode()


def text(value: str = QUESTION) -> dict[str, Any]:
    return {"type": "text", "text": value}


def video(url: str = DATA_URL) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def image_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def connect(port: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava_onevision"])
def server(request, tmp_path_factory):
    """The server of a demo model in a thread, and the pipeline with its own copy of the model."""
    pipe = build_pipeline(tmp_path_factory, request.param)
    served = ServedModel.load(pipe.model.name_or_path, device="cpu")
    # Tests download from this machine.
    app = build_app(served, num_frames=NUM_FRAMES, local_media_path=Path("/"), downloads=DownloadRules())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        web = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
        thread.start()
        with connect(listener.getsockname()[1]) as client:
            yield SimpleNamespace(client=client, pipe=pipe, served=served, name=served.name)
        web.should_exit = True
        thread.join()


def ask(server: SimpleNamespace, *content: dict[str, Any], **options: Any) -> Any:
    options = {"model": server.name, "max_tokens": 8, "temperature": 0, **options}
    return server.client.chat.completions.create(messages=[{"role": "user", "content": [*content]}], **options)


def answer(server: SimpleNamespace, *content: dict[str, Any], **extra: Any) -> str:
    return ask(server, *content, extra_body=extra).choices[0].message.content


def expect(server: SimpleNamespace, *content: dict[str, Any], **options: Any) -> str:
    """The answer of the pipeline."""
    options = {"max_new_tokens": 8, "do_sample": False, **options}
    if not {"num_frames", "fps"} & options.keys():
        options["num_frames"] = NUM_FRAMES
    return server.pipe([{"role": "user", "content": [*content]}], **options)[0]["generated_text"]


CLIP_PART = {"type": "video", "video": str(CLIP)}


def test_every_form_of_a_video_gets_the_answer_of_the_pipeline(server):
    expected = expect(server, CLIP_PART, text())
    assert expected != expect(server, CLIP_PART, text(), retention_ratio=1.0)  # the answer depends on the compression
    assert expected != expect(server, CLIP_PART, text(), num_frames=NUM_FRAMES - 1)  # and on the frames
    files = functools.partial(SimpleHTTPRequestHandler, directory=CLIP.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), files) as web:
        threading.Thread(target=web.serve_forever).start()
        address = f"http://127.0.0.1:{web.server_port}/{CLIP.name}"
        answers = [answer(server, video(url), text()) for url in (str(CLIP), CLIP.as_uri(), DATA_URL, address)]
        web.shutdown()
    assert answers == [expected] * 4


def test_streaming_gives_the_same_answer_and_usage(server):
    whole = ask(server, video(), text())
    *chunks, last = ask(server, video(), text(), stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage == whole.usage and last.choices == []
    assert whole.usage.completion_tokens == 8
    assert all(chunk.usage is None for chunk in ask(server, video(), text(), stream=True))


@pytest.mark.parametrize(
    "request_fields, pipeline_fields",
    [
        ({"chat_template_kwargs": {"num_frames": 7}}, {"num_frames": 7}),
        ({"chat_template_kwargs": {"fps": 1.0}}, {"fps": 1.0}),
        ({"retention_ratio": 1.0}, {"retention_ratio": 1.0}),
    ],
)
def test_a_request_has_settings_of_its_own(server, request_fields, pipeline_fields):
    assert answer(server, video(), text(), **request_fields) == expect(server, CLIP_PART, text(), **pipeline_fields)
    assert server.served.model.config.retention_ratio == RETENTION_RATIO  # unchanged for the next request


def test_a_short_clip_gives_all_its_frames(server, tmp_path):
    path = str(write_video(tmp_path / "short.mp4", moving_frames(NUM_FRAMES - 1)))
    assert answer(server, video(path), text()) == expect(server, {"type": "video", "video": path}, text())


def test_text_images_and_several_videos(server):
    picture = Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 30).convert("RGB")
    image = {"type": "image_url", "image_url": {"url": image_url(picture)}}
    image_part = {"type": "image", "image": picture}
    assert answer(server, text()) == expect(server, text())
    assert answer(server, image, text()) == expect(server, image_part, text())
    assert answer(server, video(), video(), text()) == expect(server, CLIP_PART, CLIP_PART, text())
    assert answer(server, video(), image, text()) == expect(server, CLIP_PART, image_part, text())


def test_requests_at_the_same_time_get_their_own_answers(server):
    questions = [text("What happens?"), text("Who is it, and where?")]
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda question: answer(server, video(), question), questions))
    assert answers == [expect(server, CLIP_PART, question) for question in questions]


def test_stop_strings_end_an_answer(server):
    whole = answer(server, text())
    stop = whole[3]
    stopped = ask(server, text(), stop=[stop]).choices[0]
    assert stopped.message.content == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


def test_a_seed_gives_the_same_answer_under_load(server):
    def draw(seed: int) -> str:
        options = {"temperature": 1.0, "max_tokens": 12, "seed": seed}
        return ask(server, video(), text(), **options).choices[0].message.content

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(draw, [1, 2] * 4))
    assert answers == answers[:2] * 4 and answers[0] != answers[1]


@pytest.mark.parametrize("stream", [False, True])
def test_settings_and_fields_of_a_request(server, stream):
    part = {"type": "video_url", "video_url": {"url": DATA_URL, "nframes": 3}, "video_end": 4}
    expected = expect(server, {**CLIP_PART, "nframes": 3, "video_end": 4}, text())
    answered = ask(server, part, text(), n=1, logprobs=False, max_tokens=None, max_completion_tokens=8, stream=stream)
    if stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in answered) == expected
    else:
        assert answered.choices[0].message.content == expected
    for name, value in {"n": 2, "tools": [{"type": "function", "function": {"name": "f"}}]}.items():
        with pytest.raises(openai.BadRequestError, match=f"`{name}` is "):
            ask(server, text(), stream=stream, **{name: value})


def test_responses(server):
    def create(given: Any, **options: Any) -> Any:
        options = {"model": server.name, "max_output_tokens": 8, "temperature": 0, **options}
        return server.client.responses.create(input=given, **options)

    parts = [video(), {"type": "input_text", "text": QUESTION}]
    message = [{"role": "user", "content": parts}]
    expected = expect(server, CLIP_PART, text())
    assert create(message).output_text == create(parts).output_text == expected
    assert create(QUESTION).output_text == expect(server, text())
    streamed = create(message, stream=True)
    assert "".join(e.delta for e in streamed if e.type == "response.output_text.delta") == expected
    sampled = create(message, extra_body={"chat_template_kwargs": {"num_frames": 3}, "retention_ratio": 0.5})
    assert sampled.output_text == expect(server, CLIP_PART, text(), num_frames=3, retention_ratio=0.5)


def test_models_and_health(server):
    assert [model.id for model in server.client.models.list()] == [server.name]
    assert server.client.get("/../health", cast_to=dict[str, str]) == {"status": "ok"}
    with pytest.raises(openai.NotFoundError, match="Not Found"):
        server.client.embeddings.create(model=server.name, input=QUESTION)


@pytest.mark.parametrize(
    "content, extra, message",
    [
        ([video("/no/such.mp4")], {}, "'/no/such.mp4' does not exist"),
        ([video("data:video/mp4;base64,AAAA")], {}, "cannot be read"),
        ([video(DATA_URL[:-4000])], {}, "cannot be read"),
        ([{"type": "image_url", "image_url": {"url": str(CLIP)}}], {}, "the image .* cannot be read"),
        ([{"type": "video_url"}], {}, r"\.video_url` is None: it must be an object with a `url`"),
        ([{"type": "movie", "path": str(CLIP)}], {}, r"\.type` is 'movie': it must be one of text"),
        ([{"type": "text"}], {}, r"\.text` is None: it must be a string"),
        ([text()], {"messages": []}, r"`messages` is \[\]"),
        ([text()], {"messages": [{"content": QUESTION}]}, "it must be an object with `role` and `content`"),
        ([text()], {"model": "another"}, "`model` is 'another': this server has"),
        ([text()], {"retention_ratio": 1.5}, "`retention_ratio` is 1.5"),
        ([text()], {"chat_template_kwargs": 3}, "`chat_template_kwargs` is 3: it must be an object"),
        ([text()], {"chat_template_kwargs": {"tokenize": False}}, "has 'tokenize', which the server sets"),
        ([video()], {"chat_template_kwargs": {"num_frames": 0}}, r"\.num_frames` is 0: it must be an integer >= 1"),
        ([video()], {"chat_template_kwargs": {"num_frames": 2, "fps": 1}}, "pass only one"),
        ([text()], {"max_tokens": "many"}, "many"),
    ],
)
def test_bad_requests_say_what_is_wrong(server, content, extra, message):
    with pytest.raises(openai.BadRequestError, match=message) as raised:  # instead of a stream, not inside it
        ask(server, *content, stream=True, extra_body=extra)
    assert raised.value.body["type"] == "invalid_request_error"


def test_placeholders_in_texts_are_refused(server):
    token = server.pipe.processor.video_token
    for content in ([text(f"What is {token}?")], [video(), text(f"What is {token}?")]):
        with pytest.raises(openai.BadRequestError, match="placeholders .* and no placeholder into texts"):
            ask(server, *content)
        with pytest.raises(openai.BadRequestError, match="placeholders .* and no placeholder into texts"):
            ask(server, *content, stream=True)


def test_unknown_fields_are_refused(server):
    with pytest.raises(openai.UnprocessableEntityError, match="Unexpected fields in the request: {'retention'}"):
        ask(server, text(), extra_body={"retention": 0.1})


@pytest.mark.parametrize("source", [str(CLIP), CLIP.as_uri(), "FILE:/etc/hosts", "clip.mp4", "~/clip.mp4", ""])
@pytest.mark.parametrize("kind", ["video_url", "image_url"])
def test_files_are_read_only_where_allowed(kind, source):
    reader = RequestReader("model", NUM_FRAMES, local_media_path=None, processor=None)
    part = {"type": kind, kind: {"url": source}}
    message = "reads no files of its own machine" if source else "it must be an object with a `url`"
    with pytest.raises(ValueError, match=message):
        reader.read({"messages": [{"role": "user", "content": [part]}]}, "messages")
    for body, field in (({"input": [part]}, "input"), ({"input": [{"role": "user", "content": [part]}]}, "input")):
        with pytest.raises(ValueError, match=message):
            reader.read(body, field)


def test_videos_are_read_where_files_are_not():
    reader = RequestReader("model", NUM_FRAMES, local_media_path=None, processor=None)
    body = reader.read({"messages": [{"role": "user", "content": [video(), text()]}]}, "messages")
    clip = body["messages"][0]["content"][0]["video_url"]["url"]
    assert len(clip.frames) == len(clip.metadata.frames_indices) == NUM_FRAMES


def test_loopback():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.2", "example.org", "localhost.example.org", "")))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"port": 70000}, "`port` is 70000"),
        ({"num_frames": 0}, "`num_frames` is 0"),
        ({"retention_ratio": 0}, "`retention_ratio` is 0"),
        ({"log_level": "loud"}, "`log_level` is 'loud'"),
        ({"allowed_local_media_path": "no/such"}, "`allowed_local_media_path` is 'no/such': it must be a folder"),
        ({"allowed_local_media_path": str(CLIP)}, "`allowed_local_media_path` is .*: it must be a folder"),
        ({"num_frames": 5000}, "`num_frames`: 5,000 frames, .* at most 4,096"),
    ],
)
def test_settings_are_checked_before_the_model_is_looked_for(settings, message):
    with pytest.raises(ValueError, match=message):
        serve("no/such-model", **settings)


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="`model_type` of .* is 'llama'"):
        serve(tmp_path)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(serving, "is_serve_available", lambda: False)
    with pytest.raises(ImportError, match=r'pip install "flashvid-hf\[serve\]"'):
        serve("no/such-model")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_files_are_read_from_a_folder_that_was_named(host, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(ServedModel, "load", classmethod(lambda cls, name, **_: cls(name, None, None)))
    monkeypatch.setattr("flashvid_hf.serving.app.RequestReader", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(uvicorn, "run", lambda app, **_: None)
    limits = RequestLimits(max_frames=8)
    serve("model", host=host, num_frames=5)
    serve("model", host=host, allowed_local_media_path=tmp_path / "x" / "..", request_limits=limits, num_frames=8)
    media = MediaLimits(max_decoded_bytes=2**31)
    assert seen == [("model", 5, None, None, RequestLimits(), media), ("model", 8, tmp_path, None, limits, media)]


def test_serve_compresses_an_upstream_checkpoint_until_interrupted(tmp_path_factory):
    folder = once(tmp_path_factory, "serving-upstream", build_upstream_folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = {"host": "127.0.0.1", "port": port, "device": "cpu", "num_frames": 4, "retention_ratio": 0.1}
    settings["allowed_local_media_path"] = str(CLIP.parent)
    program = f"from flashvid_hf.serving.server import serve; serve({str(folder)!r}, **{settings!r})"
    package = str(Path(serving.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": package},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with connect(port) as client:
            while process.poll() is None:
                try:
                    client.models.list()
                    break
                except openai.APIConnectionError:
                    time.sleep(0.2)
            server = SimpleNamespace(client=client, name=str(folder))
            if process.poll() is None:
                found = answer(server, video(str(CLIP)), text())
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    model = FlashVIDQwen2_5_VLForConditionalGeneration.from_pretrained(folder, retention_ratio=0.1)
    server.pipe = pipeline("video-text-to-text", model=model, processor=load_processor(folder), device="cpu")
    (expected,) = server.pipe(str(CLIP), text=QUESTION, num_frames=4, max_new_tokens=8, do_sample=False)
    assert found == expected["generated_text"]
    tokens = expected["video_tokens"]
    assert tokens["remained"] < tokens["entered"] < tokens["total"]
    assert f"video 0: {tokens['total']} tokens, {tokens['entered']} entered, {tokens['remained']} remained" in output

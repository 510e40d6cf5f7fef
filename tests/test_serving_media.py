"""Videos and images of a request to `serve`: their forms, their number, and which files of the machine they may be."""

import base64
from pathlib import Path
from typing import Any

import pytest
from server_requests import FRAMES, PICTURE

from flashvid_hf.serving.kinds import FieldError
from flashvid_hf.serving.request_limits import RequestLimits
from flashvid_hf.serving.requests import RequestReader
from flashvid_hf.video.limits import MediaLimits


def read(part: Any, **options: Any) -> Any:
    reader = RequestReader("model", 4, processor=None, **{"local_media_path": None, **options})
    body = {"messages": [{"role": "user", "content": [part]}]}
    reader.check(body, "messages")
    part = reader.read(body, "messages")["messages"][0]["content"][0]
    return part[part["type"]]["url"]


def test_parts_of_transformers_are_those_of_openai():
    base64 = PICTURE.partition(",")[2]
    expected = read({"type": "image_url", "image_url": {"url": PICTURE}}).image
    for name, source in {"image": PICTURE, "url": PICTURE, "base64": base64}.items():
        assert read({"type": "image", name: source}).image == expected
    expected = read({"type": "video_url", "video_url": {"url": FRAMES}}).frames
    for name in ("video", "url", "path"):
        assert (read({"type": "video", name: FRAMES}).frames == expected).all()
    with pytest.raises(FieldError, match="twice, under"):
        read({"type": "video", "video": FRAMES, "url": FRAMES})


@pytest.mark.parametrize("source", [{"path": "/etc/hosts"}, {"bytes": "x"}, ["a", {"path": "/etc/hosts"}], 3, [], [""]])
def test_sources_are_addresses(source):
    for part in ({"type": "video", "video": source}, {"type": "video_url", "video_url": {"url": source}}):
        with pytest.raises(FieldError, match="must be an object with a `url`, or an address|must be an object with"):
            read(part, local_media_path=Path("/"))


def test_details_of_images():
    for detail in ("auto", "high", None):
        assert read({"type": "image_url", "image_url": {"url": PICTURE, "detail": detail}}).image.size == (28, 28)
    for detail in ("low", "", 3, True, ["auto"]):
        with pytest.raises(FieldError, match="`detail` beside an image is .* `max_pixels` makes an image smaller"):
            read({"type": "image_url", "image_url": {"url": PICTURE, "detail": detail}})


@pytest.mark.parametrize(
    "settings", [{"num_frames": 5}, {"nframes": 5}, {"fps": 1}, {"min_frames": 5}, {"fps": 1, "max_frames": 9}]
)
def test_frames_of_a_request_are_limited(settings):
    part = {"type": "video", "video": FRAMES * 2, "video_metadata": {"fps": 1}, **settings}
    with pytest.raises(FieldError, match=r"frames of all videos so far, .* at most 4 \(`--max-frames`\)"):
        read(part, request_limits=RequestLimits(max_frames=4))
    assert len(read(part).frames) in (5, 6)


def test_frames_are_counted_over_the_videos():
    reader = RequestReader("model", 4, None, None, RequestLimits(max_frames=5))
    body = {"messages": [{"role": "user", "content": [{"type": "video", "video": FRAMES, "fps": 1}] * 2}]}
    body["messages"][0]["content"] = [{**part, "video_metadata": {"fps": 1}} for part in body["messages"][0]["content"]]
    with pytest.raises(FieldError, match=r"`messages\[0\].content\[1\].video`: 6 frames"):
        reader.read(body, "messages")


def test_bytes_are_counted_over_the_media():
    parts = [{"type": "image", "image": PICTURE}, {"type": "video", "video": FRAMES}]
    body = {"messages": [{"role": "user", "content": parts}]}
    size = 4 * 28 * 28 * 3
    RequestReader("model", 4, None, None, limits=MediaLimits(max_decoded_bytes=size)).read(body, "messages")
    reader = RequestReader("model", 4, None, None, limits=MediaLimits(max_decoded_bytes=size - 1))
    with pytest.raises(FieldError, match=r"`max_decoded_bytes` is 9407, and all media of the request so far"):
        reader.read(body, "messages")


def test_calls_that_are_null_do_not_replace_the_content():
    for calls in (None, []):
        body = {"messages": [{"role": "assistant", "content": "Hi", "tool_calls": calls, "refusal": None}]}
        reader = RequestReader("model", 4, None, None)
        reader.check(body, "messages")
        assert reader.read(body, "messages")["messages"] == [{"role": "assistant", "content": "Hi"}]


def test_local_files_are_those_of_a_folder(tmp_path):
    folder, beside = tmp_path / "media", tmp_path / "media2"
    for place in (folder / "inner", beside):
        place.mkdir(parents=True)
    content = base64.b64decode(PICTURE.partition(",")[2])
    for file in (folder / "a b.png", folder / "inner" / "a.png", beside / "a.png", tmp_path / "a.png"):
        file.write_bytes(content)
    (folder / "out.png").symlink_to(beside / "a.png")
    (folder / "in.png").symlink_to(folder / "inner" / "a.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    (tmp_path / "to_media").symlink_to(folder)

    def image(address: str, path: Path | None = folder) -> Any:
        return read({"type": "image", "image": address}, local_media_path=path).image

    for name in ("a b.png", "inner/a.png", "in.png", "inner/../a b.png", "../media/in.png", "up/media/in.png"):
        for address in (f"{folder}/{name}", f"file://{folder}/{name}", f"FILE:{folder}/{name}"):
            assert image(address).size == (28, 28)
    assert image(f"file://{folder}/a%20b.png").size == image(f"{tmp_path}/to_media/in.png").size == (28, 28)
    assert image(str(folder / "in.png"), tmp_path / "to_media").size == (28, 28)
    names = ["../a.png", "../media2/a.png", "out.png", "up/a.png", "inner/../../a.png", "circle/../../a.png"]
    outside = [*(f"{folder}/{name}" for name in names), "/etc/hosts", "/proc/self/environ", "a.png", "~/a.png"]
    outside += [f"file://{folder}/%2e%2e/a.png", f"file:{folder}/..%2fa.png", "file:a.png", "data", "http"]
    for address in [*outside, "\0", "x" * 5000]:
        with pytest.raises(FieldError, match="reads only files inside of the folder of `--allowed-local-media-path`"):
            image(address)
    for address in [f"{folder}/in.png", "data", "http", "https"]:
        with pytest.raises(FieldError, match="reads no files of its own machine"):
            image(address, None)
    with pytest.raises(FieldError, match="cannot be read"):
        image(str(folder / "missing.png"))


@pytest.mark.parametrize("other", [5, "/etc/passwd"])
def test_a_second_source_is_refused(other):
    """Also one that would not be read."""
    for part in ({"video_url": {"url": FRAMES}, "video": other}, {"video_url": {"url": FRAMES, "video": other}}):
        with pytest.raises(FieldError, match="`video` stands beside the source in `video_url`"):
            read({"type": "video_url", **part})

"""The decoders of video files: each returns exactly the wanted frames of a file, or raises an error.

PyAV comes first. It decodes only from the keyframe before a wanted frame up to that frame, and it gives each frame's
timestamp and damage flag, which are checked here. decord is tried where PyAV cannot read a file. decord is exact in
MP4 and QuickTime, in one pass from the start. After a seek it returns neighbouring frames in MPEG-TS, MPEG-PS, AVI and
open-GOP video, which x265 writes by default.

Some damage stays unnoticed: no decoder rejects damaged picture data that decodes to a wrong picture. This is rare in
H.264, AV1, MPEG-2 and MPEG-4 of plain pictures, more common in noisy pictures and in HEVC, VP9 and Motion JPEG, and
usual in VP8 and GIF. A missing end is noticed where the format says how long the file is, or marks its end
(`whole_files.py`): not in raw streams, and in MPEG-TS and MPEG-PS only if the cut divides a packet.
"""

import importlib.util
from collections.abc import Callable

from .decoder_types import Decoded
from .decord_decoder import read_decord
from .frame_plan import FramePlan
from .pyav_decoder import read_pyav

BACKENDS: dict[str, Callable[[str, FramePlan], Decoded]] = {  # in the order in which they are tried
    "pyav": read_pyav,
    "decord": read_decord,
}
MODULES = {"pyav": "av", "decord": "decord"}  # the module of each decoder; pip has it under the same name


def available_backends() -> list[str]:
    """Names of the installed decoders in the order in which they are tried: pyav, decord."""
    return [name for name in BACKENDS if importlib.util.find_spec(MODULES[name]) is not None]

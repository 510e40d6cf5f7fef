"""The compression methods. Each has its own file, and a line in the list below.

`compression_method.py` says what a method is. `registry.py` finds a method by its name; FlashVID is registered there.

Legend of all files of this folder: T frames (for Qwen: temporal grids), N tokens a frame, D width, M kept tokens,
L layers of the language model, K the layer from which a method prunes, R `retention_ratio`. A token's flat index is
t * N + n, for the n-th token of frame t.
"""

from .evs import EVS
from .fastv import FastV
from .fastvid import FastVID
from .frame_dropping import FrameDropping
from .holitom import HoliTom
from .no_compression import NoCompression
from .prunevid import PruneVID
from .random_tokens import RandomTokens
from .registry import register_method
from .uniform_tokens import UniformTokens
from .vidcom2 import VidCom2
from .visionzip import VisionZip

for _method in (
    # One line for each method.
    FastV,
    VisionZip,
    PruneVID,
    FastVID,
    HoliTom,
    VidCom2,
    EVS,
    UniformTokens,
    RandomTokens,
    FrameDropping,
    NoCompression,
):
    register_method(_method)

"""How much a single request may ask for. No honest request meets the defaults."""

from dataclasses import dataclass

from ..compression.validation import check_settings, setting
from ..video.limits import MediaLimits
from .kinds import FieldError


@dataclass(frozen=True)
class RequestLimits:
    """Limits on what a request says. Each field is an option of `flashvid-hf serve`: `max_media` is `--max-media`.

    Raises:
        ValueError: a limit is not an integer above 0.
    """

    # The longest conversations of agents have hundreds of messages.
    max_messages: int = setting(4096, "Messages of a request.", least=1, integer=True)
    # As many images of 1,000 tokens fill the context of the largest models.
    max_media: int = setting(256, "Videos and images of a request.", least=1, integer=True)
    # Qwen's processors take 768 frames of a video at most. A request may have several such videos.
    max_frames: int = setting(4096, "Frames of all videos of a request.", least=1, integer=True)
    # The longest context, 262,144 tokens of Qwen3-VL, holds 1.2 million characters of English. Counting characters
    # costs nothing, and tokenizing takes seconds for some million.
    max_prompt_chars: int = setting(2**21, "Characters of all texts of a request.", least=1, integer=True)
    # The longest context of the models.
    max_new_tokens: int = setting(2**18, "Tokens of an answer.", least=1, integer=True)
    # OpenAI takes four. Each new token is compared with all of them.
    max_stop_strings: int = setting(64, "Texts in `stop`.", least=1, integer=True)
    # A line of text or a tag ends answers. The server keeps as many characters of each answer to compare.
    max_stop_chars: int = setting(1024, "Characters of a text in `stop`.", least=1, integer=True)
    # OpenAI takes 300, vLLM 1,024. The engine prepares them one by one while other answers wait.
    max_logit_bias: int = setting(1024, "Tokens in `logit_bias`.", least=1, integer=True)
    # The schemas of tools nest about 20 deep. Python's own functions, such as `repr`, give up at 1,000.
    max_json_depth: int = setting(64, "Objects and lists inside each other.", least=2, integer=True)

    def __post_init__(self) -> None:
        check_settings(self)

    def check(self, name: str, value: int, field: str, what: str, step: str) -> None:
        """Compare a value with the limit of this name.

        Args:
            name: of the limit.
            value: of the request.
            field: the field of the request that has the value.
            what: what is counted, such as "messages".
            step: what the client can do.

        Raises:
            FieldError: the value is above the limit.
        """
        limit = getattr(self, name)
        if value > limit:
            raise FieldError(
                field,
                f"`{field}`: {value:,} {what}, and this server takes at most {limit:,} (`--{name.replace('_', '-')}`). "
                f"{step} Or let the server be started with a higher limit.",
            )


DEFAULT_REQUEST_LIMITS = RequestLimits()
# What a video or an image in a request must not exceed. All media of a request may take 2 GiB: more than the longest
# video of Qwen2.5-VL (768 frames of 602,112 pixels, 1.3 GiB).
SERVER_LIMITS = MediaLimits(max_decoded_bytes=2**31)

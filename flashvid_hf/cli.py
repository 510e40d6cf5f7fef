"""The command line `flashvid-hf`. Each command calls one function of the package; an error is one line.

No command turns `trust_remote_code` on: models load with the classes of the package.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .cli_options import (
    Device,
    Dtype,
    ListOptions,
    Model,
    NumFrames,
    Ratio,
    Repository,
    Settings,
    console,
    listed,
    make_limits,
    read_settings,
    say,
    say_aside,
    takes_limits,
)
from .evaluation.benchmarks import BENCHMARKS
from .evaluation.evaluate import EvaluationOptions
from .evaluation.reproduce_tables import BEHAVIORS, COMMANDS, SETUPS
from .evaluation.studies import STUDIES
from .serving.server import DOWNLOADS, MAX_BODY_BYTES, MAX_NUM_SEQS, MAX_QUEUE, SHUTDOWN_TIMEOUT, STEP_TIMEOUT

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="""Video language models that read a tenth of their video tokens (FlashVID, arXiv 2602.08024).

Ask first: `flashvid-hf run clip.mp4 "What happens?" --model Qwen/Qwen2.5-VL-3B-Instruct`

Then look inside (`trace`), serve it (`serve`), measure its answers (`evaluate`), or make a Hub repository of it
(`export`, `check`, `push`).""",
)


@app.command()
def run(
    video: Annotated[str, typer.Argument(help="A video file or its URL.")],
    question: Annotated[str, typer.Argument(help="What you want to know about it.")],
    model: Model,
    num_frames: NumFrames = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    retention_ratio: Ratio = None,
    fields: Settings = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Answer once more without compression, which is the upstream model.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Ask a model about a video. The answer streams; token counts and times follow.

    `flashvid-hf run clip.mp4 "Who wins?" -m Qwen/Qwen2.5-VL-7B-Instruct -r 0.1 --baseline`
    """
    from transformers import TextStreamer

    from .loading import check_video, load_pipeline

    settings = read_settings(retention_ratio, fields)
    check_video(video)
    pipe = load_pipeline(model, device=device, dtype=dtype, **settings)
    streamer = TextStreamer(pipe.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    asked = {"text": question, "num_frames": num_frames, "max_new_tokens": max_new_tokens}
    answers = {}
    for title, of_call in {"FlashVID": {}, "without": {"retention_ratio": 1.0}}.items():
        if baseline:  # the first call is slower than later ones
            with console.status("warming up"):
                pipe(video, **{**asked, **of_call, "max_new_tokens": 1})
        if title == "FlashVID" or baseline:
            console.rule(f"[bold]{title}")
            (answers[title],) = pipe(video, streamer=streamer, **asked, **of_call)
    table = Table("", *answers)
    for name in answers["FlashVID"]["video_tokens"]:
        table.add_row(f"{name} tokens", *(f"{answer['video_tokens'][name]:,}" for answer in answers.values()))
    for name in answers["FlashVID"]["seconds"]:
        seconds = (answer["seconds"].get(name) for answer in answers.values())  # upstream has no "compression"
        table.add_row(name, *("" if value is None else f"{value:.2f} s" for value in seconds))
    console.print(table)
    which = "one run each, after one to warm up" if baseline else "one run, the first of this process"
    say(f"Times are of {which}; `generate` holds vision, compression and prefill.")


@app.command()
def trace(
    video: Annotated[str, typer.Argument(help="A video file or its URL.")],
    model: Model,
    output: Annotated[
        list[Path],
        typer.Option("--output", "-o", help="`.png` or `.svg` for the picture, `.json` or `.npz` for the record."),
    ] = [Path("trace.png")],  # noqa: B006 -- typer copies it
    question: Annotated[
        str, typer.Option(help="It decides which video tokens remain in the upper layers.")
    ] = "What happens in this video?",
    num_frames: NumFrames = 32,
    retention_ratio: Ratio = None,
    fields: Settings = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Draw what became of every token of a video: selected, root of a tree, merged or dropped.

    `flashvid-hf trace clip.mp4 -m Qwen/Qwen2.5-VL-3B-Instruct -r 0.1 -o trace.png -o trace.json`
    """
    from .loading import check_video, load_pipeline
    from .tracing.picture import draw_trace
    from .tracing.trace import trace_video

    writers = {
        ".png": draw_trace,
        ".svg": draw_trace,
        ".json": lambda trace, path: trace.save_json(path),
        ".npz": lambda trace, path: trace.save_npz(path),
    }
    for path in output:
        if path.suffix not in writers:
            raise ValueError(f"`--output` is {str(path)!r}: it must end with one of {', '.join(writers)}.")
    settings = read_settings(retention_ratio, fields)
    check_video(video)
    pipe = load_pipeline(model, device=device, dtype=dtype, **settings)
    with console.status("reading the video and one prefill"):
        traced = trace_video(pipe.model, pipe.processor, video, question, num_frames=num_frames)
    for path in output:
        writers[path.suffix](traced, path)
        say(str(path))


@app.command(cls=ListOptions)
@takes_limits
def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Only this machine can reach `localhost`.")
    ] = "localhost",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free one.")] = 8000,
    num_frames: NumFrames = 32,
    retention_ratio: Ratio = None,
    allowed_local_media_path: Annotated[
        Path | None, typer.Option(help="A folder whose files requests may name. Default: no files of this machine.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Answers written at the same time.")] = MAX_NUM_SEQS,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests in the server besides those.")] = MAX_QUEUE,
    api_key: Annotated[
        list[str] | None, typer.Option(help="A key that requests must send. Default: `FLASHVID_API_KEY`, if it is set.")
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="Further names that `Host` may have on `localhost`."),
    ] = None,
    allowed_media_domains: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="The only hosts that media may be fetched from. Default: all."),
    ] = None,
    allow_private_networks: Annotated[
        bool, typer.Option("--allow-private-networks", help="Fetch media from addresses that are not public, too.")
    ] = False,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = MAX_BODY_BYTES,
    max_download_bytes: Annotated[
        int, typer.Option(min=1, help="Bytes of a file that is fetched.")
    ] = DOWNLOADS.max_bytes,
    download_timeout: Annotated[
        float, typer.Option(help="Seconds that fetching a file may take.")
    ] = DOWNLOADS.max_seconds,
    step_timeout: Annotated[
        float, typer.Option(help="Seconds after which a step of the model counts as stuck.")
    ] = STEP_TIMEOUT,
    shutdown_timeout: Annotated[
        int, typer.Option(min=0, help="Seconds that the server waits at its end for answers.")
    ] = SHUTDOWN_TIMEOUT,
    attn_implementation: Annotated[str | None, typer.Option(help="E.g. `sdpa` or `flash_attention_2`.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    log_level: Annotated[str, typer.Option(help="`critical`, `error`, `warning`, `info` or `debug`.")] = "info",
    **limits: float | None,
) -> None:
    """Serve a model behind an OpenAI-compatible API: chat completions and responses, streamed or not.

    `flashvid-hf serve -m Qwen/Qwen2.5-VL-7B-Instruct -r 0.1`; videos are `video_url` parts of messages.
    """
    from .serving.server import serve as run_server

    request_limits, media_limits = make_limits(limits)
    run_server(
        model,
        host=host,
        port=port,
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        num_frames=num_frames,
        retention_ratio=retention_ratio,
        allowed_local_media_path=allowed_local_media_path,
        request_limits=request_limits,
        limits=media_limits,
        max_num_seqs=max_num_seqs,
        max_queue=max_queue,
        api_key=api_key or (),
        allowed_hosts=allowed_hosts or (),
        allowed_media_domains=allowed_media_domains or (),
        allow_private_networks=allow_private_networks,
        max_body_bytes=max_body_bytes,
        max_download_bytes=max_download_bytes,
        download_timeout=download_timeout,
        step_timeout=step_timeout,
        shutdown_timeout=shutdown_timeout,
        log_level=log_level,
    )


@app.command(cls=ListOptions)
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a FlashVID or an upstream checkpoint.")],
    output: Annotated[Path, typer.Option(help="Folder of the answers and results; the same one goes on.")],
    benchmark: Annotated[str, typer.Option(help=f"One of {listed(BENCHMARKS)}.")] = EvaluationOptions.benchmark,
    source: Annotated[
        str | None, typer.Option(help="Folder or repository of the benchmark. Default: the published one.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Videos, from the start. Default: all, of MovingShapes 200.")
    ] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames of a video. Default: the benchmark's.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer, in tokens.")
    ] = EvaluationOptions.max_new_tokens,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions about a video at once.")
    ] = EvaluationOptions.batch_size,
    study: Annotated[str, typer.Option(help=f"What is compared, one of {listed(STUDIES)}.")] = EvaluationOptions.study,
    methods: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Only these lines of the study. Default: all.")
    ] = None,
    ratios: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RATIO...",
            help="Average shares of the video tokens, above 0, at most 1. Default: "
            f"{' '.join(map(str, EvaluationOptions.ratios))}.",
        ),
    ] = None,
    dtype: Dtype = EvaluationOptions.dtype,
) -> None:
    """Measure how well a model answers a benchmark, without compression and with every line of a study.

    `flashvid-hf evaluate hub_configs/flashvid-demo --methods flashvid evs --ratios 0.1 0.25 --output build/shapes`

    A run that was broken off goes on where it stopped. Several processes share the videos:
    `torchrun --nproc-per-node 2 -m flashvid_hf.cli evaluate ...`
    """
    from .evaluation.evaluate import evaluate_model

    options = EvaluationOptions(
        model=model,
        output=output,
        benchmark=benchmark,
        source=source,
        limit=limit,
        num_frames=num_frames,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        study=study,
        methods=methods or None,
        ratios=tuple(ratios or EvaluationOptions.ratios),
        dtype=dtype,
    )
    tables = evaluate_model(options, say=say_aside)
    if tables is not None:  # the main process
        say(f"wrote {output / 'results.json'}")
        say(tables)


@app.command(cls=ListOptions)
def reproduce(
    family: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help=f"Of {listed(SETUPS)}. Default: all.")
    ] = None,
    tool: Annotated[str, typer.Option(help=f"What measures, one of {listed(COMMANDS)}.")] = "evaluate",
    behavior: Annotated[
        str,
        typer.Option(help=f"One of {listed(BEHAVIORS)}; `released` is the code which the paper's figures come from."),
    ] = "released",
    output: Annotated[str, typer.Option(help="Folder of the results.")] = "build/tables",
) -> None:
    """Print the commands that measure the paper's tables, and the published figures to compare with.

    `flashvid-hf reproduce --family qwen2_5_vl | bash`
    """
    from .evaluation.reproduce_tables import reproduction_lines

    for line in reproduction_lines(family, tool, behavior, output):
        say(line)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A folder of `hub_configs/`, or the folder or Hub id of a checkpoint.")],
    target: Annotated[Path, typer.Argument(help="A folder that does not exist yet, or is empty.")],
    weights: Annotated[
        str, typer.Option(help="`base`: read from the base when the model loads. `included`: copied into the folder.")
    ] = "base",
    base: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id with the weights. Default: the source, or the base that it names."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the base; its commit is pinned.")
    ] = None,
    repository: Repository = None,
    retention_ratio: Ratio = None,
    fields: Settings = None,
) -> None:
    """Build a Hub folder: configuration, code, card, and a pointer to the weights (or the weights).

    `flashvid-hf export hub_configs/FlashVID-Qwen2.5-VL-7B-Instruct build/fv --repository me/FlashVID-Qwen2.5-VL-7B`
    """
    from .publishing.export import export_model

    settings = read_settings(retention_ratio, fields)
    folder = export_model(
        source, target, weights=weights, base=base, revision=revision, repository=repository, **settings
    )
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"{folder}: {size / 1e6:,.1f} MB. Next: `flashvid-hf check {folder}`.")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or Hub id of an original LLaVA checkpoint (lmms-lab).")],
    target: Annotated[Path, typer.Argument(help="A folder that does not exist yet, or is empty.")],
    dtype: Dtype = "auto",
    repository: Repository = None,
    retention_ratio: Ratio = None,
    fields: Settings = None,
) -> None:
    """Convert an original LLaVA checkpoint into a full folder. A weight that does not fit stops it before it writes.

    `flashvid-hf convert lmms-lab/LLaVA-Video-7B-Qwen2 build/FlashVID-LLaVA-Video-7B -r 0.1`
    """
    from .publishing.convert import convert_llava

    settings = read_settings(retention_ratio, fields)
    folder = convert_llava(source, target, dtype, repository, say=say, **settings)
    say(f"{folder} is ready. Next: `flashvid-hf check {folder}`.")


@app.command()
def check(
    folders: Annotated[list[Path], typer.Argument(help="Folders of models, or recipes of `hub_configs/`.")],
) -> None:
    """Check folders: code, card, loading, equality with upstream, token counts, snippets.

    Proves that a folder is what these tools write, and catches accidents; no defence against an author who means harm.
    The code and the card's python blocks are run after no fault only: without the package, with an empty home, without
    credentials, and, where the system allows it, without a network and with limits. The output says where it does not.
    Recipes have no code: only what needs no base is checked. `flashvid-hf check hub_configs/flashvid-demo`
    """
    from .publishing.checking import run_checks
    from .publishing.versions import installed_versions

    say(f"with {installed_versions()}")
    marks = {"passed": "[green]✓[/]", "failed": "[red]✗[/]", "skipped": "[yellow]-[/]"}
    num_failed = 0
    for folder in folders:
        console.rule(escape(str(folder)))
        with console.status("checking; loading and running a model takes a while"):
            for result in run_checks(folder):
                num_failed += result.status == "failed"
                console.print(f"{marks[result.status]} {escape(result.title)}", highlight=False, soft_wrap=True)
                for line in result.message.splitlines():
                    say(f"    {line}")
    if num_failed:
        raise typer.Exit(1)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder that `export` or `convert` wrote.")],
    repository: Annotated[str, typer.Argument(help="`name/of-it` on the Hub.")],
    upload: Annotated[
        bool, typer.Option("--upload", help="Really upload. Without it nothing leaves this machine.")
    ] = False,
    copy_weights: Annotated[
        bool,
        typer.Option("--copy-weights", help="Full repository of a weightless folder: the Hub copies the weights."),
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="If the repository is new, make it private.")] = False,
) -> None:
    """Show exactly what an upload would send; send it only with `--upload`.

    Folders that fail a check which runs no code are refused. The token is the one of `hf auth login` or `HF_TOKEN`.
    `flashvid-hf push build/fv me/FlashVID-Qwen2.5-VL-7B --upload --private`
    """
    from .publishing import push as pushing

    with pushing.plan_upload(folder, repository, copy_weights=copy_weights) as plan:
        say(f"https://huggingface.co/{repository}")
        for file in plan.files:
            size = "?" if file.size is None else f"{file.size:,}"
            origin = "" if file.file is not None else f"  copied by the Hub from {plan.base} at {plan.base_revision}"
            say(f"{size:>16}  {file.path}{origin}")
        sent = sum(file.size or 0 for file in plan.files if file.file is not None)
        say(f"{len(plan.files)} files, {sent:,} bytes to upload.")
        if upload:
            say(pushing.upload(plan, private=private))
        else:
            say("Nothing was sent. Add `--upload` to do it.")


def main() -> None:
    """Run the command line. Errors that a user can correct are one line, not a traceback."""
    try:
        app()
    except Exception as error:
        # If the Hub cannot be reached, huggingface_hub raises the error of httpx or, from 2.0 on, of httpx2.
        if not isinstance(error, (ValueError, ImportError, OSError)) and not type(error).__module__.startswith("httpx"):
            raise
        text = " ".join(str(error).split())  # some errors of libraries have several lines
        Console(stderr=True).print(f"Error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

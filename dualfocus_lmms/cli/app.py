"""`dualfocus app`: a page to try a checkpoint on, served on this machine's own address. Needs gradio.

dualfocus app --pretrained dualfocus-nano
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualfocus_lmms.cli.output import show
from dualfocus_lmms.cli.shared import flag, pixels
from dualfocus_lmms.errors import GenerationError, UserError

if TYPE_CHECKING:
    from dualfocus_lmms.types import Backend

OWN = "the protocol's"
GROUNDINGS = ("model", "whole", "center", "random", "attention", "attention_plain")
EXAMPLES = 4
BUTTONS = ["fullscreen", "download"]  # none that shares with a site
# Whatever a page of gradio refers to elsewhere, no browser fetches it.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; worker-src 'self' blob:"
)


def app(
    pretrained: Annotated[str, flag("pretrained")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1; 0 is a free one.")] = 7860,
    device: Annotated[str | None, flag("device")] = None,
    dtype: Annotated[str, flag("dtype")] = "auto",
    family: Annotated[str | None, flag("family")] = None,
    min_pixels: Annotated[int | None, flag("min_pixels")] = None,
    max_pixels: Annotated[int | None, flag("max_pixels")] = None,
) -> None:
    """Try a checkpoint on a page: drop an image, ask."""
    gradio = _gradio()
    import socket

    import uvicorn

    from dualfocus_lmms.api import DualFocusModel

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        raise UserError(f"Cannot listen on port {port}: {error}. Give another one with --port.") from error
    model = DualFocusModel(
        pretrained, device=device, dtype=dtype, family=family, min_pixels=min_pixels, max_pixels=max_pixels
    )
    with TemporaryDirectory(prefix="dualfocus-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        served = served_app(gradio, model.backend, pretrained, Path(folder))
        show(f"http://127.0.0.1:{listening.getsockname()[1]}/ answers with {pretrained}. Ctrl-C ends it.")
        server = uvicorn.Server(uvicorn.Config(served, log_level="warning"))
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            show("")


def _gradio() -> Any:
    """The library, which is told to send nothing before it is loaded. UserError where it is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            f"dualfocus app needs gradio ({error}): pip install 'dualfocus-lmms[app]', in an environment "
            "without constraints.txt, as gradio needs an older Pillow."
        ) from error
    return gradio


def served_app(gradio: Any, backend: Backend, name: str, folder: Path) -> Any:
    """The page as a web application that answers to this machine's names alone and fetches nothing."""
    from fastapi import FastAPI, Request
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    served = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @served.middleware("http")
    async def closed(request: Request, call_next: Any) -> Any:
        answer = await call_next(request)
        answer.headers["Content-Security-Policy"] = POLICY
        return answer

    served.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks = page(gradio, backend, name, folder)
    return gradio.mount_gradio_app(served, blocks, path="/", theme=theme, footer_links=[])


def page(gradio: Any, backend: Backend, name: str, folder: Path) -> Any:
    """The controls and what each step fills in."""
    from dualfocus_lmms.plugins import RULES, names
    from dualfocus_lmms.protocol import PROTOCOLS

    def answer(*given: Any) -> Iterator[tuple[Any, ...]]:
        try:
            yield from _outputs(backend, *given)
        except (UserError, GenerationError) as error:
            raise gradio.Error(str(error), duration=None) from error

    with gradio.Blocks(title=f"DualFocus: {name}", analytics_enabled=False) as blocks:
        gradio.Markdown(f"# DualFocus\n`{name}`")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(type="pil", label="Image", sources=["upload", "clipboard"], height=320)
                question = gradio.Textbox(label="Question", submit_btn=True)
                with gradio.Row():
                    protocol = gradio.Dropdown(list(PROTOCOLS), value="paper", label="protocol")
                    select = gradio.Dropdown([OWN, *names(RULES)], value=OWN, label="select")
                    grounding = gradio.Dropdown(list(GROUNDINGS), value="model", label="grounding")
                    budget = gradio.Textbox(label="crop_pixels", placeholder="auto, original or a number")
            with gradio.Column():
                status = gradio.Textbox(label="Answer", lines=2)
                with gradio.Row():
                    marked = gradio.Image(label="Region", format="png", height=320, buttons=BUTTONS)
                    crop = gradio.Image(
                        label="What the second look sees", format="png", height=320, buttons=BUTTONS
                    )
                with gradio.Row():
                    macro, macro_ppl = (
                        gradio.Textbox(label="Macro"),
                        gradio.Textbox(label="Perplexity, macro"),
                    )
                with gradio.Row():
                    micro, micro_ppl = (
                        gradio.Textbox(label="Micro"),
                        gradio.Textbox(label="Perplexity, micro"),
                    )
        given = [image, question, protocol, select, grounding, budget]
        outputs = [status, marked, crop, macro, macro_ppl, micro, micro_ppl]
        question.submit(answer, given, outputs, show_progress="hidden")
        gradio.Examples(_examples(folder), [image, question], label="Drawn scenes")
    return blocks


def _outputs(
    backend: Backend, image: Any, question: str, protocol: str, select: str, grounding: str, budget: str
) -> Iterator[tuple[Any, ...]]:
    """What the controls give, as what the page shows, a state at a time."""
    from dualfocus_lmms.cli.steps import steps

    if image is None:
        raise UserError("No image: drop one, or choose an example.")
    settings = {
        "protocol": protocol,
        "select": None if select == OWN else select,
        "grounding": grounding,
        "crop_pixels": pixels(budget),
    }
    for shown in steps(backend, image, question, **settings):
        yield (shown.status, shown.image, shown.crop, *shown.macro, *shown.micro)


def _examples(folder: Path) -> list[list[str]]:
    """Questions about drawn scenes of the test split, each image in a file."""
    from dualfocus_lmms.scenes import make_scenes

    found = []
    for number, scene in enumerate(make_scenes("test", 0, EXAMPLES)):
        path = folder / f"scene{number}.png"
        scene.image().save(path)
        found.append([str(path), scene.questions[0].question])
    return found

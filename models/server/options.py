"""The model arguments of `--model dualfocus_server`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from dualfocus_lmms.chat_client import check_url, has_password
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.models.host.options import FlowOptions
from dualfocus_lmms.options import FamilyName, Folder, ImageBounds, Switch, Text, must_be, option
from dualfocus_lmms.plugins import FAMILIES, names
from dualfocus_lmms.settings import Settings

URL = "OPENAI_BASE_URL"


class ServerOptions(ImageBounds, FlowOptions):
    """Everything a user can set with `--model_args`."""

    base_url: Text = option(
        decides=False,
        secret=True,
        help="of the server, with `/v1`. One with a user or a password is refused, since lmms-eval writes "
        "model arguments into its results: export `OPENAI_BASE_URL` and leave `base_url` out",
    )
    model: Text = option(help="the model's name there (`--served-model-name`, or what `/v1/models` lists)")
    family: FamilyName = option(
        help="the model's family, which a server does not report: how it writes a box, and how images are "
        "sent"
    )
    api_key: Text | None = option(
        None,
        unset="$OPENAI_API_KEY, if set",
        decides=False,
        secret=True,
        help="better in the environment: lmms-eval writes model arguments into its results",
    )
    concurrency: Annotated[int, Field(strict=True, ge=1), must_be("a whole number, 1 or more")] = option(
        16,
        decides=False,
        help="questions under way at the same time, each in its own stage, so at most this many "
        "requests are open",
    )
    retries: Annotated[int, Field(strict=True, ge=0), must_be("a whole number, 0 or more")] = option(
        6,
        decides=False,
        help="how often one request is repeated after 429, 5xx or no reply, after 0.5, 1, 2, 4, 8, 8 seconds "
        "or when the server says",
    )
    timeout: Annotated[float, Field(strict=True, gt=0), must_be("a number of seconds above 0")] = option(
        600.0, decides=False, help="seconds from a request to the end of its reply"
    )
    processor: Folder | None = option(
        None,
        checkpoint=True,
        help="folder or hub name of the checkpoint that the server runs, where boxes are [pixels of the "
        "resized image](#boxes-in-pixels-of-the-resized-image) and where [crops are enlarged](#the-zoom)",
    )
    guided_box: Switch = option(
        False,
        help="the server forces the reply to Q1 into the family's notation (vLLM from 0.11, SGLang). Such a "
        "reply is not the model's own",
    )

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        check_url(url, "base_url")
        return url

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ServerOptions:
        url = given.get("base_url")
        if url:
            check_url(str(url), "base_url")
        if url and has_password(str(url)):
            raise UserError(
                "base_url holds a user or a password, and lmms-eval writes model arguments into its "
                f"results: export {URL}=http://USER:PASSWORD@HOST:PORT/v1 and leave base_url out."
            )
        return super().of({**given, "base_url": url or os.environ.get(URL)})

    @classmethod
    def kind(cls) -> str:
        return "model argument of dualfocus_server"

    @classmethod
    def missing(cls, name: str) -> str:
        return (
            f"No {name}: give --model_args base_url=http://HOST:PORT/v1,model=NAME,family=FAMILY. "
            f"NAME is what the server calls its model and FAMILY one of {', '.join(names(FAMILIES))}."
        )

    def settings(self) -> Settings:
        """How DualFocus answers. UserError for what no server gives, and for what excludes each other."""
        settings = super().settings()
        if self.guided_box and settings.separate:
            raise UserError(
                "guided_box=True forces a reply of one box, and regions=separate is for replies of several: "
                "leave one of them out."
            )
        if isinstance(settings.rule, JointRule):
            raise UserError(
                f"select={settings.rule_name} scores texts that the model has not generated, and a server "
                "scores only what it generates itself. Choose another rule, or use --model dualfocus."
            )
        return settings

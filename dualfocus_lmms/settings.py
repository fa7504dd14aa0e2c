"""How DualFocus answers: a run's own choices on top of a protocol, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from dualfocus_lmms.calibrated import CalibratedRule
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.grounding import ATTENTIONS, Grounder, detector_for, load_grounding
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.plugins import load_rule
from dualfocus_lmms.prompts import PROMPTS
from dualfocus_lmms.protocol import Protocol, load_protocol
from dualfocus_lmms.selection import Rule
from dualfocus_lmms.zoom import CropPixels

if TYPE_CHECKING:
    from dualfocus_lmms.options import FlowChoices

NATIVE = "native"  # prompts: Q1 as the model's family was trained with

Pathway = Literal["both", "macro"]
Subimage = Literal["turn", "patch"]
Regions = Literal["union", "separate"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How DualFocus answers: everything besides the model that decides an answer.

    pathway "macro" runs the plain model alone. skip_confidence, 0 to 1: locate and micro are skipped where
    the macro answer's confidence (geometric mean of its tokens' probabilities, 1/PPL) is above it; 1 never
    skips. grounding: where the region comes from; grounder gives its box, None means the model, and
    grounding_checkpoint is the detector of grounding "dino". box_shift:
    pixels of the original image by which the region, wherever it comes from, is moved before it is cropped.
    prompts: whose wordings of Q1 and Q2 the protocol has here; NATIVE is Q1 of the model's family. subimage:
    "turn" shows the crop in a second turn, "patch" makes it one more tile of the image (table 6).
    crop_pixels: to how many pixels the crop is enlarged (eq. 3), "auto" as many as the whole image has as
    the model gets it, "original" as it is, or a number; models of fixed resolution enlarge every crop by
    themselves. regions: "union" looks at one region, "separate" at each that is located, up to
    MOST_REGIONS. looks: how many there may be; each but the first looks into the crop of the one before it.
    keep_maps: whether traces hold the attention that a region was chosen from; decides no answer.
    Build it with `Settings.of`, which checks the values.
    """

    protocol: Protocol
    pathway: Pathway
    rule_name: str
    rule: Rule
    skip_confidence: float
    box_margin: int
    count_eos: bool
    grounding: str
    grounder: Grounder | None
    grounding_checkpoint: str | None
    box_shift: int
    prompts: str
    subimage: Subimage
    crop_pixels: CropPixels
    regions: Regions
    looks: int
    keep_maps: bool

    @classmethod
    def of(
        cls,
        protocol: str = "paper",
        pathway: str = "both",
        select: str | None = None,
        skip_confidence: float = 1.0,
        box_margin: int | None = None,
        count_eos: bool | None = None,
        grounding: str = "model",
        grounding_checkpoint: str | None = None,
        box_shift: int = 0,
        prompts: str | None = None,
        subimage: str = "turn",
        crop_pixels: str | int | None = None,
        regions: str = "union",
        looks: int = 1,
        keep_maps: bool = False,
        **unknown: NoReturn,
    ) -> Settings:
        """Settings from plain values; None means the protocol's own. UserError for an impossible value.

        `options.SettingOptions` declares and describes them.
        """
        given = dict(locals())
        from dualfocus_lmms.options import SettingOptions, keywords

        return SettingOptions.of(keywords(given)).settings()

    @classmethod
    def chosen(cls, given: FlowChoices, subimage: Subimage = "turn", keep_maps: bool = False) -> Settings:
        """Settings from options, whose values are checked. UserError for choices that exclude each other."""
        chosen = load_protocol(given.protocol)
        prompts = chosen.name if given.prompts is None else given.prompts
        chosen = replace(chosen, prompts=PROMPTS.get(prompts, chosen.prompts))
        rule_name = chosen.rule if given.select is None else given.select
        rule = load_rule(rule_name)
        if subimage == "patch" and isinstance(rule, JointRule):
            raise UserError(
                f"select={rule_name} scores both answers after the region and the crop, and with "
                "subimage=patch there is no such conversation. Choose another rule, such as ppl."
            )
        if given.regions == "separate":
            _check_separate(given, rule_name, subimage)
        if keep_maps and given.grounding not in ATTENTIONS:
            raise UserError(
                "keep_maps=True keeps the attention from which a grounding chooses the region, and grounding "
                f"is {given.grounding!r}. Leave keep_maps out, or give grounding={' or '.join(ATTENTIONS)}."
            )
        if given.looks > 1:
            _check_looks(given, isinstance(rule, JointRule), subimage)
        count_eos = chosen.count_eos if given.count_eos is None else given.count_eos
        if isinstance(rule, CalibratedRule):
            rule.check_count_eos(rule_name, count_eos)
        return cls(
            protocol=chosen,
            pathway=given.pathway,  # type: ignore[arg-type]
            rule_name=rule_name,
            rule=rule,
            skip_confidence=given.skip_confidence,
            box_margin=chosen.margin if given.box_margin is None else given.box_margin,
            count_eos=count_eos,
            grounding=given.grounding,
            grounder=load_grounding(given.grounding, several=given.regions == "separate"),
            grounding_checkpoint=detector_for(given.grounding, given.grounding_checkpoint),
            box_shift=given.box_shift,
            prompts=prompts,
            subimage=subimage,
            crop_pixels=chosen.crop_pixels if given.crop_pixels is None else given.crop_pixels,
            regions=given.regions,  # type: ignore[arg-type]
            looks=given.looks,
            keep_maps=keep_maps,
        )

    @property
    def separate(self) -> bool:
        """Whether every located region is shown in a crop of its own."""
        return self.regions == "separate"

    @property
    def may_skip(self) -> bool:
        """Whether a question may do without a second look that others need."""
        return self.pathway == "both" and self.skip_confidence < 1

    def to_dict(self) -> dict[str, Any]:
        """What decides an answer as plain values, all defaults filled in.

        calibration: the content of a calibrated rule's file; only with such a rule.
        """
        fitted = {"calibration": self.rule.to_dict()} if isinstance(self.rule, CalibratedRule) else {}
        return {
            "protocol": self.protocol.name,
            "pathway": self.pathway,
            "select": self.rule_name,
            "skip_confidence": self.skip_confidence,
            "box_margin": self.box_margin,
            "count_eos": self.count_eos,
            "grounding": self.grounding,
            "grounding_checkpoint": self.grounding_checkpoint,
            "box_shift": self.box_shift,
            "prompts": self.prompts,
            "subimage": self.subimage,
            "crop_pixels": self.crop_pixels,
            "regions": self.regions,
            "looks": self.looks,
            **fitted,
        }


def _check_separate(given: FlowChoices, rule_name: str, subimage: Subimage) -> None:
    """UserError for what knows of one region only."""
    reasons = {
        "protocol=release": (given.protocol == "release", "the authors' code crops the first box of a reply"),
        "select=release": (rule_name == "release", "the release compares after a question about two images"),
        "subimage=patch": (subimage == "patch", "the paper adds one tile to the image (table 6)"),
        "box_shift": (given.box_shift > 0, "the paper moves the one region that was located (table 5)"),
    }
    _refuse("regions=separate shows each region", reasons)


def _check_looks(given: FlowChoices, joint: bool, subimage: Subimage) -> None:
    """UserError for what looks once only."""
    _refuse(
        f"looks={given.looks} locates again in the crop",
        {
            "protocol=release": (given.protocol == "release", "the authors' code looks once"),
            f"select={given.select}": (joint, "it scores both answers after the one crop"),
            "subimage=patch": (subimage == "patch", "the crop is a tile there, and no image"),
            "regions=separate": (given.regions == "separate", "there may be several crops"),
            f"grounding={given.grounding}": (given.grounding != "model", "the model does not locate there"),
            "box_shift": (given.box_shift > 0, "the paper moves the one region that was located (table 5)"),
        },
    )


def _refuse(what: str, reasons: Mapping[str, tuple[bool, str]]) -> None:
    """UserError for the first option that is chosen, by its name, with the reason."""
    for name, (chosen, reason) in reasons.items():
        if chosen:
            raise UserError(f"{what}, which {name} rules out: {reason}. Leave one of the two out.")

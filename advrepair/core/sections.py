"""Sections of the core: the options of a run that belong to no component, and their presets."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from advrepair.core.errors import UsageError
from advrepair.core.options import option

Layer = Mapping[str, Mapping[str, object]]

DEMO = "digits"
PRESETS: dict[str, Layer] = {
    "default": {},
    "paper": {
        "patch": {"hidden": [64, 64, 16]},
        "training": {
            "optimiser": "adam",
            "lr": 10.0,
            "epochs": 10,
            "rounds": 25,
            "split": 800,
            "margin": 0.0,
            "scale": False,
            "fallback": False,
        },
    },
}

# Of the evaluation alone. The paper's released code runs two attacks of AutoAttack, 10 steps each.
EVALUATION_PRESETS: dict[str, Layer] = {
    "default": {},
    "paper": {
        "plan": {"evaluation_attack": "autoattack"},
        "autoattack": {"version": "paper"},
    },
}


@attrs.frozen
class Problem:
    """What is to be repaired."""

    network: str = option(
        DEMO, "an ONNX file; safetensors or torch weights with factory; 'digits' is the demo"
    )
    factory: str = option("", "package.module:function that builds the module for the weights")
    data: str = option("", "an npz file with x and y; empty for the demo's own images")
    property: tuple[str, ...] = option((), "VNN-LIB files: what must hold on which inputs")
    decision: str = option(
        "argmax",
        "which output a network decides for: argmax, the largest, or argmin, as in ACAS Xu",
        choices=("argmax", "argmin"),
    )
    epsilon: float = option(0.1, "radius of the balls, in input units", above=0)
    count: int = option(50, "how many counterexamples to repair", at_least=1)
    input_range: tuple[float, ...] = option(
        (0.0, 1.0), "lowest and highest input; clips balls and attacks; [] for none"
    )

    def __attrs_post_init__(self) -> None:
        bounds = self.input_range
        if bounds and (len(bounds) != 2 or bounds[0] >= bounds[1]):
            raise UsageError(
                f"problem.input_range is {list(bounds)}: it must be [low, high] with low < high, "
                "or [] for an unbounded input"
            )


@attrs.frozen
class Plan:
    """Which components do the work."""

    indicator: str = option("property-guided", "says which patch serves which property")
    verifier: str = option("deeppoly", "bounds the margins that training raises")
    certifier: str = option(
        "", "rigorous verifier of the certificate; empty: the verifier if rigorous, else deeppoly"
    )
    front: str = option(
        "",
        "rigorous verifier of the layers before patch.at; empty: interval, as the checker has it",
    )
    allocator: str = option("", "patches of inputs outside the balls; empty: the indicator's own")
    refiner: str = option("gradient-width", "says where to split what is not proved")
    attack: str = option("pgd", "searches for counterexamples")
    evaluation_attack: str = option("", "attacks unseen inputs; empty: the attack")
    executor: str = option("in-process", "where shards of patches are worked on")


@attrs.frozen
class Patch:
    """What a patch network looks like."""

    hidden: tuple[int, ...] = option((), "sizes of the hidden layers; [] is affine", at_least=1)
    at: str = option(
        "",
        "the layer whose result patches see; auto: the last before the fully connected ones; "
        "empty: they see the input",
    )
    boxes: str = option(
        "proved",
        "around features: proved bounds, or what contains samples, which proves nothing",
        choices=("proved", "sampled"),
    )


@attrs.frozen
class Sampling:
    """What is sampled of each ball where boxes of features are not proved."""

    anywhere: int = option(32, "random inputs of the ball", at_least=1)
    corners: int = option(32, "random corners of the ball", at_least=0)
    steps: int = option(5, "steps of each of two searches, by the sign of the gradient", at_least=0)
    widen: float = option(
        0.5, "how much wider the box is than the samples, of its width", at_least=0
    )


@attrs.frozen
class Training:
    """How patches are trained, and when to give up."""

    objective: str = option(
        "margin",
        "margin: the first patch that is proved; intrusion: one that is small in its boxes and "
        "near zero at other inputs of the data; cap: sees the outputs and lowers those that are "
        "not below the one demanded",
        choices=("margin", "intrusion", "cap"),
    )
    optimiser: str = option("polyak", "step rule; adam is the paper's", choices=("polyak", "adam"))
    lr: float = option(1.0, "step length: a factor for polyak, the learning rate for adam", above=0)
    epochs: int = option(10, "epochs in a round (the paper's R)", at_least=1)
    rounds: int = option(25, "rounds, each followed by a split (the paper's M)", at_least=1)
    split: int = option(
        800, "pieces of each patch split after a round, at most (the paper's K)", at_least=0
    )
    margin: float = option(0.01, "margin aimed at beyond the proof", at_least=0)
    scale: bool = option(True, "prove the least multiple of a patch that suffices")
    fallback: bool = option(True, "use a constant patch where the budget ends unproved")
    clamp: bool = option(
        True,
        "a margin that suffices is left alone; false: all are raised until the budget ends, as the "
        "paper does for features",
    )

    def __attrs_post_init__(self) -> None:
        if self.clamp:
            return
        if self.optimiser == "polyak":
            raise UsageError(
                "training.clamp is false: that loss has no least value, which steps of polyak "
                "need; use --set training.optimiser=adam with a training.lr"
            )
        if self.objective != "margin":
            raise UsageError(
                "training.clamp is false, which wants patches as large as they get, and "
                f"training.objective is {self.objective!r}, which wants small ones: leave one out"
            )


@attrs.frozen
class Screening:
    """How the boxes of properties are cut where the network alone is not proved."""

    pieces: int = option(4000, "pieces of all boxes together, at most; 1: none is cut", at_least=1)
    patience: int = option(
        20000, "the same, where there is no counterexample and no proof yet", at_least=1
    )
    split: int = option(400, "pieces cut at a time, at most (the paper's K)", at_least=1)
    inputs: int = option(32, "boxes of more inputs are not cut", at_least=0)
    undecided: str = option(
        "leave",
        "a property with no counterexample and no proof: leave it as it is, or repair it",
        choices=("leave", "repair"),
    )


@attrs.frozen
class Certification:
    """What is certified, and how hard it is tested."""

    level: str = option(
        "deployed",
        "arithmetic for which the certificate holds; deployed: that of the network's weights",
        choices=("deployed", "real", "deployed-float32", "deployed-float64"),
    )
    attack: bool = option(True, "attack the certified boxes too")


@attrs.frozen
class Evaluation:
    """What is measured beside the proof."""

    samples: int = option(10, "examples for RGR to each one for RSR", at_least=1)
    examples: int = option(500, "counterexamples of a property file's region for RSR", at_least=1)
    inputs: int = option(5000, "random inputs in and outside a region, for FDD", at_least=1)
    scope: str = option(
        "quick",
        "quick: RSR, RGR, DD; full: attacks on unseen inputs too",
        choices=("quick", "full"),
    )
    epsilon: float = option(0.0, "radius on unseen inputs; 0: that of the balls", at_least=0)
    limit: int = option(1000, "unseen inputs that are attacked, at most", at_least=1)


@attrs.frozen
class Comparison:
    """Which repair methods are compared, and what each may take."""

    methods: tuple[str, ...] = option(("all",), "by name; all: every one that is installed")
    seconds: float = option(600.0, "for one repair, at most; its evaluation comes after", above=0)
    memory: float = option(4.0, "GiB for the process of one method, at most", above=0)


@attrs.frozen
class Run:
    """How the run is done."""

    seed: int = option(0, "seed of everything random", at_least=0, at_most=2**52)
    memory: float = option(2.0, "GiB that bounds in flight may take", above=0, at_most=2**20)
    device: str = option("cpu", "where bounds, training and attacks are computed: cpu or cuda")
    preset: str = option(
        "default", "values laid beneath the others of its source", choices=tuple(PRESETS)
    )


SECTIONS: dict[str, type] = {
    cls.__name__.lower(): cls
    for cls in (
        Problem,
        Plan,
        Patch,
        Sampling,
        Screening,
        Training,
        Certification,
        Evaluation,
        Comparison,
        Run,
    )
}
# What a component is there for, and of which kind it must be.
ROLES = {
    "verifier": "verifier",
    "certifier": "verifier",
    "front": "verifier",
    "indicator": "indicator",
    "allocator": "allocator",
    "refiner": "refiner",
    "attack": "attack",
    "evaluation_attack": "attack",
    "executor": "executor",
}

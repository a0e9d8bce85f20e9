"""What a run consists of, counted before it begins: operations and bytes of every stage."""

from __future__ import annotations

import torch
from attrs import frozen

from advrepair.core.attacking import at_once, balls
from advrepair.core.bounding import bytes_per_box, bytes_per_patch, chunks
from advrepair.core.capping import OBJECTIVE, capping
from advrepair.core.config import Configuration
from advrepair.core.counting import Count, climb, constants, detector, epoch, forward, proof, rows
from advrepair.core.graph import INPUT, NON_AFFINE, Network, size
from advrepair.core.inputs import Inputs, clip_of
from advrepair.core.options import values
from advrepair.core.parting import Parts, parted
from advrepair.core.patching import patch_template
from advrepair.core.shards import packed

_AT_ONCE = 256  # properties that are attacked together
_QUERIES = 1000  # of an evaluation together
_SAMPLE = 1000  # inputs whose patches are counted
_SAMPLINGS = 2  # times that a ball is sampled after training: its box again, and fresh ones
_FACES = 12  # times that the rows of all features of a ball, two each, are read or written
_LEAST = 16  # boxes that are bounded together at least, padded: core/bounding.py
_PAIR = 4  # bytes that one query and one region cost in routing
_LAZY = 2**24  # what torch loads when it is first used for a gradient or a map
_BLOCKS = 2**23  # the rows in between, of all blocks at work
_ENDS_OF_UNIT = 24  # numbers held for a unit of a box while it is bounded
_TEXT = 450  # bytes of certificate.json a property
_PAGE = 250_000  # bytes of report.html and what else is small


@frozen
class Setting:
    """What a repair is about. tests: inputs for DD. balls: whether data are named.

    parts: of the network, where patches see a layer.
    """

    network: Network
    parts: Parts | None
    template: Network
    plan: Configuration
    properties: int
    patches: int
    rows: int
    tests: int
    balls: bool
    files: bool

    @property
    def tail(self) -> Network:
        """What is bounded with the patches: the network, or what is behind their layer."""
        return self.parts.tail if self.parts else self.network

    @property
    def inputs(self) -> int:
        """S."""
        return size(self.network.input_shape)

    @property
    def seen(self) -> int:
        """Numbers that a patch sees."""
        return size(self.tail.input_shape)

    @property
    def front(self) -> Count:
        """Of one ball: proved faces, a middle, a reach and a size each, in float64; or samples."""
        if self.parts is None:
            return Count()
        if self.sampled:
            return self.samples
        once, rows_ = forward(self.parts.front), 2 * 8 * self.seen * self.seen
        return Count(double=3 * once.single, moved=3 * 2 * once.moved + _FACES * rows_)

    @property
    def sampled(self) -> bool:
        """Whether boxes of features are those of samples."""
        return self.parts is not None and self.plan.patch.boxes == "sampled"

    @property
    def samples(self) -> Count:
        """All samples of one ball: two searches, and the features of what they and others gave."""
        if self.parts is None or not self.sampled:
            return Count()
        asked = self.plan.sampling
        searched = 2 * asked.steps
        features = (asked.anywhere + asked.corners + searched) * forward(self.parts.front)
        return features + searched * forward(self.network, True)

    @property
    def width(self) -> int:
        """Bytes of one number of the network."""
        return int(self.network.dtype.itemsize)

    @property
    def examples(self) -> int:
        """Counterexamples that are evaluated for each property, at most."""
        more = self.plan.evaluation.samples + 1
        return more if self.balls else more * self.plan.evaluation.examples

    @property
    def pieces(self) -> int:
        """Pieces that one patch serves."""
        return -(-self.properties // max(1, self.patches))

    @property
    def weights(self) -> Count:
        """The weights of one patch, fetched for a query and used."""
        return Count(moved=3 * self.width * self.template.parameters_count)

    @property
    def shards(self) -> list[int]:
        """Patches of each shard."""
        pieces = [self.pieces] * self.patches
        return [part.stop - part.start for part in packed(pieces, self.template, self.rows)]

    @property
    def workers(self) -> int:
        """Shards that are worked on at once."""
        asked = values(self.plan.executor).get("workers")
        return asked if isinstance(asked, int) and asked > 0 else torch.get_num_threads()


def setting_of(inputs: Inputs, plan: Configuration) -> Setting:
    """What a repair will be about, as far as that is known before the attack."""
    network, data, demanded = inputs.network, inputs.data, inputs.demanded
    plan = capping(plan, network)
    asked = min(plan.problem.count, len(data.repair)) if data else 0
    rows_, patches = network.outputs - 1, asked
    if data is not None and asked:
        index = torch.arange(min(asked, _SAMPLE))
        sample = balls(network, data.repair, index, plan.problem.epsilon, clip_of(plan.problem))
        found = len(plan.indicator.assign(sample))
        patches = asked if found == len(index) else found
    if demanded is not None:
        rows_ = max(rows_ if data else 0, demanded.C.shape[1])
    files = 0 if demanded is None else len(demanded)
    parts = parted(network, plan.patch.at) if plan.patch.at else None
    return Setting(
        network,
        parts,
        shapes(parts.tail if parts else network, plan.patch.hidden),
        plan,
        asked + files,
        patches + files,
        rows_,
        0 if data is None or data.test is None else len(data.test),
        data is not None,
        demanded is not None,
    )


def counts(setting: Setting) -> dict[str, tuple[Count, float]]:
    """Work of every step, and how many calls it takes; on all threads together."""
    n, plan, network = setting.properties, setting.plan, setting.network
    steps, epochs, shards = _attack_steps(plan), _epochs(plan), len(setting.shards)
    together = at_once(network)
    descent = steps * climb(network)
    tried = -(-n // together) * together if setting.balls else n
    routed = Count(moved=_PAIR * n)
    deployed = forward(setting.template, True) + setting.weights + routed
    attacked = n * (descent + steps * deployed) if plan.certification.attack else Count()
    boxes, read = max(n, _LEAST * shards), Count(moved=3 * 8 * network.parameters_count)
    fronts = shards if plan.training.objective == OBJECTIVE else n  # one box for all of a shard
    trained = n * (epochs * epoch(setting.template, setting.rows))
    if plan.training.objective == "intrusion" and setting.balls:
        trained = n * detector(setting.template)
    trained += n * proof(setting.template, setting.rows)
    held = n * constants(setting.template, setting.rows)
    return {
        "attack": (tried * descent, steps * tried / together),
        "bounds": (
            boxes * rows(setting.tail, setting.rows, True) + fronts * setting.front + shards * read,
            shards,
        ),
        "training": (trained, shards * epochs),
        "proof": (held, shards),
        "certification": (attacked, steps * -(-n // together)),
        "evaluation": (
            _evaluation(setting, descent, routed),
            n * setting.examples + setting.tests,
        ),
    }


def _evaluation(setting: Setting, descent: Count, routed: Count) -> Count:
    """Examples are searched for and tried on both repairs, and so are the test inputs."""
    n, network, plan = setting.properties, setting.network, setting.plan
    query = 3.0 * forward(network) + forward(setting.template) + 2.0 * routed
    examples = n * setting.examples * (descent + query) + 2.0 * n * setting.weights
    examples += n * _SAMPLINGS * setting.samples  # how often boxes fail
    if plan.allocator.name == "none":
        return examples + setting.tests * query
    # Every test input meets every centre, and then a patch.
    compared = Count(single=4.0 * (setting.tests + n) * setting.inputs * n)
    used = -(-setting.tests // _QUERIES) * min(setting.patches, _QUERIES)
    return examples + setting.tests * query + compared + used * setting.weights


def _attack_steps(plan: Configuration) -> float:
    known = values(plan.attack)
    numbers = [known.get(name, 1) for name in ("steps", "restarts")]
    steps, restarts = (n if isinstance(n, int) else 1 for n in numbers)
    return float((steps + 1) * restarts)


def _epochs(plan: Configuration) -> float:
    """Epochs until a proof: counted on real runs, or one round where nothing shortens it.

    All of them where the budget is always used up.
    """
    if plan.training.objective == OBJECTIVE:
        return 0.0
    if not plan.training.clamp:
        return float(plan.training.rounds * (plan.training.epochs + 1))
    if plan.training.optimiser != "polyak" or not plan.training.scale:
        return plan.training.epochs + 1.0
    return 3.0 if plan.patch.hidden else 2.0


def kept_bytes(setting: Setting) -> int:
    """Bytes of a run folder."""
    n, inputs, width = setting.properties, setting.inputs * setting.width, setting.width
    network, outputs = setting.network, setting.network.outputs
    patch = setting.patches * setting.template.parameters_count * width
    repaired = n * (3 * inputs + outputs * width + 40) + network.parameters_count * width
    units = setting.tail.units + setting.template.units
    demand = setting.rows * ((outputs + 1) * width + 8)
    certificate = n * (2 * inputs + demand + units + 60 + _TEXT)
    evaluation = n * (setting.examples * (inputs + 8) + outputs * width + 40)
    return patch + repaired + certificate + evaluation + _PAGE


def array_bytes(setting: Setting) -> int:
    """Bytes of the arrays that live through a run: boxes, examples, rows of the demands."""
    n, inputs = setting.properties, setting.inputs * setting.width
    demand = 2 * setting.rows * (setting.network.outputs + 3) * 8
    # Faces and centres, those of the regions, and the examples.
    return n * (8 * inputs + setting.examples * inputs + demand + 2000)


def flight_bytes(setting: Setting) -> int:
    """Bytes in flight at most, of the stage that takes most."""
    n, inputs = setting.properties, setting.inputs * setting.width
    largest = max(setting.shards, default=0)
    q = largest * setting.pieces
    patch = largest * bytes_per_patch(setting.template, setting.rows, setting.pieces)
    shard = patch + q * setting.rows * setting.seen * 12 + _chunk(setting, q)
    weights = setting.template.parameters_count * setting.width
    attack = min(n, _AT_ONCE) * (12 * inputs + weights)
    routing = _QUERIES * (3 * n + setting.patches + 12 * inputs)
    return _LAZY + max(setting.workers * shard, attack + routing)


def _chunk(setting: Setting, boxes: int) -> int:
    """Bytes of bounding that many boxes: rows at the end of a chunk, and ends of every unit.

    Rows in between are worked on in blocks that fit the cache.
    """
    network = setting.tail
    each = bytes_per_box(network, setting.rows)
    most = max((len(part) for part in chunks(boxes, each, 2**62)), default=0)
    shapes = {INPUT: network.input_shape} | {op.name: op.shape for op in network.operations}
    bent = (op.inputs[0] for op in network.operations if op.kind in NON_AFFINE)
    units = sum(size(shapes[name]) for name in bent)
    ends = 3 * setting.rows * setting.seen + _ENDS_OF_UNIT * units
    return _BLOCKS + 8 * (most * ends + setting.network.parameters_count)


def shapes(network: Network, hidden: tuple[int, ...]) -> Network:
    """A patch without weights: its sizes may be absurd."""
    with torch.device("meta"):
        return patch_template(network, hidden)

"""Which patches an input outside every box gets; section 3.3 of arXiv 2404.01642."""

from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Component
from advrepair.plugins.allocators.cosine import Cosine
from advrepair.plugins.allocators.feature_cosine import FeatureCosine
from advrepair.plugins.allocators.kernel import Kernel
from advrepair.plugins.allocators.label_pair import LabelPair
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.allocators.none import NoAllocator


@hookimpl
def advrepair_components() -> tuple[type[Component], ...]:
    """The allocators."""
    return (Cosine, FeatureCosine, Kernel, LabelPair, Nearest, NoAllocator)

"""How many images the sources of a run have."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.chains.graph import Node
from pipeline.data.image_counts import ImageCounts
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.kinds import open_source
from pipeline.stages.index_images import index_of
from storage.image_index import ImageIndex


@dataclass
class CountedSources:
    """The images of every source that nodes read, each listed at most once. `known`: those that are listed already."""

    known: dict[ImageSourceOptions, ImageCounts] = field(default_factory=dict)

    def add(self, source: ImageSourceOptions, index: Path) -> None:
        """Take the images of a source from the artifact of their index."""
        self.known[source] = ImageCounts.of_index(ImageIndex.read(index))

    def __call__(self, node: Node) -> ImageCounts:
        """Raises PipelineError or StoreError when the images are not where they should be."""
        source = node.source
        if source not in self.known:
            if source.kind == "demo":
                self.known[source] = ImageCounts.of_demo(node.config.demo_images)
            else:
                self.known[source] = ImageCounts.of_index(index_of(open_source(source).scan(), source))
        return self.known[source]

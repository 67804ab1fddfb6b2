"""What features cost on the wire: how full a link gets, processor seconds per byte, and what lossy codecs change."""

"""What this node's programs say they are."""

VERSION = "0.1.0"

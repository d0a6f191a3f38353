"""Audio goes in at one door, sound comes out at another: corpora -> sound -> cache -> lm -> sound.

The four rooms (`corpora`, `sound`, `cache`, `lm`) never import each other; the entry points beside this file
(`preprocess`, `train`, `generate`, ...) carry things from room to room.
"""

__version__ = "0.1.0"

"""MiniWorld: drawn scenes whose contents are known exactly, with a tiny LLaVA and a tiny CLIP.

The default world of jsfree: every claim of the method can be measured in it on two CPU cores, because
the truth of each picture is known to the last object.
"""

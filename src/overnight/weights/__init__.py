"""Other people's weights: their files <-> our tensors. One file a format; tensors.py is what they share."""

"""The networks in timm's registry, and their pretrained weights."""

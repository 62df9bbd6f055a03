"""Publishing: packages, model cards and the commands of `python -m timm_ebl.hub`."""

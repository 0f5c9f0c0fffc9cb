"""The task types, one file each; `registry` lists them."""

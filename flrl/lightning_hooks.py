"""Which hooks of a LightningModule or LightningDataModule are its own."""

# `lightning.pytorch` is a second copy of `pytorch_lightning`; modules of both are welcome.
LIGHTNING_PACKAGES = ("pytorch_lightning.", "lightning.pytorch.")


def overridden(module: object, hook: str) -> bool:
    """Whether a module has its own version of a hook, by its class or on the instance."""
    method = getattr(module, hook, None)
    if method is None:
        return False
    own = hook in vars(module)
    return own or not str(getattr(method, "__module__", "")).startswith(LIGHTNING_PACKAGES)
